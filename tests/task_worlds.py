"""What the tests of domains share: every procedural domain; those that this machine cannot play are skipped."""

from __future__ import annotations

from typing import Any

import pytest

from opd_evolver.environments import extras
from opd_evolver.environments.apps import Apps
from opd_evolver.environments.grid import Grid
from opd_evolver.environments.household import Household
from opd_evolver.environments.shell import Shell
from opd_evolver.environments.sql import Sql
from opd_evolver.environments.tasks import subs_of
from opd_evolver.records import Split, Task

AnyDomain = Sql | Apps | Shell | Grid | Household
DOMAINS: list[type[AnyDomain]] = [Sql, Apps, Shell, Grid, Household]


def needs(extra: str) -> pytest.MarkDecorator:
    """Skips where the engine is not installed, and says what installs it."""
    absent = bool(extras.missing(extra))
    return pytest.mark.skipif(absent, reason=f"NOT INSTALLED: {extras.command(extra)}")


def is_installed(make: type[AnyDomain]) -> bool:
    return make.domain not in extras.EXTRAS or not extras.missing(make.domain)


def _parameter(make: type[AnyDomain]) -> Any:
    return pytest.param(make, id=make.domain, marks=[needs(make.domain)] if make.domain in extras.EXTRAS else [])


each_domain = pytest.mark.parametrize("make", [_parameter(make) for make in DOMAINS])


def n_played(make: type[AnyDomain], n: int) -> int:
    """How many episodes a test plays: fewer where a step costs milliseconds."""
    return n if make in (Sql, Apps) else n // 6


def task_with(environment: AnyDomain, n_subs: int, split: Split = "deploy-test") -> Task:
    return next(task for task in environment.tasks(split, 60) if len(task.gold["subs"]) == n_subs)


def wrong_value(environment: AnyDomain, task: Task, place: int) -> str:
    sub = subs_of(task)[place]
    return next(value for value in environment.values(sub.key) if value != task.gold["facts"][sub.key])
