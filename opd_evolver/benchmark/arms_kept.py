"""Outcomes of ablations as one small file, so that seeds of other machines and other days make one page.

A task is a line, an arm's column a word of 0 and 1 in the order of the tasks.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from pydantic import Field, ValidationError, model_validator

from opd_evolver.benchmark.arms import WHOLE, ArmRun
from opd_evolver.benchmark.results import DEPLOYED, Units
from opd_evolver.benchmark.statistics import Unit
from opd_evolver.durable import read_json
from opd_evolver.errors import SetupError
from opd_evolver.params import Params
from opd_evolver.records import SCHEMA_VERSION, Level, Record, canonical_json, digest_of

Found = dict[str, tuple[ArmRun, ...]]


class KeptTask(Record):
    """A task of deploy-test, and the level that its family asks for."""

    task_id: str
    family: str
    domain: str
    home: Level | None = None


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


class Kept(Record):
    """All arms from all seeds.

    Attributes:
        parameters: digest of the whole's parameters, the seed and the base policy apart.
        runs: seed → arm → what it came to.
    """

    schema_version: int = SCHEMA_VERSION
    parameters: str
    tasks: tuple[KeptTask, ...]
    runs: dict[int, dict[str, KeptRun]]

    @model_validator(mode="after")
    def _whole(self) -> Kept:
        for seed, arms in self.runs.items():
            for arm, one in arms.items():
                for column in DEPLOYED:
                    word = one.success.get(column, "")
                    if len(word) != len(self.tasks) or set(word) - {"0", "1"}:
                        raise ValueError(
                            f"seed {seed}, {arm}: {column} is not a 0 or 1 for each of {len(self.tasks)} tasks"
                        )
        return self


def parameters_digest(whole: Params) -> str:
    """What runs must have in common to be pooled: all parameters but the seed and the base policy."""
    tree = {**whole.science(), "rounds": whole.rounds}
    tree["policy"] = {key: value for key, value in tree["policy"].items() if key != "path"}
    del tree["seed"]
    return digest_of([canonical_json(tree)])


def keep(
    found: Mapping[str, Sequence[ArmRun]], parameters: str, before: Kept | None = None, here: Collection[int] = ()
) -> Kept:
    """As it is written.

    Args:
        found: arm → its runs.
        parameters: `parameters_digest` of the whole.
        before: what the file held. It stays, but for what was found of the seeds `here`.
        here: seeds that have just been measured.

    Raises:
        SetupError: the file is of other tasks.
    """
    first = found[WHOLE][0]
    tasks = tuple(
        KeptTask(task_id=one.task_id, family=one.family, domain=one.domain, home=first.homes.get(one.task_id))
        for one in first.columns[DEPLOYED[0]]
    )
    if before is not None:
        if set(before.tasks) != set(tasks):
            raise SetupError("the file that is there is of other tasks", "those of the runs", "another --out")
        tasks = before.tasks
    order = [one.task_id for one in tasks]
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
                success={column: _word(one.columns[column], order) for column in DEPLOYED},
                retention=one.retention,
                measured=one.measured,
            )
    return Kept(parameters=parameters, tasks=tasks, runs=runs)


def _word(units: Units, order: Sequence[str]) -> str:
    won = {one.task_id: one.numerator > 0 for one in units}
    return "".join("1" if won[task] else "0" for task in order)


def load(file: Path, parameters: str) -> Kept:
    """A file as it is.

    Args:
        file: from `keep`.
        parameters: `parameters_digest` of the whole here.

    Raises:
        SetupError: no such file, or other parameters.
        CorruptionError: no JSON object.
        SchemaError: written by a newer version.
    """
    if not file.exists():
        raise SetupError(f"no file {file}", "what `opd bench ablations` wrote", "--add FILE")
    try:
        kept = Kept.model_validate(read_json(file))
    except ValidationError as problem:
        first = problem.errors()[0]
        seen = ": ".join(str(one) for one in (file, *first["loc"], first["msg"]))
        raise SetupError(seen, "what `opd bench ablations` wrote", "take the file from its run again") from None
    if kept.parameters != parameters:
        raise SetupError(
            f"{file} is of the parameters {kept.parameters[:12]}",
            f"{parameters[:12]}, as this command's",
            "give the same --preset and --set, or another file by --out or --add",
        )
    return kept


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
    kept = load(file, parameters)
    seeds = sorted(seed for seed in kept.runs if not (own and seed in here))
    for seed in seeds:
        runs = kept.runs[seed]
        if seed in here:
            raise SetupError(f"seed {seed} here and in {file}", "each seed once", "another --first-seed or --seeds")
        if missing := [arm for arm in arms if arm not in runs]:
            raise SetupError(
                f"{file} has no {missing[0]!r} of seed {seed}", " ".join(arms), "--arms with those that it has"
            )
    return {arm: tuple(_run(kept, seed, arm) for seed in seeds) for arm in arms}


def _run(kept: Kept, seed: int, arm: str) -> ArmRun:
    one = kept.runs[seed][arm]
    columns = {
        column: tuple(
            Unit(task_id=task.task_id, family=task.family, domain=task.domain, numerator=float(won == "1"))
            for task, won in zip(kept.tasks, word, strict=True)
        )
        for column, word in one.success.items()
    }
    homes = {task.task_id: task.home for task in kept.tasks if task.home is not None}
    return ArmRun(
        seed=seed,
        lineage=one.lineage,
        round=one.round,
        weights=one.weights,
        columns=columns,
        homes=homes,
        retention=one.retention,
        measured=one.measured,
    )


def joined(here: Mapping[str, Sequence[ArmRun]], added: Sequence[Found]) -> Found:
    """Seeds of here and elsewhere, in their order.

    Raises:
        SetupError: a seed twice.
    """
    found: Found = {}
    for arm, runs in here.items():
        every = sorted([*runs, *(one for other in added for one in other[arm])], key=lambda one: one.seed)
        seeds = [one.seed for one in every]
        if twice := sorted({seed for seed in seeds if seeds.count(seed) > 1}):
            raise SetupError(f"seed {twice[0]} in two files", "each seed once", "--add one of them")
        found[arm] = tuple(every)
    return found
