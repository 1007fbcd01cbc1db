"""The outcomes of ablations as they are kept (`benchmark/kept.py`): all arms from all seeds."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from pydantic import Field, model_validator

from opd_evolver.benchmark import kept
from opd_evolver.benchmark.arms import WHOLE, ArmRun
from opd_evolver.benchmark.kept import KeptFile, KeptTask
from opd_evolver.benchmark.results import DEPLOYED
from opd_evolver.errors import SetupError
from opd_evolver.records import Record

Found = dict[str, tuple[ArmRun, ...]]


class KeptRun(Record):
    """One arm from one seed; `success`: column → a 0 or 1 for each task; `measured`: when and on what.

    `round`: which one was measured; None: before that was written down.
    """

    lineage: str
    round: int | None = None
    weights: str
    success: dict[str, str]
    retention: dict[str, tuple[float, float]]
    measured: dict[str, str] = Field(default_factory=dict)


class Kept(KeptFile):
    """All arms from all seeds, of the tasks of deploy-test; `runs`: seed → arm → what it came to."""

    tasks: tuple[KeptTask, ...]
    runs: dict[int, dict[str, KeptRun]]

    @model_validator(mode="after")
    def _whole(self) -> Kept:
        for seed, arms in self.runs.items():
            for arm, one in arms.items():
                for column in DEPLOYED:
                    kept.check_word(one.success.get(column, ""), self.tasks, f"seed {seed}, {arm}: {column}")
        return self


def keep(
    found: Mapping[str, Sequence[ArmRun]], parameters: str, before: Kept | None = None, here: Collection[int] = ()
) -> Kept:
    """As it is written.

    Args:
        found: arm → its runs.
        parameters: `kept.parameters_digest` of the whole.
        before: what the file held. It stays, but for what was found of the seeds `here`.
        here: seeds that have just been measured.

    Raises:
        SetupError: the file is of other tasks.
    """
    first = found[WHOLE][0]
    tasks = kept.same_tasks(
        tuple(
            one.model_copy(update={"home": first.homes.get(one.task_id)})
            for one in kept.tasks_of(first.columns[DEPLOYED[0]])
        ),
        before.tasks if before is not None else None,
    )
    runs = {seed: dict(arms) for seed, arms in before.runs.items()} if before is not None else {}
    for arm, each in found.items():
        for one in each:
            of_seed = runs.setdefault(one.seed, {})
            if arm in of_seed and one.seed not in here:
                continue
            of_seed[arm] = KeptRun(
                lineage=one.lineage,
                round=one.round,
                weights=one.weights,
                success={column: kept.word(one.columns[column], tasks) for column in DEPLOYED},
                retention=one.retention,
                measured=one.measured,
            )
    return Kept(parameters=parameters, tasks=tasks, runs=runs)


def load(file: Path, parameters: str) -> Kept:
    """A file of ablations, as `kept.load`."""
    return kept.load(Kept, file, parameters, "opd bench ablations")


def read(file: Path, *, arms: Sequence[str], parameters: str, here: Collection[int], own: bool = False) -> Found:
    """What another machine or day has measured.

    Args:
        file, parameters: as of `load`.
        arms: those that are wanted.
        here: seeds that are measured here.
        own: the file is that of here, whose seeds among `here` are measured again and left out.

    Raises:
        SetupError, CorruptionError, SchemaError: as of `load`; or a seed of here, or one without one of the arms.
    """
    told = load(file, parameters)
    seeds = kept.seeds_of(told.runs, here, file, own=own)
    for seed in seeds:
        if missing := [arm for arm in arms if arm not in told.runs[seed]]:
            raise SetupError(
                f"{file} has no {missing[0]!r} of seed {seed}", " ".join(arms), "--arms with those that it has"
            )
    return {arm: tuple(_run(told, seed, arm) for seed in seeds) for arm in arms}


def _run(told: Kept, seed: int, arm: str) -> ArmRun:
    one = told.runs[seed][arm]
    return ArmRun(
        seed=seed,
        lineage=one.lineage,
        round=one.round,
        weights=one.weights,
        columns={column: kept.units(word, told.tasks) for column, word in one.success.items()},
        homes={task.task_id: task.home for task in told.tasks if task.home is not None},
        retention=one.retention,
        measured=one.measured,
    )


def joined(here: Mapping[str, Sequence[ArmRun]], added: Sequence[Found]) -> Found:
    """Seeds of here and elsewhere, in their order.

    Raises:
        SetupError: a seed twice.
    """
    return {
        arm: kept.in_order([*runs, *(one for other in added for one in other[arm])], lambda one: one.seed)
        for arm, runs in here.items()
    }
