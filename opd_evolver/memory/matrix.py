"""The vectors of live entries in one numpy matrix, kept in step with the database by change number."""

from __future__ import annotations

import sqlite3

import numpy as np
import numpy.typing as npt

from opd_evolver.memory import ranking


class Ids:
    """Entry ids at some places, looked up only when asked for."""

    def __init__(self, entry_ids: list[str], places: npt.NDArray[np.int64]) -> None:
        self._entry_ids, self._places = entry_ids, places

    def __getitem__(self, number: int) -> str:
        return self._entry_ids[int(self._places[number])]


class VectorTable:
    """One process's copy of the vectors. `refresh` fetches only what changed since the last call.

    Args:
        dimension: columns of the vectors.
    """

    def __init__(self, dimension: int) -> None:
        self._dimension = dimension
        self._seen = 0
        self._n = 0
        self._places: dict[int, int] = {}
        self._entry_ids: list[str] = []
        self._kinds: dict[tuple[str, str, str], int] = {}
        self._rowids = np.zeros(0, dtype=np.int64)
        self._kind = np.zeros(0, dtype=np.int64)
        self._live = np.zeros(0, dtype=bool)
        self._vectors = np.zeros((0, dimension), dtype=np.float32)

    @property
    def seen(self) -> int:
        """The last change that is in."""
        return self._seen

    @property
    def n(self) -> int:
        """Places in use, those of retired entries included."""
        return self._n

    @property
    def live(self) -> npt.NDArray[np.bool_]:
        """[n] whether the entry at a place is live."""
        return self._live[: self._n]

    def refresh(self, connection: sqlite3.Connection) -> None:
        """Brings the copy up to the database's state."""
        rows = connection.execute(
            "SELECT rowid, entry_id, level, domain, scope, live, vector, change FROM entries WHERE change > ? "
            "ORDER BY change, rowid",
            (self._seen,),
        )
        for rowid, entry_id, level, domain, scope, live, vector, change in rows:
            place = self._places.get(rowid)
            if place is None:
                place = self._append(rowid, entry_id)
            self._kind[place] = self._kinds.setdefault((level, domain, scope), len(self._kinds))
            self._live[place] = bool(live)
            self._vectors[place] = np.frombuffer(vector, dtype="<f4")
            self._seen = change

    def _append(self, rowid: int, entry_id: str) -> int:
        place = self._n
        if place == len(self._rowids):
            room = max(1024, 2 * place)
            self._rowids = np.resize(self._rowids, room)
            self._kind = np.resize(self._kind, room)
            self._live = np.resize(self._live, room)
            vectors = np.zeros((room, self._dimension), dtype=np.float32)
            vectors[:place] = self._vectors[:place]
            self._vectors = vectors
        self._rowids[place] = rowid
        self._places[rowid] = place
        self._entry_ids.append(entry_id)
        self._n += 1
        return place

    def places(self, level: str, domain: str | None, scope: str | None) -> npt.NDArray[np.int64]:
        """Where the live entries lie that pass the filters, ascending."""
        wanted = [
            number
            for (its_level, its_domain, its_scope), number in self._kinds.items()
            if its_level == level and domain in (None, its_domain) and scope in (None, its_scope)
        ]
        allowed = np.zeros(len(self._kinds) + 1, dtype=bool)
        allowed[wanted] = True
        return np.flatnonzero(self._live[: self._n] & allowed[self._kind[: self._n]])

    def place_of(self, rowid: int) -> int:
        return self._places[rowid]

    def places_of(self, rowids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The same for many row ids, all of which must be here."""
        order = np.argsort(self._rowids[: self._n])
        return order[np.searchsorted(self._rowids[: self._n], rowids, sorter=order)]

    def rowids(self, places: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return self._rowids[places]

    def ids(self, places: npt.NDArray[np.int64]) -> Ids:
        return Ids(self._entry_ids, places)

    def cosine(self, places: npt.NDArray[np.int64], query: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Cosine with the query at these places; copying a large part would cost more than scoring all."""
        if 4 * len(places) < self._n:
            return ranking.cosine(self._vectors[places], query)
        return ranking.cosine(self._vectors[: self._n], query)[places]
