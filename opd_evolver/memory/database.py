"""The SQLite file under the embedded index: opening, schema, transactions, and errors with their mend."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from opd_evolver.errors import CorruptionError, OutageError, SchemaError, SetupError
from opd_evolver.memory.embed import check_made_by
from opd_evolver.memory.protocol import Embedder
from opd_evolver.records import SCHEMA_VERSION

REINDEX = "`opd memory reindex`"
BUSY_TIMEOUT_S = 30.0
TOKENIZER = "unicode61"
MMAP_BYTES = 2**30
"""Pages are read where the system has them: a fifth off a search within a scope among 100 000 entries."""

TABLES = (
    "CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS applied (segment TEXT PRIMARY KEY, digest TEXT NOT NULL)",
    (
        "CREATE TABLE IF NOT EXISTS entries (rowid INTEGER PRIMARY KEY, entry_id TEXT NOT NULL UNIQUE,"
        " level TEXT NOT NULL, domain TEXT NOT NULL, scope TEXT NOT NULL, live INTEGER NOT NULL,"
        " text TEXT NOT NULL, vector BLOB NOT NULL, body BLOB NOT NULL, change INTEGER NOT NULL)"
    ),
    "CREATE INDEX IF NOT EXISTS by_scope ON entries (live, level, scope, domain)",
    "CREATE INDEX IF NOT EXISTS by_change ON entries (change)",
    f"CREATE VIRTUAL TABLE IF NOT EXISTS words USING fts5 (place, text, tokenize = '{TOKENIZER}')",
)


class Database:
    """One connection, used by one thread at a time.

    Args:
        path: the file; created unless `read_only`.
        embedder: must be the one that the file was made with.
        read_only: opens without the right to write.

    Raises:
        SetupError: missing file (read-only), another embedder, no permission, full disk.
        SchemaError: written by a newer version.
        CorruptionError: not a readable database.
    """

    def __init__(self, path: Path, embedder: Embedder, *, read_only: bool) -> None:
        self.path, self.read_only = path, read_only
        self._turn = threading.RLock()
        self._embedder = embedder
        if read_only and not path.exists():
            raise SetupError(
                f"no memory index at {path}", "one built by a writable open", f"`opd resume`, or {REINDEX}"
            )
        with self.guard():
            uri = path.absolute().as_uri() + ("?mode=ro" if read_only else "?mode=rwc")
            self.connection = sqlite3.connect(
                uri, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
        try:
            with self.guard():
                self._open()
        except BaseException:
            self.connection.close()
            raise

    def _open(self) -> None:
        self.connection.execute("PRAGMA synchronous = FULL")
        self.connection.execute(f"PRAGMA mmap_size = {MMAP_BYTES}")
        if self.read_only:
            self._check(self._stored())
            return
        self.connection.execute("PRAGMA journal_mode = WAL")
        found = self.connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise CorruptionError(f"memory index {self.path}: {found}", "a sound database", REINDEX)
        stored = self._stored()
        if stored:
            self._check(stored)
        meta = {
            "schema_version": str(SCHEMA_VERSION),
            "embedder": self._embedder.identity,
            "dimension": str(self._embedder.dimension),
        }
        with self.transaction():
            for statement in TABLES:
                self.connection.execute(statement)
            for pair in meta.items():
                self.connection.execute("INSERT OR IGNORE INTO meta VALUES (?, ?)", pair)

    def _stored(self) -> dict[str, str]:
        known = self.connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone()
        return dict(self.connection.execute("SELECT key, value FROM meta")) if known else {}

    def _check(self, stored: dict[str, str]) -> None:
        version = stored.get("schema_version", "")
        if not version.isdigit():
            raise CorruptionError(f"memory index {self.path} names no schema", "an index of this project", REINDEX)
        if int(version) > SCHEMA_VERSION:
            raise SchemaError(
                f"memory index {self.path} has schema {version}",
                f"schema {SCHEMA_VERSION} or older",
                f"upgrade: pip install -U opd-evolver, or {REINDEX}",
            )
        if int(version) < SCHEMA_VERSION:
            raise SchemaError(f"memory index {self.path} has schema {version}", f"schema {SCHEMA_VERSION}", REINDEX)
        check_made_by(self._embedder, stored["embedder"], stored["dimension"], f"memory index {self.path}")

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Turns SQLite's errors into ones that name their mend."""
        try:
            yield
        except sqlite3.OperationalError as error:
            text = str(error)
            if "locked" in text:
                raise OutageError(f"memory index {self.path} is locked", "one committer", "`opd status`") from error
            if "full" in text or "disk I/O" in text:
                raise SetupError(
                    f"no space left to write {self.path} ({text})", "free disk space", "free some, then: opd resume"
                ) from error
            if "unable to open" in text or "readonly" in text:
                raise SetupError(
                    f"no permission for memory index {self.path} ({text})",
                    "a readable and writable folder",
                    f"chmod -R u+rwX {self.path.parent}",
                ) from error
            raise CorruptionError(f"memory index {self.path}: {text}", "a sound database", REINDEX) from error
        except sqlite3.DatabaseError as error:
            raise CorruptionError(f"memory index {self.path}: {error}", "a sound database", REINDEX) from error

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """One write, all or nothing; durable when it ends."""
        yield from self._within("BEGIN IMMEDIATE")

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Several reads that see one state, whatever the committer does meanwhile."""
        yield from self._within("BEGIN")

    def _within(self, begin: str) -> Iterator[sqlite3.Connection]:
        with self._turn, self.guard():
            nested = self.connection.in_transaction
            if not nested:
                self.connection.execute(begin)
            try:
                yield self.connection
            except BaseException:
                if not nested and self.connection.in_transaction:
                    self.connection.execute("ROLLBACK")
                raise
            if not nested:
                self.connection.execute("COMMIT")

    def close(self) -> None:
        self.connection.close()
