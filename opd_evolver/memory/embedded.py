"""The embedded index: stdlib sqlite3 (WAL) with FTS5 and a numpy matrix. Several processes, exact, durable.

Entry text is data: it reaches SQL only as a bound value, and a query only as quoted words.
Row ids come from entry ids, so that no ranking depends on the order of insertion.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from sqlite3 import Connection

import numpy as np
import numpy.typing as npt

from opd_evolver.memory import ranking
from opd_evolver.memory.database import Database
from opd_evolver.memory.embed import words_of
from opd_evolver.memory.levels import embed_text
from opd_evolver.memory.matrix import VectorTable
from opd_evolver.memory.postings import Postings, tokens_of
from opd_evolver.memory.protocol import Embedder
from opd_evolver.records import Entry, Level, canonical_json

DIRECT_LIMIT = 512
"""Candidate sets up to this size are scored directly; larger ones go through the matrix and FTS5."""
LEXICAL_POOL = 200
MAX_QUERY_WORDS = 64
DECIMALS = 9


def _word_of(kind: str, value: str) -> str:
    """A filter value as one safe FTS word."""
    return kind + hashlib.blake2b(value.encode("utf-8", "replace"), digest_size=8).hexdigest()


def _rowid_of(entry_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(entry_id.encode("utf-8", "replace"), digest_size=8).digest(), "big") >> 1


def _clean(text: str) -> str:
    """Lone surrogates have no UTF-8 form."""
    return text.encode("utf-8", "replace").decode()


def _put(connection: Connection, entry: Entry, text: str, vector: npt.NDArray[np.float32], change: int) -> None:
    rowid, live = _rowid_of(entry.entry_id), entry.status == "live"
    where = (_clean(entry.domain), _clean(entry.scope))
    connection.execute(
        "INSERT INTO entries VALUES (?,?,?,?,?,?,?,?,?,?) ON CONFLICT (rowid) DO UPDATE SET level = excluded.level, "
        "domain = excluded.domain, scope = excluded.scope, live = excluded.live, text = excluded.text, "
        "vector = excluded.vector, body = excluded.body, change = excluded.change",
        (
            rowid,
            entry.entry_id,
            entry.level,
            *where,
            int(live),
            text,
            vector.astype("<f4").tobytes(),
            canonical_json(entry).encode("utf-8", "replace"),
            change,
        ),
    )
    connection.execute("DELETE FROM words WHERE rowid = ?", (rowid,))
    if live:
        place = " ".join((f"l{entry.level}", _word_of("d", where[0]), _word_of("s", where[1])))
        connection.execute("INSERT INTO words (rowid, place, text) VALUES (?, ?, ?)", (rowid, place, text))


def _few(
    connection: Connection, level: str, domain: str | None, scope: str | None
) -> list[tuple[str, str, bytes]] | None:
    """The filtered candidates when there are few of them, else None."""
    where, values = ["live = 1", "level = ?"], [level]
    for column, value in (("scope", scope), ("domain", domain)):
        if value is not None:
            where.append(f"{column} = ?")
            values.append(value)
    query = f"SELECT entry_id, text, vector FROM entries WHERE {' AND '.join(where)} LIMIT {DIRECT_LIMIT + 1}"
    rows = connection.execute(query, values).fetchall()
    return rows if len(rows) <= DIRECT_LIMIT else None


def _phrases(query_words: list[str]) -> list[str]:
    return list(dict.fromkeys(query_words))[:MAX_QUERY_WORDS]


def _terms(connection: Connection, query_words: list[str]) -> list[str] | None:
    """The query as single terms of the index; None where FTS5 sees a word as none or as several, a phrase."""
    phrases = _phrases(query_words)
    if all(word.isascii() and word.isalnum() for word in phrases):
        return phrases
    tokens = tokens_of(connection, phrases)
    return [one for (one,) in tokens] if all(len(one) == 1 for one in tokens) else None


def _matches(
    connection: Connection, query_words: list[str], filters: tuple[str, str | None, str | None], limit: int
) -> list[tuple[int, float]]:
    """The best matches by FTS5's bm25 among the filtered, as (rowid, positive score)."""
    quoted = [f'"{word}"' for word in _phrases(query_words)]
    if not quoted:
        return []
    level, domain, scope = filters
    places = [f"l{level}"]
    places += [_word_of("d", domain)] if domain is not None else []
    places += [_word_of("s", scope)] if scope is not None else []
    match = " AND ".join([f'place : "{place}"' for place in places] + [f"text : ({' OR '.join(quoted)})"])
    rows = connection.execute(
        "SELECT rowid, -bm25(words, 0.0, 1.0) AS score FROM words WHERE words MATCH ? "
        "ORDER BY score DESC, rowid LIMIT ?",
        (match, limit),
    )
    return [(int(rowid), round(float(score), DECIMALS)) for rowid, score in rows]


def _direct(
    rows: list[tuple[str, str, bytes]],
    query_words: list[str],
    vector: npt.NDArray[np.float32],
    limit: int,
    alpha: float,
) -> list[tuple[str, float]]:
    rows = sorted(rows)
    vectors = np.frombuffer(b"".join(row[2] for row in rows), dtype="<f4").reshape(len(rows), len(vector))
    lexical = ranking.bm25(query_words, [words_of(row[1]) for row in rows])
    scores = ranking.hybrid(ranking.cosine(vectors, vector), lexical, alpha)
    return ranking.best([row[0] for row in rows], scores, limit)


class EmbeddedIndex:
    """`MemoryIndex` on one SQLite file.

    Args:
        path: the database file; created unless `read_only`.
        embedder: must be the one that the file was made with.
        read_only: for shard workers; sees what the committer has committed.
        alpha: weight of the dense part when a search names none.

    Raises:
        SetupError: missing file (read-only) or another embedder.
        SchemaError: written by a newer version.
        CorruptionError: not a readable database.
    """

    def __init__(self, path: Path, embedder: Embedder, *, read_only: bool = False, alpha: float = 0.5) -> None:
        self.embedder, self.alpha = embedder, alpha
        self._database = Database(path, embedder, read_only=read_only)
        self._table, self._postings = VectorTable(embedder.dimension), Postings()

    # ── writing: the committer only ──────────────────────────────────────────────────────────

    def upsert(self, entries: Iterable[Entry]) -> None:
        """Puts entries in their given state, by id; durable when it returns."""
        rows = sorted(entries, key=lambda entry: entry.entry_id)
        texts = [_clean(embed_text(entry)) for entry in rows]
        vectors = self.embedder.embed(texts)
        with self._database.transaction() as connection:
            change = 1 + connection.execute("SELECT COALESCE(MAX(change), 0) FROM entries").fetchone()[0]
            for entry, text, vector in zip(rows, texts, vectors, strict=True):
                _put(connection, entry, text, vector, change)

    def mark_applied(self, segment: str, digest: str) -> None:
        """Notes that a ledger segment's effects are in."""
        with self._database.transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO applied VALUES (?, ?)", (segment, digest))

    def applied(self) -> Mapping[str, str]:
        """Ledger segments whose effects are in: name → digest."""
        with self._database.reading() as connection:
            return dict(connection.execute("SELECT segment, digest FROM applied ORDER BY segment"))

    def clear(self) -> None:
        """Empties the index; the ledger can fill it again."""
        with self._database.transaction() as connection:
            for table in ("entries", "words", "applied"):
                connection.execute(f"DELETE FROM {table}")
        self._table, self._postings = VectorTable(self.embedder.dimension), Postings()

    # ── reading ──────────────────────────────────────────────────────────────────────────────

    def get(self, entry_ids: Sequence[str]) -> list[Entry]:
        """Entries by id in the asked order, retired ones included; unknown ids are left out."""
        found: dict[str, Entry] = {}
        with self._database.reading() as connection:
            for start in range(0, len(entry_ids), 500):
                part = entry_ids[start : start + 500]
                marks = ",".join("?" * len(part))
                query = f"SELECT entry_id, body FROM entries WHERE rowid IN ({marks})"
                for entry_id, body in connection.execute(query, [_rowid_of(one) for one in part]):
                    found[entry_id] = Entry.model_validate_json(body)
        return [found[entry_id] for entry_id in entry_ids if entry_id in found]

    def entries(self, *, live_only: bool = True) -> list[Entry]:
        """All entries, sorted by entry_id."""
        where = "WHERE live = 1" if live_only else ""
        with self._database.reading() as connection:
            rows = connection.execute(f"SELECT body FROM entries {where} ORDER BY entry_id").fetchall()
        return [Entry.model_validate_json(body) for (body,) in rows]

    def search(
        self,
        query: str,
        *,
        level: Level,
        limit: int,
        domain: str | None = None,
        scope: str | None = None,
        alpha: float | None = None,
    ) -> list[tuple[Entry, float]]:
        """Hybrid (dense + BM25) ranking of live entries, best first; ties by entry_id."""
        weight = self.alpha if alpha is None else alpha
        domain = None if domain is None else _clean(domain)
        scope = None if scope is None else _clean(scope)
        query_words = words_of(_clean(query))
        vector = self.embedder.embed([_clean(query)])[0]
        with self._database.reading() as connection:
            few = _few(connection, level, domain, scope)
            if few is not None:
                ranked = _direct(few, query_words, vector, limit, weight)
            else:
                ranked = self._through_matrix(connection, query_words, vector, (level, domain, scope), limit, weight)
        scores = dict(ranked)
        return [(entry, scores[entry.entry_id]) for entry in self.get([entry_id for entry_id, _ in ranked])]

    def _through_matrix(
        self,
        connection: Connection,
        query_words: list[str],
        vector: npt.NDArray[np.float32],
        filters: tuple[str, str | None, str | None],
        limit: int,
        alpha: float,
    ) -> list[tuple[str, float]]:
        self._table.refresh(connection)
        places = self._table.places(*filters)
        lexical = self._lexical(connection, query_words, filters, places, max(LEXICAL_POOL, 4 * limit))
        scores = ranking.hybrid(self._table.cosine(places, vector), lexical, alpha)
        return ranking.best(self._table.ids(places), scores, limit)

    def _lexical(
        self,
        connection: Connection,
        query_words: list[str],
        filters: tuple[str, str | None, str | None],
        places: npt.NDArray[np.int64],
        limit: int,
    ) -> npt.NDArray[np.float64]:
        """[places] the bm25 scores of the `limit` best matches among these places, 0 elsewhere."""
        lexical = np.zeros(len(places), dtype=np.float64)
        terms = _terms(connection, query_words)
        if terms is None:
            for rowid, score in _matches(connection, query_words, filters, limit):
                lexical[np.searchsorted(places, self._table.place_of(rowid))] = score
            return lexical
        self._postings.refresh(connection, self._table)
        scores = self._postings.scores(terms)[places]
        chosen = np.flatnonzero(scores)
        if len(chosen) > limit:
            cut = np.partition(scores[chosen], len(chosen) - limit)[len(chosen) - limit]
            chosen = chosen[scores[chosen] >= cut]
            order = np.lexsort((self._table.rowids(places[chosen]), -scores[chosen]))
            chosen = chosen[order[:limit]]
        lexical[chosen] = [round(score, DECIMALS) for score in scores[chosen].tolist()]
        return lexical

    def close(self) -> None:
        self._database.close()
