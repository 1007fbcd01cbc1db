"""Rows of a report by what its tasks ask for: each kind of headroom apart, and selection against V.

Memory kept from a task may mislead, may have changed, may be worded otherwise; its question may need an order, its
context may hold less than was found. On these rows a policy that is perfect at the mechanics has something to learn.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TypeVar

from opd_evolver.benchmark.statistics import Estimate, Outcome, Unit, ratio_difference, ratio_interval, units_of
from opd_evolver.memory.attribution import attribute
from opd_evolver.memory.levels import head
from opd_evolver.memory.snapshot import read_entries, read_rows
from opd_evolver.params import Params
from opd_evolver.records import Entry, Level, Record, Task

BUDGET, HOME, EVERY = "budget", "home ", "every"
Values = Mapping[str, float | None]


class Row(Record):
    """One kind of task on the test split: success of the columns, and F1 of what was selected against V > 0.

    V is a property of an entry, not of a task: most candidates with V > 0 are about something else than a task asks.
    `select` counts them as missed all the same; `needed` takes those as right that the task asks for.

    Attributes:
        n_tasks: how many tasks are of this kind, in each run.
        success: by column: `base_alone`, `base_memory`, `last_alone`, `last_memory`.
        gain: success of the last policy with the memory minus that of the base policy with it.
        select: F1 of the base policy and of the last one, with the same memory; None where nothing has V > 0.
        select_gain: last minus base.
        needed, needed_gain: the same against what has V > 0 and is asked for.
    """

    n_tasks: tuple[int, ...]
    success: dict[str, Estimate]
    gain: Estimate
    select: dict[str, Estimate]
    select_gain: Estimate
    needed: dict[str, Estimate]
    needed_gain: Estimate


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
    found[EVERY] = {task.task_id for task in tasks}
    return {name: frozenset(ids) for name, ids in sorted(found.items())}


Asked = Mapping[str, frozenset[str]]


def asked(tasks: Sequence[Task], entries: Sequence[Entry]) -> Asked:
    """By task, the entries about one of the keys that its gold says it asks; tasks without such gold are left out."""
    words = {entry.entry_id: frozenset(head(entry).split()) for entry in entries}
    found = {}
    for task in tasks:
        if "subs" in task.gold:
            keys = {str(sub[0]) for sub in task.gold["subs"]}
            found[task.task_id] = frozenset(entry_id for entry_id, named in words.items() if named & keys)
    return found


def selection(
    outcomes: Sequence[Outcome], values: Values, threshold: float, needed: Asked | None = None
) -> tuple[Unit, ...]:
    """Micro-F1 of what was selected against the candidates with V at the threshold or above; no evidence counts not.

    Args:
        outcomes: with the memory.
        values: V by entry id.
        threshold: of supervision.
        needed: from `asked`: only what a task asks for is right; tasks that it does not know count not.
    """
    units = []
    for one in outcomes:
        right = {entry_id for entry_id in one.candidates if _helps(values.get(entry_id), threshold)}
        chosen = {entry_id for entry_id in one.selected if values.get(entry_id) is not None}
        if needed is not None:
            right &= needed.get(one.task_id, frozenset())
            chosen = chosen if one.task_id in needed else set()
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


def of_kind(by_seed: Sequence[Sequence[Unit]], ids: Sequence[Collection[str]]) -> list[tuple[Unit, ...]]:
    """Each seed's units of a kind, so that seeds with other tasks of it can be pooled.

    A task that is of the kind in some seeds only stays in all of them, without weight where it is not. What is of it in
    none is left out.

    Args:
        by_seed: units of the same tasks.
        ids: the kind's tasks in each seed.
    """
    every = frozenset[str]().union(*ids)
    return [
        tuple(
            one if one.task_id in wanted else one.model_copy(update={"numerator": 0.0, "denominator": 0.0})
            for one in units
            if one.task_id in every
        )
        for units, wanted in zip(by_seed, ids, strict=True)
    ]


SIDES = ("base", "last")
Selections = Mapping[str, Sequence[Unit]]


def selections(
    columns: Mapping[str, Sequence[Outcome]],
    tasks: Sequence[Task],
    entries: Sequence[Entry],
    values: Values,
    threshold: float,
) -> dict[str, tuple[Unit, ...]]:
    """What base and last policy selected from the same memory, judged by V (`base`, `last`) and by V and the task
    (`base needed`, `last needed`)."""
    needed = asked(tasks, entries)
    found = {}
    for side in SIDES:
        outcomes = columns[f"{side}_memory"]
        found[side] = selection(outcomes, values, threshold)
        found[f"{side} needed"] = selection(outcomes, values, threshold, needed)
    return found


def rows(
    columns: Mapping[str, Sequence[Outcome]],
    by_kind: Mapping[str, Collection[str]],
    selected: Selections,
    samples: int,
) -> dict[str, Row]:
    """A row for every kind.

    Args:
        columns: `base_alone`, `base_memory`, `last_alone`, `last_memory` on the same tasks.
        by_kind: from `kinds`.
        selected: from `selections`.
        samples: bootstrap resamples.
    """
    units = {name: units_of(found) for name, found in columns.items()}
    found = {}
    for kind, ids in by_kind.items():
        parts = {name: [one for one in every if one.task_id in ids] for name, every in units.items()}
        picks = {side: [one for one in every if one.task_id in ids] for side, every in selected.items()}
        found[kind] = row(
            (len(ids),),
            parts,
            picks,
            lambda part: ratio_interval(part, samples=samples),
            lambda a, b: ratio_difference(a, b, samples=samples),
        )
    return found


T = TypeVar("T")


def row(
    n_tasks: tuple[int, ...],
    parts: Mapping[str, T],
    picks: Mapping[str, T],
    mean: Callable[[T], Estimate],
    difference: Callable[[T, T], Estimate],
) -> Row:
    """One row, from the units of one run or of several.

    Args:
        n_tasks: of each run.
        parts: units of success by column; `picks` those of `selections`.
        mean, difference: how such units are estimated.
    """
    return Row(
        n_tasks=n_tasks,
        success={name: mean(part) for name, part in parts.items()},
        gain=difference(parts["last_memory"], parts["base_memory"]),
        select={side: mean(picks[side]) for side in SIDES},
        select_gain=difference(picks["last"], picks["base"]),
        needed={side: mean(picks[f"{side} needed"]) for side in SIDES},
        needed_gain=difference(picks["last needed"], picks["base needed"]),
    )
