"""The words of live entries in numpy, scored as FTS5's bm25() scores them, to the last bit.

FTS5 stays the durable index and the tokenizer. Its own bm25() visits one match after the other, which is most of a
search among many entries; the same sums over arrays are a tenth of that. Its formula, for one row and phrase:
idf · (f (k1 + 1)) / (f + k1 (1 - b + b · tokens of the row / mean tokens)), with idf = ln((N - n + ½) / (n + ½)).
"""

from __future__ import annotations

import math
import sqlite3
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from opd_evolver.memory.database import TOKENIZER
from opd_evolver.memory.matrix import VectorTable
from opd_evolver.memory.ranking import K1, B

LEAST_IDF = 1e-6
N_PLACE_TOKENS = 3
"""Level, domain and scope stand in each row of `words` beside the text, and count to its length."""
MOST_FOLLOWED = 1024
"""So many rows, or a sixteenth of all, are followed one by one; beyond, everything is read again."""
Ints = npt.NDArray[np.int64]

TEMPORARY = (
    "CREATE VIRTUAL TABLE IF NOT EXISTS temp.terms USING fts5vocab (main, words, col)",
    "CREATE VIRTUAL TABLE IF NOT EXISTS temp.instances USING fts5vocab (main, words, instance)",
    f"CREATE VIRTUAL TABLE IF NOT EXISTS temp.scratch USING fts5 (text, content = '', tokenize = '{TOKENIZER}')",
    "CREATE VIRTUAL TABLE IF NOT EXISTS temp.scratch_words USING fts5vocab (temp, scratch, instance)",
)


def tokens_of(connection: sqlite3.Connection, texts: Sequence[str]) -> list[list[str]]:
    """The tokens of each text as FTS5 sees them; also on a connection that may only read."""
    for statement in TEMPORARY:
        connection.execute(statement)
    connection.execute("INSERT INTO temp.scratch (scratch) VALUES ('delete-all')")
    connection.executemany("INSERT INTO temp.scratch (rowid, text) VALUES (?, ?)", enumerate(texts))
    found: list[list[tuple[int, str]]] = [[] for _ in texts]
    for term, number, offset in connection.execute("SELECT term, doc, offset FROM temp.scratch_words"):
        found[number].append((offset, term))
    return [[term for _, term in sorted(one)] for one in found]


class Postings:
    """One process's copy of the inverted index, kept in step with the database like the vectors."""

    def __init__(self) -> None:
        self._seen = 0
        self._numbers: dict[str, int] = {}
        self._bounds: Ints = np.zeros(1, dtype=np.int64)
        self._at = np.zeros(0, dtype=np.int32)
        self._times = np.zeros(0, dtype=np.int32)
        self._length = np.zeros(0, dtype=np.int64)
        self._followed: dict[int, tuple[str, ...]] = {}
        self._recent: dict[str, dict[int, int]] = {}
        self._current = np.zeros(0, dtype=bool)
        self._norm: npt.NDArray[np.float64] = np.zeros(0)
        self._n_rows = 0

    def refresh(self, connection: sqlite3.Connection, table: VectorTable) -> None:
        """Brings the copy to the state that `table` has."""
        if self._seen == table.seen:
            return
        query = "SELECT rowid, live, text FROM entries WHERE change > ?"
        most = max(MOST_FOLLOWED, table.n // 16) - len(self._followed)
        changed = connection.execute(f"{query} LIMIT ?", (self._seen, max(0, most) + 1)).fetchall()
        if len(changed) > most:
            self._load(connection, table)
        else:
            self._follow(connection, table, changed)
        self._seen = table.seen
        inside = self._length > 0
        self._n_rows = int(np.count_nonzero(inside))
        mean = float(self._length.sum()) / self._n_rows if self._n_rows else 1.0
        self._norm = K1 * ((1.0 - B) + B * self._length.astype(np.float64) / mean)

    def _load(self, connection: sqlite3.Connection, table: VectorTable) -> None:
        """Everything, by two scans of the index that come in the same order: by term, then by row."""
        for statement in TEMPORARY:
            connection.execute(statement)
        terms = connection.execute("SELECT term, cnt FROM temp.terms WHERE col = 'text'").fetchall()
        n_instances = np.array([count for _, count in terms], dtype=np.int64)
        rows = connection.execute("SELECT doc FROM temp.instances WHERE col = 'text'")
        at = table.places_of(np.fromiter((row for (row,) in rows), np.int64, int(n_instances.sum())))
        number = np.repeat(np.arange(len(terms)), n_instances)
        first = np.flatnonzero(np.diff(number, prepend=-1) | np.diff(at, prepend=-1))
        self._numbers = {term: place for place, (term, _) in enumerate(terms)}
        self._bounds = np.searchsorted(number[first], np.arange(len(terms) + 1))
        self._at = at[first].astype(np.int32)
        self._times = np.diff(first, append=len(at)).astype(np.int32)
        self._length = np.where(table.live, N_PLACE_TOKENS + np.bincount(at, minlength=table.n), 0)
        self._followed, self._recent = {}, {}
        self._current = np.ones(table.n, dtype=bool)

    def _follow(
        self, connection: sqlite3.Connection, table: VectorTable, changed: Sequence[tuple[int, int, str]]
    ) -> None:
        """Rows that changed since, one by one."""
        n_new = table.n - len(self._length)
        self._length = np.concatenate((self._length, np.zeros(n_new, dtype=np.int64)))
        self._current = np.concatenate((self._current, np.zeros(n_new, dtype=bool)))
        for (rowid, live, _), tokens in zip(
            changed, tokens_of(connection, [text for _, _, text in changed]), strict=True
        ):
            place = table.place_of(rowid)
            for term in self._followed.get(place, ()):
                del self._recent[term][place]
            counts = Counter(tokens if live else ())
            for term, times in counts.items():
                self._recent.setdefault(term, {})[place] = times
            self._followed[place] = tuple(counts)
            self._current[place] = False
            self._length[place] = N_PLACE_TOKENS + len(tokens) if live else 0

    def _of(self, term: str) -> tuple[Ints, Ints]:
        """Places that hold the term, and how often."""
        number = self._numbers.get(term)
        at, times = self._at[:0], self._times[:0]
        if number is not None:
            part = slice(int(self._bounds[number]), int(self._bounds[number + 1]))
            at, times = self._at[part], self._times[part]
            if self._followed:
                kept = self._current[at]
                at, times = at[kept], times[kept]
        recent = self._recent.get(term)
        if recent:
            at = np.concatenate((at, np.fromiter(recent, np.int32, len(recent))))
            times = np.concatenate((times, np.fromiter(recent.values(), np.int32, len(recent))))
        return at.astype(np.int64), times.astype(np.int64)

    def scores(self, terms: Sequence[str]) -> npt.NDArray[np.float64]:
        """[places] float64: bm25 of each row's text, 0 where no term occurs."""
        scores = np.zeros(len(self._length), dtype=np.float64)
        for term in terms:
            at, times = self._of(term)
            idf = math.log((self._n_rows - len(at) + 0.5) / (len(at) + 0.5))
            idf = idf if idf > 0.0 else LEAST_IDF
            scores[at] += idf * ((times * (K1 + 1.0)) / (times + self._norm[at]))
        return scores
