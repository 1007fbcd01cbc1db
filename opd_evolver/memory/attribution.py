"""Outcome-calibrated attribution: V(m), what a memory entry turned out to be worth.

Between the loops: the fast loop's ledger goes in, the slow loop's hindsight comes out. Vectorised
over (rollout, candidate) pairs; sums are taken in an order of their own, so neither the order of
the rows nor the names of the groups change a single bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from opd_evolver.errors import CorruptionError, SetupError
from opd_evolver.params import AttributionParams
from opd_evolver.records import Attribution, Entry, LedgerRow

Z_95 = 1.959963984540054
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class Attributor(Protocol):
    """One way to value entries by outcomes. The call site does not know which one it has."""

    def __call__(
        self, rows: Sequence[LedgerRow], entries: Sequence[Entry], params: AttributionParams
    ) -> dict[str, Attribution]:
        """An `Attribution` for every entry, in the entries' order, those without evidence included."""
        ...


class Pairs(NamedTuple):
    """One element per (rollout, candidate) that is evidence.

    Attributes:
        entry: [N] place in `entries`.
        group: [N] place in `groups`.
        chosen: [N] whether the entry was in the agent's context (Omega+), else Omega-.
        outcome: [N] return R of the rollout.
        groups: names of the groups, sorted.
    """

    entry: Ints
    group: Ints
    chosen: npt.NDArray[np.bool_]
    outcome: Floats
    groups: tuple[str, ...]


class Cells(NamedTuple):
    """One element per (entry, group) that has both sides."""

    entry: Ints
    group: Ints
    n_plus: Floats
    n_minus: Floats
    rho: Floats
    delta: Floats
    squares: Floats


def creators(rows: Sequence[LedgerRow], entries: Sequence[Entry]) -> set[tuple[str, str]]:
    """(rollout id, entry id) of the rollouts that brought an entry into being.

    They are those that wrote it (`LedgerRow.created`, or `Entry.source_episodes`, which a merge inherits)
    in the first wave in which anyone did. A later rollout that writes again what the memory holds already
    is no creator: leaving it out would drop just the lucky ones among O- and inflate V.
    """
    sources = {(episode, entry.entry_id) for entry in entries for episode in entry.source_episodes}
    episodes = {episode for episode, _ in sources}
    by_episode: dict[str, set[str]] = {}
    for episode, entry_id in sources:
        by_episode.setdefault(episode, set()).add(entry_id)
    wrote = [
        (row, {*row.created, *by_episode.get(row.rollout_id, ())})
        for row in rows
        if row.created or row.rollout_id in episodes
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


def evidence(rows: Sequence[LedgerRow], entries: Sequence[Entry]) -> Pairs:
    """Who was a candidate where, and whether it was used.

    Left out: rows whose selection fell back to the ranking, and for each entry its `creators`.

    Raises:
        CorruptionError: a row names an entry that is not among `entries`.
    """
    places = {entry.entry_id: place for place, entry in enumerate(entries)}
    created = creators(rows, entries)
    kept = sorted((row for row in rows if not row.select_fallback), key=lambda row: row.rollout_id)
    groups = sorted({row.group for row in kept})
    group_places = {group: place for place, group in enumerate(groups)}
    entry_at: list[int] = []
    chosen_at: list[bool] = []
    lengths: list[int] = []
    for row in kept:
        used = set(row.selected).intersection(row.injected)
        before = len(entry_at)
        for entry_id in dict.fromkeys(candidate.entry_id for candidate in row.candidates):
            if (row.rollout_id, entry_id) in created:
                continue
            place = places.get(entry_id)
            if place is None:
                raise CorruptionError(
                    f"rollout {row.rollout_id} had the candidate {entry_id}, which no entry has",
                    "every candidate among the snapshot's entries, retired ones included",
                    "opd memory rollback to a snapshot that verifies",
                )
            entry_at.append(place)
            chosen_at.append(entry_id in used)
        lengths.append(len(entry_at) - before)
    repeat = np.array(lengths, dtype=np.int64)
    return Pairs(
        entry=np.array(entry_at, dtype=np.int64),
        group=np.repeat(np.array([group_places[row.group] for row in kept], dtype=np.int64), repeat),
        chosen=np.array(chosen_at, dtype=np.bool_),
        outcome=np.repeat(np.array([row.episode_return for row in kept], dtype=np.float64), repeat),
        groups=tuple(groups),
    )


def _cells(pairs: Pairs) -> Cells:
    """Counts, means and squared deviations of both sides of every (entry, group)."""
    n_groups = max(len(pairs.groups), 1)
    keys, cell = np.unique(pairs.entry * n_groups + pairs.group, return_inverse=True)
    side = cell * 2 + pairs.chosen
    n_sides = 2 * len(keys)
    count = np.bincount(side, minlength=n_sides).astype(np.float64)
    total = np.bincount(side, weights=pairs.outcome, minlength=n_sides).astype(np.float64)
    mean = np.divide(total, count, out=np.zeros_like(total), where=count > 0)
    deviation = np.bincount(side, weights=(pairs.outcome - mean[side]) ** 2, minlength=n_sides).astype(np.float64)
    n_minus, n_plus = count[0::2], count[1::2]
    both = (n_minus > 0) & (n_plus > 0)
    return Cells(
        entry=keys[both] // n_groups,
        group=keys[both] % n_groups,
        n_plus=n_plus[both],
        n_minus=n_minus[both],
        rho=n_plus[both] / (n_plus[both] + n_minus[both]),
        delta=mean[1::2][both] - mean[0::2][both],
        squares=deviation[0::2][both] + deviation[1::2][both],
    )


def _sum_by_entry(entry: Ints, weights: Floats, n_entries: int) -> Floats:
    """Sums per entry, small terms first: the order of the groups does not matter, not even in the last bit."""
    order = np.lexsort((weights, entry))
    return np.bincount(entry[order], weights=weights[order], minlength=n_entries).astype(np.float64)


def paper(rows: Sequence[LedgerRow], entries: Sequence[Entry], params: AttributionParams) -> dict[str, Attribution]:
    """V(m) = alpha_level * gamma * sum_g rho_g * Delta_g over the groups that have both sides.

    rho_g = |O+| / (|O+| + |O-|), Delta_g = mean R over O+ minus mean R over O-, N+ = sum_g |O+_g|,
    gamma = 1 - 1/sqrt(1 + N+).

    The 95 % interval is the normal approximation around V with
    Var(V) = (alpha * gamma)^2 * sum_g rho_g^2 * s^2 * (1/|O+_g| + 1/|O-_g|); counts are taken as
    given, and s^2 is the entry's variance of R within its cells (group and side), pooled over them.
    It is None where no cell has a second rollout: the variance then cannot be estimated.

    Args:
        rows: the ledger, in any order.
        entries: every entry that a row shows, retired ones included.
        params: alpha per level.

    Returns:
        One `Attribution` per entry: `n_selected` is N+, `n_withheld` the sum of |O-_g|, both over the
        contributing groups; `per_group` is Delta_g; `value` is None (never 0.0) without evidence.

    Raises:
        CorruptionError: a row names an unknown entry; roll back to a snapshot that verifies.
        SetupError: no alpha for a level; set `attribution.alpha`.

    Paper: outcome-calibrated attribution.
    Differs: an entry that was selected but withheld by randomised inclusion counts as O-: it was not in
        the context. The rollouts that created an entry (see `creators`) are no evidence for it, nor are
        rollouts whose selection was a fallback.
    """
    pairs = evidence(rows, entries)
    cells, size = _cells(pairs), len(entries)
    advantage = _sum_by_entry(cells.entry, cells.rho * cells.delta, size)
    n_plus = _sum_by_entry(cells.entry, cells.n_plus, size)
    n_minus = _sum_by_entry(cells.entry, cells.n_minus, size)
    scale = _alphas(entries, params) * (1.0 - 1.0 / np.sqrt(1.0 + n_plus))
    half = Z_95 * scale * _spread(cells, size)
    per_group: list[dict[str, float]] = [{} for _ in entries]
    for place, group, delta in zip(cells.entry.tolist(), cells.group.tolist(), cells.delta.tolist(), strict=True):
        per_group[place][pairs.groups[group]] = delta
    found: dict[str, Attribution] = {}
    for i, entry in enumerate(entries):
        value, width = float(scale[i] * advantage[i]), float(half[i])
        seen, bounded = bool(n_plus[i]), bool(n_plus[i]) and not np.isnan(width)
        found[entry.entry_id] = Attribution(
            entry_id=entry.entry_id,
            value=value if seen else None,
            low=value - width if bounded else None,
            high=value + width if bounded else None,
            advantage=float(advantage[i]) if seen else None,
            n_selected=int(n_plus[i]),
            n_withheld=int(n_minus[i]),
            per_group=per_group[i],
        )
    return found


def _alphas(entries: Sequence[Entry], params: AttributionParams) -> Floats:
    """[N] alpha of each entry's level."""
    missing = sorted({entry.level for entry in entries} - params.alpha.keys())
    if missing:
        raise SetupError(f"no alpha for {', '.join(missing)}", "one per level", f"set attribution.alpha.{missing[0]}")
    return np.array([params.alpha[entry.level] for entry in entries], dtype=np.float64)


def _spread(cells: Cells, size: int) -> Floats:
    """[N] standard deviation of A-hat; nan where the variance of R cannot be estimated."""
    freedom = _sum_by_entry(cells.entry, cells.n_plus + cells.n_minus - 2.0, size)
    squares = _sum_by_entry(cells.entry, cells.squares, size)
    within = np.divide(squares, freedom, out=np.full_like(squares, np.nan), where=freedom > 0)
    weights = _sum_by_entry(cells.entry, cells.rho**2 * (1.0 / cells.n_plus + 1.0 / cells.n_minus), size)
    return np.sqrt(within * weights)


VARIANTS: dict[str, Attributor] = {"paper": paper}


def attribute(rows: Sequence[LedgerRow], entries: Sequence[Entry], params: AttributionParams) -> dict[str, Attribution]:
    """V of every entry by the variant that `attribution.variant` names.

    Raises:
        SetupError: unknown variant; set attribution.variant to one of `VARIANTS`.
    """
    variant = VARIANTS.get(params.variant)
    if variant is None:
        raise SetupError(f"attribution.variant {params.variant}", " | ".join(VARIANTS), "set attribution.variant")
    return variant(rows, entries, params)
