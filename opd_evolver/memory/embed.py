"""Embedders: text to unit vectors. The default needs no weights and gives the same bytes everywhere.

`memory.embedder` names one: `hash-256`, `st:FOLDER` (embed_st.py) or `endpoint:MODEL` (embed_endpoint.py).
Differs: the paper embeds with a sentence encoder; hashed words and character trigrams stand in
until one is named. The identity is stored with every index and snapshot.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from opd_evolver.errors import SetupError
from opd_evolver.memory.protocol import Embedder
from opd_evolver.memory.unit_vectors import other_dimension
from opd_evolver.memory.vectors import CachedEmbedder, folder_of
from opd_evolver.params import nearest
from opd_evolver.settings import Settings, load_settings

WORD = re.compile(r"\w+")
ASCII_PUNCTUATION = {code: " " for code in range(128) if not WORD.fullmatch(chr(code))}
"""For text in ASCII this and `split` give what WORD finds, in less than half the time."""
WORD_WEIGHT, TRIGRAM_WEIGHT = 1.0, 0.35


def words_of(text: str) -> list[str]:
    """Words in order, case folded; punctuation separates."""
    folded = text.casefold()
    return folded.translate(ASCII_PUNCTUATION).split() if folded.isascii() else WORD.findall(folded)


@lru_cache(maxsize=65536)
def _place(feature: str, dimension: int) -> tuple[int, float]:
    """Column and sign of a feature; stable over processes and machines, unlike `hash`."""
    number = int.from_bytes(hashlib.blake2b(feature.encode("utf-8", "replace"), digest_size=8).digest(), "big")
    return (number >> 1) % dimension, 1.0 if number & 1 else -1.0


class HashEmbedder:
    """Signed feature hashing of words and of the character trigrams inside them.

    Args:
        dimension: columns of the vectors.
    """

    def __init__(self, dimension: int = 256) -> None:
        self.dimension = dimension
        self.identity = f"hash-{dimension}-v1"

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """[N, dimension] float32, rows of unit length, zero where a text holds no word."""
        out = np.zeros((len(texts), self.dimension), dtype=np.float64)
        for row, text in zip(out, texts, strict=True):
            for word in words_of(text):
                column, sign = _place(f"w:{word}", self.dimension)
                row[column] += WORD_WEIGHT * sign
                padded = f"^{word}$"
                for start in range(len(padded) - 2):
                    column, sign = _place(f"t:{padded[start : start + 3]}", self.dimension)
                    row[column] += TRIGRAM_WEIGHT * sign
            length = float(np.sqrt(np.sum(row * row)))
            if length > 0.0:
                row /= length
        return out.astype(np.float32)

    def expect(self, dimension: int) -> None:
        """As `Embedder.expect`."""
        if dimension != self.dimension:
            raise other_dimension(self.identity, self.dimension, dimension)

    def ready(self) -> None:
        """Always."""


def check_made_by(embedder: Embedder, identity: str, dimension: str, where: str) -> None:
    """An index's vectors can be compared with this embedder's only if it made them.

    Raises:
        SetupError: another embedder, or another dimension.
    """
    if identity != embedder.identity:
        raise SetupError(
            f"{where} was made by embedder {identity} ({dimension} dimensions)",
            embedder.identity,
            "set memory.embedder (or its weights) back, or `opd memory reembed`",
        )
    embedder.expect(int(dimension))


EMBEDDERS: dict[str, Callable[[], Embedder]] = {"hash-256": lambda: HashEmbedder(256)}
KINDS = ("st:", "endpoint:")


def open_embedder(name: str) -> Embedder:
    """The embedder that `memory.embedder` names. Weights and connections are kept open for this process.

    Raises:
        SetupError: unknown name (the nearest known one is given), or what it names is not there.
    """
    if name.startswith(KINDS):
        return _costly(name, folder_of(load_settings()), load_settings())
    if name not in EMBEDDERS:
        known = [*EMBEDDERS, *KINDS]
        raise SetupError(
            f"unknown embedder `{name}`",
            " | ".join([*EMBEDDERS, "st:FOLDER", "endpoint:MODEL"]),
            f"memory.embedder: {nearest(name, known)}",
        )
    return EMBEDDERS[name]()


@lru_cache(maxsize=4)
def _costly(name: str, folder: Path, settings: Settings) -> Embedder:
    """One that is slow or paid for: each text is embedded once, and kept."""
    kind, _, rest = name.partition(":")
    if kind == "st":
        from opd_evolver.memory import embed_st

        return CachedEmbedder(embed_st.SentenceTransformerEmbedder(embed_st.resolve(rest)), folder)
    from opd_evolver.memory import embed_endpoint

    return CachedEmbedder(embed_endpoint.of_settings(rest, settings), folder)
