"""The outcomes of `opd bench rounds` as they are kept (`benchmark/kept.py`): each seed's last round and champion."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from pydantic import Field, model_validator

from opd_evolver.benchmark import kept
from opd_evolver.benchmark.kept import KeptFile, KeptTask
from opd_evolver.benchmark.results import COLUMNS, DEPLOYED, SeedResult, Units
from opd_evolver.benchmark.rows import Written
from opd_evolver.records import Record


class MeasuredSeed(Record):
    """A seed's last round, what the gate left to use (the same, another, or None: nothing), when and on what.

    `policy`: the base policy as it was named.
    """

    last: SeedResult
    champion: SeedResult | None
    policy: str
    measured: dict[str, str]

    @property
    def seed(self) -> int:
        """Its number."""
        return self.last.seed


class KeptRound(Record):
    """One round as `results` pools it.

    Attributes:
        success: column → a 0 or 1 for each task; empty: not measured.
        selection: whose → for each task of deploy-test twice what was right, and what was right plus what was selected.
        kinds: by kind of task a 1 for those of it.
        lineage, round, retention, curve, digests, seconds, written: as of `SeedResult`.
    """

    lineage: str
    round: int
    success: dict[str, str]
    selection: dict[str, tuple[tuple[int, int], ...]]
    kinds: dict[str, str]
    retention: dict[str, tuple[float, float]]
    curve: tuple[tuple[float | None, float | None], ...]
    digests: dict[str, str]
    seconds: tuple[float, ...]
    written: dict[int, Written]


class KeptSeed(Record):
    """One seed; `held`: the round that the gate left to use, 0: none; `champion`: that round where it is another."""

    policy: str
    last: KeptRound
    held: int
    champion: KeptRound | None = None
    measured: dict[str, str] = Field(default_factory=dict)


class Kept(KeptFile):
    """All seeds: the tasks of deploy-test, those of novel-test (where it was measured), and by seed what it came to."""

    deployed: tuple[KeptTask, ...]
    novel: tuple[KeptTask, ...]
    seeds: dict[int, KeptSeed]

    @model_validator(mode="after")
    def _whole(self) -> Kept:
        for seed, each in self.seeds.items():
            if (each.champion is None) != (each.held in (0, each.last.round)):
                raise ValueError(f"seed {seed}: the gate left round {each.held}, which is not the one that is told")
            for one in (each.last, each.champion):
                if one is not None:
                    self._check(one, f"seed {seed}, round {one.round}")
        return self

    def _check(self, one: KeptRound, whose: str) -> None:
        for column in COLUMNS:
            if (said := one.success.get(column, "")) or column in DEPLOYED:
                kept.check_word(said, self.of(column), f"{whose}: {column}")
        for kind, said in one.kinds.items():
            kept.check_word(said, self.deployed, f"{whose}: {kind}")
        for side, pairs in one.selection.items():
            if len(pairs) != len(self.deployed):
                raise ValueError(f"{whose}: {side} has {len(pairs)} pairs, not one for each of {len(self.deployed)}")

    def of(self, column: str) -> tuple[KeptTask, ...]:
        """The tasks of a column."""
        return self.deployed if column in DEPLOYED else self.novel


def keep(
    found: Sequence[MeasuredSeed], parameters: str, before: Kept | None = None, here: Collection[int] = ()
) -> Kept:
    """As it is written.

    Args:
        found: at least one seed.
        parameters: `kept.parameters_digest` of the runs.
        before: what the file held. It stays, but for the seeds `here`.
        here: seeds that have just been measured.

    Raises:
        SetupError: seeds or the file are of other tasks.
    """
    deployed, novel = (before.deployed, before.novel) if before is not None else ((), ())
    for each in found:
        for name, units in each.last.columns.items():
            if name in DEPLOYED:
                deployed = kept.same_tasks(kept.tasks_of(units), deployed or None)
            elif units:
                novel = kept.same_tasks(kept.tasks_of(units), novel or None)
    seeds = dict(before.seeds) if before is not None else {}
    for each in found:
        if each.seed in here or each.seed not in seeds:
            seeds[each.seed] = _kept(each, deployed, novel)
    return Kept(parameters=parameters, deployed=deployed, novel=novel, seeds=seeds)


def _kept(each: MeasuredSeed, deployed: Sequence[KeptTask], novel: Sequence[KeptTask]) -> KeptSeed:
    champion = each.champion
    return KeptSeed(
        policy=each.policy,
        last=_round(each.last, deployed, novel),
        held=champion.round if champion is not None else 0,
        champion=_round(champion, deployed, novel) if champion not in (None, each.last) else None,
        measured=each.measured,
    )


def _round(one: SeedResult, deployed: Sequence[KeptTask], novel: Sequence[KeptTask]) -> KeptRound:
    picks = {side: {unit.task_id: unit for unit in units} for side, units in one.selection.items()}
    return KeptRound(
        success={
            name: kept.word(units, deployed if name in DEPLOYED else novel) if units else ""
            for name, units in one.columns.items()
        },
        selection={
            side: tuple((int(by[task.task_id].numerator), int(by[task.task_id].denominator)) for task in deployed)
            for side, by in picks.items()
        },
        kinds={kind: kept.flags(task.task_id in ids for task in deployed) for kind, ids in one.kinds.items()},
        **one.model_dump(include={"lineage", "round", "retention", "curve", "digests", "seconds", "written"}),
    )


def load(file: Path, parameters: str) -> Kept:
    """A file of rounds, as `kept.load`."""
    return kept.load(Kept, file, parameters, "opd bench rounds")


def read(file: Path, *, parameters: str, here: Collection[int], own: bool = False) -> tuple[MeasuredSeed, ...]:
    """What another machine or day has measured.

    Args:
        file, parameters: as of `load`.
        here: seeds that are measured here.
        own: the file is that of here, whose seeds among `here` are measured again and left out.

    Raises:
        SetupError, CorruptionError, SchemaError: as of `load`; or a seed of here.
    """
    told = load(file, parameters)
    return tuple(_seed(told, seed) for seed in kept.seeds_of(told.seeds, here, file, own=own))


def _seed(told: Kept, seed: int) -> MeasuredSeed:
    each = told.seeds[seed]
    last = _result(told, seed, each.last)
    champion = last if each.held else None
    if each.champion is not None:
        champion = _result(told, seed, each.champion)
    return MeasuredSeed(last=last, champion=champion, policy=each.policy, measured=each.measured)


def _result(told: Kept, seed: int, one: KeptRound) -> SeedResult:
    def picks(pairs: Sequence[tuple[int, int]]) -> Units:
        return tuple(kept.unit(task, *pair) for task, pair in zip(told.deployed, pairs, strict=True))

    tree: Mapping[str, object] = one.model_dump(exclude={"success", "selection", "kinds"})
    return SeedResult(
        seed=seed,
        columns={
            name: kept.units(said, told.of(name)) if (said := one.success.get(name, "")) else () for name in COLUMNS
        },
        selection={side: picks(pairs) for side, pairs in one.selection.items()},
        kinds={
            kind: frozenset(task.task_id for task, one in zip(told.deployed, said, strict=True) if one == "1")
            for kind, said in one.kinds.items()
        },
        **tree,
    )


def joined(here: Sequence[MeasuredSeed], added: Sequence[Sequence[MeasuredSeed]]) -> tuple[MeasuredSeed, ...]:
    """Seeds of here and elsewhere, in their order.

    Raises:
        SetupError: a seed twice.
    """
    return kept.in_order([*here, *(one for other in added for one in other)], lambda one: one.seed)
