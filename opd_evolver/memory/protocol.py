"""One contract for every index. The ledger is the truth; an index is rebuilt from it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from opd_evolver.records import Entry, Level


class Embedder(Protocol):
    """Text to unit vectors. `identity` enters digests and is checked when a store opens.

    Opening one is cheap: weights are loaded, and servers asked, when the first vector is wanted.
    """

    @property
    def identity(self) -> str:
        """What made the vectors: equal identities give equal vectors, up to the last bits."""
        ...

    @property
    def dimension(self) -> int:
        """Columns of the vectors; may load weights or ask a server the first time."""
        ...

    def expect(self, dimension: int) -> None:
        """Told by an index made before, so that opening it asks nobody.

        Raises:
            SetupError: vectors of another length are known to come; names `opd memory reembed`.
        """
        ...

    def ready(self) -> None:
        """Whether a run could begin with it.

        Raises:
            SetupError: something is missing or refused.
            OutageError: a server does not answer.
        """
        ...

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """[N, dimension] float32, rows of unit length (or zero for empty text)."""
        ...


class MemoryIndex(Protocol):
    """Search over live entries. Idempotent: upserting twice is upserting once."""

    def upsert(self, entries: Iterable[Entry]) -> None: ...

    def get(self, entry_ids: Sequence[str]) -> list[Entry]:
        """Entries by id in the asked order, retired ones included; unknown ids are left out."""
        ...

    def search(
        self, query: str, *, level: Level, limit: int, domain: str | None = None, scope: str | None = None
    ) -> list[tuple[Entry, float]]:
        """Hybrid (dense + BM25) ranking of live entries, best first; ties by entry_id."""
        ...

    def entries(self, *, live_only: bool = True) -> list[Entry]:
        """All entries, sorted by entry_id."""
        ...

    def close(self) -> None: ...
