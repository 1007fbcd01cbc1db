"""What all embedders share: rows of unit length, blank texts as zeros, and what is said of another dimension."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from opd_evolver.errors import SetupError


def clean(text: str) -> str:
    """Lone surrogates have no UTF-8 form."""
    return text.encode("utf-8", "replace").decode()


def unit(rows: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """[N, D] → rows of unit length, float32; rows of zeros stay.

    Raises:
        ValueError: not a matrix of finite numbers.
    """
    found = np.asarray(rows, dtype=np.float64)
    if found.ndim != 2 or not np.isfinite(found).all():
        raise ValueError("no matrix of finite numbers")
    lengths = np.sqrt(np.sum(found * found, axis=1, keepdims=True))
    rows_of_one: npt.NDArray[np.float64] = np.divide(found, lengths, out=np.zeros_like(found), where=lengths > 0)
    return rows_of_one.astype(np.float32)


def embed_told(
    texts: Sequence[str], dimension: Callable[[], int], told: Callable[[list[str]], npt.NDArray[np.float32]]
) -> npt.NDArray[np.float32]:
    """[N, dimension] of all texts, where `told` embeds those that say something; the others are rows of zeros.

    Args:
        texts: any.
        dimension: asked after `told`, which may have learnt it.
        told: [n, dimension] of texts that are not blank and have a UTF-8 form.
    """
    cleaned = [clean(text) for text in texts]
    places = [at for at, text in enumerate(cleaned) if text.strip()]
    found = told([cleaned[at] for at in places]) if places else None
    out = np.zeros((len(texts), dimension()), dtype=np.float32)
    if found is not None:
        out[places] = found
    return out


def other_dimension(identity: str, seen: int, expected: int) -> SetupError:
    """An embedder that gives vectors of another length than those it is to stand beside."""
    return SetupError(
        f"embedder {identity} gives {seen} dimensions",
        f"{expected}, as its vectors had when the memory was indexed",
        "put back what made them, or embed with another one: `opd memory reembed --to EMBEDDER`",
    )
