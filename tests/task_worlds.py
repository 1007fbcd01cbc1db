"""What the tests of domains share: every procedural domain that this machine can play."""

from __future__ import annotations

import pytest

from opd_evolver.environments.apps import Apps
from opd_evolver.environments.shell import Shell
from opd_evolver.environments.sql import Sql
from opd_evolver.environments.tasks import subs_of
from opd_evolver.records import Split, Task

AnyDomain = Sql | Apps | Shell
DOMAINS: list[type[AnyDomain]] = [Sql, Apps, Shell]
PLAYABLE = [pytest.param(make, id=make.domain) for make in DOMAINS]
each_domain = pytest.mark.parametrize("make", PLAYABLE)


def n_played(make: type[AnyDomain], n: int) -> int:
    """How many episodes a test plays: fewer where a step costs milliseconds."""
    return n if make in (Sql, Apps) else n // 6


def task_with(environment: AnyDomain, n_subs: int, split: Split = "deploy-test") -> Task:
    return next(task for task in environment.tasks(split, 60) if len(task.gold["subs"]) == n_subs)


def wrong_value(environment: AnyDomain, task: Task, place: int) -> str:
    sub = subs_of(task)[place]
    return next(value for value in environment.values(sub.key) if value != task.gold["facts"][sub.key])
