"""How the dense and the lexical score of a candidate become one, the same way on every run.

Ranking must not depend on the order of insertion or on where a row lies in a matrix, because
scores are logged: sums run row by row (einsum, not BLAS) and ties go to the smaller entry id.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt


class Named(Protocol):
    """Entry ids by place."""

    def __getitem__(self, number: int, /) -> str: ...


DECIMALS = 6
K1, B = 1.2, 0.75


def cosine(vectors: npt.NDArray[np.float32], query: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """[N, D] unit rows · [D] → [N] float64; each row's value is independent of the other rows."""
    dense: npt.NDArray[np.float64] = np.einsum("ij,j->i", vectors, query, optimize=False).astype(np.float64)
    return dense


def bm25(query: Sequence[str], documents: Sequence[Sequence[str]]) -> npt.NDArray[np.float64]:
    """Okapi BM25 of each document with the statistics of these documents; [N] float64, ≥ 0."""
    n_documents = len(documents)
    scores = np.zeros(n_documents, dtype=np.float64)
    if not documents or not query:
        return scores
    lengths = np.array([len(document) for document in documents], dtype=np.int64)
    columns = {word: column for column, word in enumerate(dict.fromkeys(query))}
    n_columns = len(columns)
    cells = [
        place * n_columns + columns[word]
        for place, document in enumerate(documents)
        for word in document
        if word in columns
    ]
    counts = np.bincount(np.array(cells, dtype=np.int64), minlength=n_documents * n_columns)
    counts = counts.reshape(n_documents, n_columns)
    norm = K1 * (1.0 - B + B * lengths / (int(lengths.sum()) / n_documents or 1.0))
    for column in range(n_columns):
        places = np.flatnonzero(counts[:, column])
        idf = math.log(1.0 + (n_documents - len(places) + 0.5) / (len(places) + 0.5))
        tf = counts[places, column]
        scores[places] += idf * tf * (K1 + 1.0) / (tf + norm[places])
    return scores


def unit_range(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Min-max to [0, 1]; equal values become 1 when positive, else 0."""
    if not len(values):
        return values
    low, high = float(values.min()), float(values.max())
    if high - low < 10.0**-DECIMALS:
        return np.full_like(values, 1.0 if high > 10.0**-DECIMALS else 0.0)
    return (values - low) / (high - low)


def hybrid(dense: npt.NDArray[np.float64], lexical: npt.NDArray[np.float64], alpha: float) -> npt.NDArray[np.float64]:
    """alpha · dense + (1 - alpha) · lexical, each min-max normalised over the candidates; rounded."""
    mixed: npt.NDArray[np.float64] = np.round(alpha * unit_range(dense) + (1.0 - alpha) * unit_range(lexical), DECIMALS)
    return mixed


def best(entry_ids: Named, scores: npt.NDArray[np.float64], limit: int) -> list[tuple[str, float]]:
    """The `limit` best, best first; ties by entry id."""
    if limit <= 0 or not len(scores):
        return []
    if len(scores) > 4 * limit:
        cut = float(np.partition(scores, len(scores) - limit)[len(scores) - limit])
        places = np.flatnonzero(scores >= cut)
    else:
        places = np.arange(len(scores))
    ranked = sorted(
        ((entry_ids[place], float(scores[place])) for place in places.tolist()), key=lambda pair: (-pair[1], pair[0])
    )
    return ranked[:limit]
