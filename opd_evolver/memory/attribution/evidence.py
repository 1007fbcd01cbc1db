"""From ledger rows to arrays: who was a candidate where, whether it was used, and how it came out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, repeat
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from opd_evolver.errors import CorruptionError
from opd_evolver.records import Entry, LedgerRow

MEND = "opd memory rollback to a snapshot that verifies"
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class Pairs(NamedTuple):
    """One element per (rollout, candidate) that is evidence.

    Attributes:
        entry: [N] place in `entries`.
        group: [N] place in `groups`.
        chosen: [N] whether the entry was selected and in the agent's context (Omega+), else Omega-.
        outcome: [N] return R of the rollout, in [0, 1].
        groups: names of the groups, sorted.
        withheld: [N] whether the entry was selected and then dropped by randomised inclusion.
        propensity: [N] probability with which the selected entry was kept; nan where none is recorded.
    """

    entry: Ints
    group: Ints
    chosen: Bools
    outcome: Floats
    groups: tuple[str, ...]
    withheld: Bools
    propensity: Floats


def creators(rows: Sequence[LedgerRow], entries: Sequence[Entry]) -> set[tuple[str, str]]:
    """(rollout id, entry id) of the rollouts that brought an entry into being.

    They are those that wrote it (`LedgerRow.created`, or `Entry.source_episodes`, which a merge inherits)
    in the first wave in which anyone did. A later rollout that writes again what the memory holds already
    is no creator: leaving it out would drop just the lucky ones among O- and inflate V.
    """
    sources = {(episode, entry.entry_id) for entry in entries for episode in entry.source_episodes}
    by_episode: dict[str, set[str]] = {}
    for episode, entry_id in sources:
        by_episode.setdefault(episode, set()).add(entry_id)
    wrote = [
        (row, {*row.created, *by_episode.get(row.rollout_id, ())})
        for row in rows
        if row.created or row.rollout_id in by_episode
    ]
    first: dict[str, tuple[int, int]] = {}
    for row, written in wrote:
        for entry_id in written:
            first[entry_id] = min(first.get(entry_id, (row.round, row.wave)), (row.round, row.wave))
    return {
        (row.rollout_id, entry_id)
        for row, written in wrote
        for entry_id in written
        if (row.round, row.wave) == first[entry_id]
    }


class _Index:
    """Finds (rollout, entry) among the pairs, many at a time."""

    def __init__(self, rollout: Ints, entry: Ints, places: Mapping[str, int]) -> None:
        self._places, self._width = places, max(len(places), 1)
        keys = rollout * self._width + entry
        self._order = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]

    def find(self, rollouts: Ints, names: Sequence[str]) -> tuple[Ints, Bools]:
        """Places among the pairs, and whether there is one at all."""
        entry = _places(names, self._places)
        keys = rollouts * self._width + entry
        at = np.minimum(np.searchsorted(self._keys, keys), max(len(self._keys) - 1, 0))
        if not len(self._keys):
            return at, np.zeros(len(names), dtype=np.bool_)
        return self._order[at], (self._keys[at] == keys) & (entry >= 0)

    def marked(self, lists: Sequence[Iterable[str]]) -> Bools:
        """[N] whether the pair's entry stands in its rollout's list."""
        names = list(chain.from_iterable(lists))
        at, found = self.find(_owners(lists), names)
        out = np.zeros(len(self._keys), dtype=np.bool_)
        out[at[found]] = True
        return out


def _places(names: Sequence[str], places: Mapping[str, int]) -> Ints:
    """[N] place of each name, -1 for an unknown one."""
    return np.fromiter(map(places.get, names, repeat(-1)), dtype=np.int64, count=len(names))


def _owners(lists: Sequence[Iterable[str]]) -> Ints:
    """[N] which list each element of the joined lists comes from."""
    lengths = np.array([len(one) for one in lists], dtype=np.int64)  # type: ignore[arg-type]
    return np.repeat(np.arange(len(lists), dtype=np.int64), lengths)


def evidence(rows: Sequence[LedgerRow], entries: Sequence[Entry]) -> Pairs:
    """Who was a candidate where, and whether it was used; in the order of the rollout ids.

    Left out: rows whose selection fell back to the ranking, and for each entry its `creators`.

    Raises:
        CorruptionError: a row names an entry that is not among `entries`, or a propensity is none.
    """
    places = {entry.entry_id: place for place, entry in enumerate(entries)}
    kept = sorted((row for row in rows if not row.select_fallback), key=lambda row: row.rollout_id)
    groups = sorted({row.group for row in kept})
    group_places = {group: place for place, group in enumerate(groups)}
    shown = [[candidate.entry_id for candidate in row.candidates] for row in kept]
    shown = [names if len(set(names)) == len(names) else list(dict.fromkeys(names)) for names in shown]
    names = list(chain.from_iterable(shown))
    entry, rollout = _places(names, places), _owners(shown)
    if (entry < 0).any():
        at = int(np.argmax(entry < 0))
        raise CorruptionError(
            f"rollout {kept[rollout[at]].rollout_id} had the candidate {names[at]}, which no entry has",
            "every candidate among the snapshot's entries, retired ones included",
            MEND,
        )
    index = _Index(rollout, entry, places)
    selected = index.marked([row.selected for row in kept])
    group = np.array([group_places[row.group] for row in kept], dtype=np.int64)
    outcome = np.array([row.episode_return for row in kept], dtype=np.float64)
    evident = ~_made_by(kept, creators(rows, entries), index)
    return Pairs(
        entry=entry[evident],
        group=group[rollout][evident],
        chosen=(selected & index.marked([row.injected for row in kept]))[evident],
        outcome=outcome[rollout][evident],
        groups=tuple(groups),
        withheld=(selected & index.marked([row.withheld for row in kept]))[evident],
        propensity=np.where(selected, _propensities(kept, index, len(names)), np.nan)[evident],
    )


def _made_by(kept: Sequence[LedgerRow], created: set[tuple[str, str]], index: _Index) -> Bools:
    """[N] whether the rollout is one of its entry's creators."""
    made: dict[str, list[str]] = {}
    for rollout_id, entry_id in created:
        made.setdefault(rollout_id, []).append(entry_id)
    return index.marked([made.get(row.rollout_id, ()) for row in kept])


def _propensities(kept: Sequence[LedgerRow], index: _Index, n_pairs: int) -> Floats:
    """[N] recorded probability of being kept, nan without one."""
    recorded = [row.propensities for row in kept]
    names = list(chain.from_iterable(recorded))
    values = np.fromiter(chain.from_iterable(one.values() for one in recorded), dtype=np.float64, count=len(names))
    owners = _owners(recorded)
    wrong = ~((values >= 0.0) & (values <= 1.0))
    if wrong.any():
        at = int(np.argmax(wrong))
        raise CorruptionError(
            f"rollout {kept[owners[at]].rollout_id} kept {names[at]} with probability {values[at]}",
            "a probability from 0 to 1",
            MEND,
        )
    out = np.full(n_pairs, np.nan)
    at_pair, found = index.find(owners, names)
    out[at_pair[found]] = values[found]
    return out
