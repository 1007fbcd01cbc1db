"""Embedders: text to unit vectors. The default needs no weights and gives the same bytes everywhere.

Differs: the paper embeds with a sentence encoder; hashed words and character trigrams stand in
until one is installed. The identity is stored with every index and snapshot.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from opd_evolver.errors import SetupError
from opd_evolver.memory.protocol import Embedder
from opd_evolver.params import nearest

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


EMBEDDERS: dict[str, Callable[[], Embedder]] = {"hash-256": lambda: HashEmbedder(256)}


def open_embedder(name: str) -> Embedder:
    """The embedder that `memory.embedder` names.

    Raises:
        SetupError: unknown name; the nearest known one is given.
    """
    if name not in EMBEDDERS:
        raise SetupError(
            f"unknown embedder `{name}`", " | ".join(EMBEDDERS), f"memory.embedder: {nearest(name, EMBEDDERS)}"
        )
    return EMBEDDERS[name]()
