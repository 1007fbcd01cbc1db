"""Environments by name, and worlds with fewer tasks than rounds ask for."""

from __future__ import annotations

import pytest

from opd_evolver.environments import registry
from opd_evolver.environments.protocol import Environment
from opd_evolver.environments.sql import Sql
from opd_evolver.errors import SetupError
from opd_evolver.params import Params
from opd_evolver.records import Split, Task
from opd_evolver.steps.resources import tasks_of


class Few(Sql):
    """Twenty tasks of each split, then no more."""

    def tasks(self, split: Split, n: int, seed: int = 0) -> tuple[Task, ...]:
        return super().tasks(split, n, seed)[:20]


def test_built_ins_are_known_without_installation() -> None:
    assert {"sql", "apps"} <= set(registry.names())
    for name in ("sql", "apps"):
        environment = registry.load(name)
        assert isinstance(environment, Environment)
        assert environment.domain == name
        assert registry.load(name) is not environment


def test_an_unknown_name_names_the_nearest() -> None:
    with pytest.raises(SetupError, match=r"unknown environment 'aps'.*did you mean 'apps'"):
        registry.load("aps")


def test_what_is_no_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.BUILT_IN, "odd", "collections:OrderedDict")
    monkeypatch.setitem(registry.BUILT_IN, "gone", "no_such_module:World")
    monkeypatch.setitem(registry.BUILT_IN, "alias", "opd_evolver.environments.sql:Sql")
    with pytest.raises(SetupError, match="without domain, tasks, reset, step, close"):
        registry.load("odd")
    with pytest.raises(SetupError, match="cannot be imported"):
        registry.load("gone")
    with pytest.raises(SetupError, match="calls its domain 'sql'"):
        registry.load("alias")


def test_a_world_without_enough_tasks_for_a_round_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.BUILT_IN, "sql", f"{__name__}:Few")
    assert [len(tasks) for tasks in tasks_of(Params(), "deploy-train", 8, skip=8).values()] == [8, 8]
    wanted = r"sql has 4 of 8 tasks of deploy-train for round 3; expected 24 in all.*fast\.tasks_per_domain or rounds"
    with pytest.raises(SetupError, match=wanted):
        tasks_of(Params(), "deploy-train", 8, skip=16)
