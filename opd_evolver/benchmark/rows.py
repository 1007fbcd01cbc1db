"""Rows of a report by what its tasks ask for: each kind of headroom apart, and selection against V.

Memory kept from a task may mislead, may have changed, may be worded otherwise; its question may need an order, its
context may hold less than was found. On these rows a policy that is perfect at the mechanics has something to learn.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import median

from opd_evolver.benchmark.statistics import Estimate, Outcome, Unit, ratio_difference, ratio_interval, units_of
from opd_evolver.memory.attribution import attribute
from opd_evolver.memory.snapshot import read_entries, read_rows
from opd_evolver.params import Params
from opd_evolver.records import Entry, Level, Record, Task

BUDGET, HOME = "budget", "home "
Values = Mapping[str, float | None]


class Row(Record):
    """One kind of task on the test split: success of the columns, and F1 of what was selected against V > 0.

    Attributes:
        n_tasks: how many tasks are of this kind.
        success: by column: `base_alone`, `base_memory`, `last_alone`, `last_memory`.
        gain: success of the last policy with the memory minus that of the base policy with it.
        select: F1 of the base policy and of the last one, with the same memory; None where nothing has V > 0.
        select_gain: last minus base.
    """

    n_tasks: int
    success: dict[str, Estimate]
    gain: Estimate
    select: dict[str, Estimate]
    select_gain: Estimate


class Written(Record):
    """What a round wrote: entries, those with evidence, those of them with V at the threshold or above, median V."""

    n_entries: int
    n_with_evidence: int
    n_helpful: int
    median_value: float | None


def judged(folder: Path, params: Params) -> tuple[list[Entry], dict[str, float | None]]:
    """The entries of a snapshot, and V of each by the whole ledger."""
    entries = read_entries(folder)
    found = attribute(read_rows(folder), entries, params.attribution)
    return entries, {entry_id: one.value for entry_id, one in found.items()}


def written(entries: Sequence[Entry], values: Values, threshold: float) -> dict[int, Written]:
    """By round, what became of the entries that were first written in it."""
    by_round: dict[int, list[float | None]] = {}
    for entry in entries:
        by_round.setdefault(entry.created_round, []).append(values.get(entry.entry_id))
    return {round_: _written(found, threshold) for round_, found in sorted(by_round.items())}


def _written(found: Sequence[float | None], threshold: float) -> Written:
    known = [value for value in found if value is not None]
    return Written(
        n_entries=len(found),
        n_with_evidence=len(known),
        n_helpful=sum(_helps(value, threshold) for value in known),
        median_value=median(known) if known else None,
    )


def _helps(value: float | None, threshold: float) -> bool:
    return value is not None and value > 0 and value >= threshold


def home(level: Level) -> str:
    """The kind of tasks whose family's hidden rule asks for this level."""
    return f"{HOME}{level}"


def kinds(tasks: Sequence[Task], with_memory: Sequence[Outcome], n_candidates: int) -> dict[str, frozenset[str]]:
    """Task ids by kind: the headroom and the level that a task's gold names; more found than shown.

    Args:
        tasks: of a test split.
        with_memory: their outcomes with the memory.
        n_candidates: most entries that are shown; a task that found so many is under pressure.
    """
    found: dict[str, set[str]] = {}
    for task in tasks:
        names = list(task.gold.get("headroom", ()))
        names += [home(task.gold["home"])] if "home" in task.gold else []
        for name in names:
            found.setdefault(name, set()).add(task.task_id)
    pressed = {one.task_id for one in with_memory if n_candidates and len(one.candidates) >= n_candidates}
    if pressed:
        found[BUDGET] = pressed
    return {name: frozenset(ids) for name, ids in sorted(found.items())}


def selection(outcomes: Sequence[Outcome], values: Values, threshold: float) -> tuple[Unit, ...]:
    """Micro-F1 of what was selected against the candidates with V at the threshold or above; no evidence counts not."""
    units = []
    for one in outcomes:
        right = {entry_id for entry_id in one.candidates if _helps(values.get(entry_id), threshold)}
        chosen = {entry_id for entry_id in one.selected if values.get(entry_id) is not None}
        units.append(
            Unit(
                task_id=one.task_id,
                family=one.family,
                domain=one.domain,
                numerator=2.0 * len(right & chosen),
                denominator=float(len(right) + len(chosen)),
            )
        )
    return tuple(units)


def of_kind(units: Sequence[Unit], ids: Collection[str]) -> tuple[Unit, ...]:
    """The same units, those of other tasks without weight: so that seeds with other tasks of a kind can be pooled."""
    return tuple(
        one if one.task_id in ids else one.model_copy(update={"numerator": 0.0, "denominator": 0.0}) for one in units
    )


def rows(
    columns: Mapping[str, Sequence[Outcome]],
    by_kind: Mapping[str, Collection[str]],
    values: Values,
    threshold: float,
    samples: int,
) -> dict[str, Row]:
    """A row for every kind.

    Args:
        columns: `base_alone`, `base_memory`, `last_alone`, `last_memory` on the same tasks.
        by_kind: from `kinds`.
        values: V by entry id.
        threshold: of supervision.
        samples: bootstrap resamples.
    """
    units = {name: units_of(found) for name, found in columns.items()}
    chosen = {side: selection(columns[f"{side}_memory"], values, threshold) for side in ("base", "last")}
    found = {}
    for kind, ids in by_kind.items():
        parts = {name: [one for one in every if one.task_id in ids] for name, every in units.items()}
        picks = {side: [one for one in every if one.task_id in ids] for side, every in chosen.items()}
        found[kind] = Row(
            n_tasks=len(ids),
            success={name: ratio_interval(part, samples=samples) for name, part in parts.items()},
            gain=ratio_difference(parts["last_memory"], parts["base_memory"], samples=samples),
            select={side: ratio_interval(part, samples=samples) for side, part in picks.items()},
            select_gain=ratio_difference(picks["last"], picks["base"], samples=samples),
        )
    return found
