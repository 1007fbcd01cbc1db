"""Outcomes as one small file, so that seeds of other machines and other days make one page.

A task is a line, a column a word of 0 and 1 in the order of the tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from opd_evolver.benchmark.results import Units
from opd_evolver.benchmark.statistics import Unit
from opd_evolver.durable import read_json
from opd_evolver.errors import SetupError
from opd_evolver.params import Params
from opd_evolver.records import SCHEMA_VERSION, Level, Record, canonical_json, digest_of


class KeptTask(Record):
    """A task, and the level that its family asks for, where that is told."""

    task_id: str
    family: str
    domain: str
    home: Level | None = None


class KeptFile(Record):
    """What every such file has; `parameters` is `parameters_digest` of its runs."""

    schema_version: int = SCHEMA_VERSION
    parameters: str


K = TypeVar("K", bound=KeptFile)
T = TypeVar("T")


def parameters_digest(whole: Params) -> str:
    """What runs must have in common to be pooled: all parameters but the seed and the base policy."""
    tree = {**whole.science(), "rounds": whole.rounds}
    tree["policy"] = {key: value for key, value in tree["policy"].items() if key != "path"}
    del tree["seed"]
    return digest_of([canonical_json(tree)])


def tasks_of(units: Units) -> tuple[KeptTask, ...]:
    """The tasks of a column, in its order."""
    return tuple(KeptTask(task_id=one.task_id, family=one.family, domain=one.domain) for one in units)


def word(units: Units, tasks: Sequence[KeptTask]) -> str:
    """A column of success as it is written; the tasks are the column's, perhaps in another order."""
    won = {one.task_id: one.numerator > 0 for one in units}
    return flags(won[one.task_id] for one in tasks)


def flags(given: Iterable[bool]) -> str:
    """A 0 or 1 for each."""
    return "".join("1" if one else "0" for one in given)


def check_word(said: str, tasks: Sequence[KeptTask], whose: str) -> None:
    """A validator's part.

    Raises:
        ValueError: no 0 or 1 for each task.
    """
    if len(said) != len(tasks) or set(said) - {"0", "1"}:
        raise ValueError(f"{whose} is not a 0 or 1 for each of {len(tasks)} tasks")


def units(said: str, tasks: Sequence[KeptTask]) -> Units:
    """The column that a word tells."""
    return tuple(unit(task, float(won == "1")) for won, task in zip(said, tasks, strict=True))


def unit(task: KeptTask, numerator: float, denominator: float = 1.0) -> Unit:
    """A task's share."""
    return Unit(
        task_id=task.task_id,
        family=task.family,
        domain=task.domain,
        numerator=numerator,
        denominator=denominator,
    )


def load(kind: type[K], file: Path, parameters: str, command: str) -> K:
    """A file as it is.

    Args:
        kind: its record.
        file: what that command wrote.
        parameters: `parameters_digest` of the runs here.
        command: by name.

    Raises:
        SetupError: no such file, of another command, or other parameters.
        CorruptionError: no JSON object.
        SchemaError: written by a newer version.
    """
    if not file.exists():
        raise SetupError(f"no file {file}", f"what `{command}` wrote", "--add FILE")
    try:
        kept = kind.model_validate(read_json(file))
    except ValidationError as problem:
        first = problem.errors()[0]
        seen = ": ".join(str(one) for one in (file, *first["loc"], first["msg"]))
        raise SetupError(seen, f"what `{command}` wrote", "take the file from its run again") from None
    if kept.parameters != parameters:
        raise SetupError(
            f"{file} is of the parameters {kept.parameters[:12]}",
            f"{parameters[:12]}, as this command's",
            "give the same --preset and --set, or another file by --out or --add",
        )
    return kept


def seeds_of(told: Collection[int], here: Collection[int], file: Path, *, own: bool) -> list[int]:
    """The seeds of a file, in their order.

    Args:
        told: those it has.
        here: those that are measured here.
        file: its name.
        own: the file is that of here, whose seeds among `here` are measured again and left out.

    Raises:
        SetupError: a seed of here in another's file.
    """
    twice = sorted({*told} & {*here})
    if twice and not own:
        raise SetupError(f"seed {twice[0]} here and in {file}", "each seed once", "another --first-seed or --seeds")
    return sorted({*told} - {*here})


def in_order(found: Iterable[T], seed: Callable[[T], int]) -> tuple[T, ...]:
    """What was found of each seed, by seeds.

    Raises:
        SetupError: a seed twice.
    """
    every = sorted(found, key=seed)
    for one, after in pairwise(every):
        if seed(one) == seed(after):
            raise SetupError(f"seed {seed(one)} in two files", "each seed once", "--add one of them")
    return tuple(every)


def same_tasks(tasks: tuple[KeptTask, ...], before: tuple[KeptTask, ...] | None) -> tuple[KeptTask, ...]:
    """The tasks, in the order in which they were told before, if they were.

    Raises:
        SetupError: they were others.
    """
    if before is not None and {*before} != {*tasks}:
        raise SetupError("outcomes of other tasks", "the same tasks of every seed", "another --out or --add")
    return tasks if before is None else before
