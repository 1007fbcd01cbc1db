"""From ledger rows to arrays: who was a candidate where, whether it was used, and how it came out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import chain, repeat
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from opd_evolver.errors import CorruptionError
from opd_evolver.memory.importer import IMPORTED
from opd_evolver.records import Entry, LedgerRow

MEND = "opd memory rollback to a snapshot that verifies"
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Creators = Collection[tuple[str, str]]


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
    is no creator: leaving it out would drop just the lucky ones among O- and inflate V. Nor is one that was shown
    what an import had brought, which no rollout wrote before it.
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
    # Earlier versions marked only imports with a source: of the others the round tells, unless it was their own.
    since = {
        entry.entry_id: -1 if any(one.startswith(IMPORTED) for one in entry.source_episodes) else entry.created_round
        for entry in entries
    }

    def repeated(row: LedgerRow, entry_id: str) -> bool:
        older = since.get(entry_id, row.round) < row.round
        return older and any(one.entry_id == entry_id for one in row.candidates)

    return {
        (row.rollout_id, entry_id)
        for row, written in wrote
        for entry_id in written
        if (row.round, row.wave) == first[entry_id] and not repeated(row, entry_id)
    }


class Choices(NamedTuple):
    """One element per (rollout, entry that the policy selected there).

    Attributes:
        rollout: [S] place in the rows.
        names: [S] entry ids.
        used, withheld: [S] whether it was in the context, and whether randomised inclusion dropped it.
        propensity: [S] recorded probability of being kept, nan without one.
    """

    rollout: Ints
    names: list[str]
    used: Bools
    withheld: Bools
    propensity: Floats


def evidence(
    rows: Sequence[LedgerRow], entries: Sequence[Entry], *, asked_only: bool = False, made: Creators | None = None
) -> Pairs:
    """Who was a candidate where, and whether it was used; in the order of the rollout ids.

    Left out: rows whose selection fell back to the ranking, and for each entry its `creators`.

    Args:
        rows: the ledger.
        entries: every entry that a row shows.
        asked_only: also leave out, for each entry, the tasks that no rollout selected it for: there it was about
            something else, and that it was absent says nothing of what it is worth.
        made: the `creators`, where `rows` are a part of the ledger; None: by these rows.

    Raises:
        CorruptionError: a row names an entry that is not among `entries`, or a propensity is none.
    """
    places = {entry.entry_id: place for place, entry in enumerate(entries)}
    kept = sorted((row for row in rows if not row.select_fallback), key=lambda row: row.rollout_id)
    groups = sorted({row.group for row in kept})
    group_places = {group: place for place, group in enumerate(groups)}
    group = np.array([group_places[row.group] for row in kept], dtype=np.int64)
    outcome = np.array([row.episode_return for row in kept], dtype=np.float64)
    entry, rollout = _candidates(kept, places)
    order = np.argsort(rollout * len(places) + entry, kind="stable")
    ordered = (rollout * len(places) + entry)[order]

    def locate(of: Ints, names: Sequence[str]) -> tuple[Ints, Bools]:
        """Which pair each (rollout, entry id) is, and whether it is one at all."""
        place = _places(names, places)
        keys = of * len(places) + place
        at = np.searchsorted(ordered, keys)
        known = (at < len(ordered)) & (place >= 0)
        known[known] = ordered[at[known]] == keys[known]
        return order[at[known]], known

    choices = _choices(kept)
    at, known = locate(choices.rollout, choices.names)
    used, withheld = np.zeros((2, len(entry)), dtype=np.bool_)
    propensity = np.full(len(entry), np.nan)
    used[at], withheld[at], propensity[at] = choices.used[known], choices.withheld[known], choices.propensity[known]
    evident = np.ones(len(entry), dtype=np.bool_)
    if asked_only:
        names = sorted({row.task_id for row in kept})
        by_name = {name: place for place, name in enumerate(names)}
        task = np.array([by_name[row.task_id] for row in kept], dtype=np.int64)[rollout]
        asked = task * len(places) + entry
        evident = np.isin(asked, asked[used | withheld])
    evident[locate(*_made(kept, creators(rows, entries) if made is None else made))[0]] = False
    return Pairs(
        entry=entry[evident],
        group=group[rollout][evident],
        chosen=used[evident],
        outcome=outcome[rollout][evident],
        groups=tuple(groups),
        withheld=withheld[evident],
        propensity=propensity[evident],
    )


def _candidates(kept: Sequence[LedgerRow], places: Mapping[str, int]) -> tuple[Ints, Ints]:
    """[N] entry and rollout of every candidate, each entry once a rollout."""
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
    return entry, rollout


def _choices(kept: Sequence[LedgerRow]) -> Choices:
    """What the policy selected, with what randomised inclusion did to it."""
    names = list(chain.from_iterable(row.selected for row in kept))
    used = (map(frozenset(row.injected).__contains__, row.selected) for row in kept)
    withheld = (map(row.withheld.__contains__, row.selected) for row in kept)
    chances = (map(row.propensities.get, row.selected, repeat(np.nan)) for row in kept)
    rollout = _owners([row.selected for row in kept])
    propensity = np.fromiter(chain.from_iterable(chances), dtype=np.float64, count=len(names))
    wrong = (propensity < 0.0) | (propensity > 1.0)
    if wrong.any():
        at = int(np.argmax(wrong))
        raise CorruptionError(
            f"rollout {kept[rollout[at]].rollout_id} kept {names[at]} with probability {propensity[at]}",
            "a probability from 0 to 1",
            MEND,
        )
    return Choices(
        rollout,
        names,
        np.fromiter(chain.from_iterable(used), dtype=np.bool_, count=len(names)),
        np.fromiter(chain.from_iterable(withheld), dtype=np.bool_, count=len(names)),
        propensity,
    )


def _made(kept: Sequence[LedgerRow], created: Creators) -> tuple[Ints, list[str]]:
    """[M] rollout and entry id of the creators among the rows."""
    made: dict[str, list[str]] = {}
    for rollout_id, entry_id in created:
        made.setdefault(rollout_id, []).append(entry_id)
    wrote = [made.get(row.rollout_id, []) for row in kept]
    return _owners(wrote), list(chain.from_iterable(wrote))


def _places(names: Sequence[str], places: Mapping[str, int]) -> Ints:
    """[N] place of each name, -1 for an unknown one."""
    return np.fromiter(map(places.get, names, repeat(-1)), dtype=np.int64, count=len(names))


def _owners(lists: Sequence[Sequence[str]]) -> Ints:
    """[N] which list each element of the joined lists comes from."""
    lengths = np.array([len(one) for one in lists], dtype=np.int64)
    return np.repeat(np.arange(len(lists), dtype=np.int64), lengths)
