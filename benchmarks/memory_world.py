"""Memories and queries of a given seed: words by Zipf's law, entries spread evenly over scopes.

One level and one domain: a search without scope filter ranks every entry there is. Entry i is the same at every size.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from opd_evolver.records import Entry, TipContent, uuid5_of

DOMAIN, N_WORDS = "sql", 5000
N_TRIGGER, N_TEXT, N_QUERY = 5, 16, 10


class World(NamedTuple):
    """What is stored and asked for."""

    seed: int
    n_scopes: int

    def entries(self, first: int, n: int) -> Iterator[Entry]:
        """Entries `first` to `first + n - 1`."""
        words = _Words(self.seed)
        for number in range(first, first + n):
            text = words.draw(number, N_TRIGGER + N_TEXT)
            yield Entry(
                entry_id=uuid5_of("benchmark", str(number)),
                domain=DOMAIN,
                scope=f"scope{number % self.n_scopes}",
                content=TipContent(trigger=" ".join(text[:N_TRIGGER]), text=" ".join(text[N_TRIGGER:])),
                source_episodes=(f"e{number}",),
                created_round=1,
            )

    def queries(self, n: int) -> list[tuple[str, str]]:
        """Texts to search for, each with a scope to search in."""
        words = _Words(self.seed)
        return [
            (" ".join(words.draw(-1 - number, N_QUERY)), f"scope{number * 7 % self.n_scopes}") for number in range(n)
        ]


class _Words:
    """The same words for the same number, whatever was drawn before."""

    def __init__(self, seed: int) -> None:
        rng = np.random.Generator(np.random.Philox(key=seed))
        letters = list("abcdefghijklmnoprstuvw")
        self.seed = seed
        self.words = ["".join(rng.choice(letters, int(rng.integers(3, 9)))) for _ in range(N_WORDS)]
        self.until = list(itertools.accumulate(1.0 / (rank + 1) for rank in range(N_WORDS)))

    def draw(self, number: int, n: int) -> list[str]:
        rng = np.random.Generator(np.random.Philox(key=self.seed, counter=[0, 0, 1, number % 2**63]))
        return [self.words[bisect.bisect_left(self.until, one * self.until[-1])] for one in rng.random(n).tolist()]
