"""Vectors that were slow or paid for, kept: each text is embedded once, whoever asks, on this machine.

One SQLite file per embedder under `.opd/vectors/`, keyed by the digest of the text, which it does not hold. Every
batch is durable before the next is asked for, so that a crash loses one batch at most. It is no part of any digest
and may be deleted at any time; what cannot be read is made again.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from opd_evolver.errors import OutageError, SetupError
from opd_evolver.memory.protocol import Embedder
from opd_evolver.memory.unit_vectors import clean
from opd_evolver.settings import Settings

CHUNK = 128
N_REMEMBERED = 4096
BUSY_TIMEOUT_S = 30.0
TABLE = "CREATE TABLE IF NOT EXISTS vectors (text TEXT PRIMARY KEY, vector BLOB NOT NULL) WITHOUT ROWID"
Vector = npt.NDArray[np.float32]


def folder_of(settings: Settings) -> Path:
    """Where the vectors of this project lie."""
    return settings.artifact_root.resolve() / ".opd" / "vectors"


def key_of(text: str) -> str:
    return hashlib.sha256(clean(text).encode()).hexdigest()


def forget(folder: Path, texts: Iterable[str]) -> None:
    """Removes the vectors of texts, of every embedder: something of a text can be read off its vector."""
    keys = [(key_of(text),) for text in texts]
    for path in sorted(folder.glob("*.sqlite")):
        with _guarded(path), closing(_connect(path)) as connection:
            connection.execute("PRAGMA secure_delete = ON")
            with connection:
                connection.executemany("DELETE FROM vectors WHERE text = ?", keys)
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _connect(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(TABLE)
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def _guarded(path: Path) -> Iterator[None]:
    """Errors with their mend. A file that is no database is removed: its vectors can be made again."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            raise OutageError(f"{path} is locked", "a writer that ends", "try again") from None
        raise SetupError(
            f"cannot keep vectors in {path} ({error})",
            "a writable folder with free space",
            f"chmod -R u+rwX {path.parent}, or free some space; or delete {path}",
        ) from None
    except sqlite3.DatabaseError:
        for suffix in ("", "-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)


class CachedEmbedder:
    """An embedder that is asked for each text once.

    Args:
        inner: makes the vectors.
        folder: see `folder_of`.
    """

    def __init__(self, inner: Embedder, folder: Path) -> None:
        self.inner = inner
        self.path = folder / f"{hashlib.sha256(inner.identity.encode()).hexdigest()[:16]}.sqlite"
        self._remembered: OrderedDict[str, Vector] = OrderedDict()

    @property
    def identity(self) -> str:
        """That of the inner one."""
        return self.inner.identity

    @property
    def dimension(self) -> int:
        """Known from any vector that was kept, else asked of the inner one."""
        with _guarded(self.path):
            if self.path.exists():
                with closing(_connect(self.path)) as connection:
                    row = connection.execute("SELECT vector FROM vectors LIMIT 1").fetchone()
                if row is not None:
                    self.inner.expect(len(row[0]) // 4)
        return self.inner.dimension

    def expect(self, dimension: int) -> None:
        """As `Embedder.expect`."""
        self.inner.expect(dimension)

    def ready(self) -> None:
        """As `Embedder.ready`."""
        self.inner.ready()

    def embed(self, texts: Sequence[str]) -> Vector:
        """[N, dimension] float32, as the inner one; only what was never asked for is asked for."""
        if not texts:
            return np.zeros((0, self.dimension), dtype=np.float32)
        keys = [key_of(text) for text in texts]
        found = {key: vector for key in keys if (vector := self._remembered.get(key)) is not None}
        wanted = {key: text for key, text in zip(keys, texts, strict=True) if key not in found}
        if wanted:
            found |= self._kept(list(wanted))
        missing = [(key, text) for key, text in wanted.items() if key not in found]
        for start in range(0, len(missing), CHUNK):
            part = missing[start : start + CHUNK]
            vectors = self.inner.embed([text for _, text in part])
            new = {key: vector for (key, _), vector in zip(part, vectors, strict=True)}
            self._keep(new)
            found |= new
        self._remember(found)
        return np.stack([found[key] for key in keys])

    def _kept(self, keys: list[str]) -> dict[str, Vector]:
        found: dict[str, Vector] = {}
        with _guarded(self.path), closing(_connect(self.path)) as connection:
            for start in range(0, len(keys), 500):
                part = keys[start : start + 500]
                query = f"SELECT text, vector FROM vectors WHERE text IN ({','.join('?' * len(part))})"
                for key, vector in connection.execute(query, part):
                    found[key] = np.frombuffer(vector, dtype="<f4").astype(np.float32)
        for length in {len(vector) for vector in found.values()}:
            self.inner.expect(length)
        return found

    def _keep(self, vectors: dict[str, Vector]) -> None:
        rows = [(key, vector.astype("<f4").tobytes()) for key, vector in sorted(vectors.items())]
        with _guarded(self.path), closing(_connect(self.path)) as connection, connection:
            connection.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", rows)

    def _remember(self, vectors: dict[str, Vector]) -> None:
        """Queries come back once per level and rollout; the file need not be asked each time."""
        for key, vector in vectors.items():
            self._remembered[key] = vector
            self._remembered.move_to_end(key)
        while len(self._remembered) > N_REMEMBERED:
            self._remembered.popitem(last=False)
