"""Environments by name, and outages kept apart from failures."""

from __future__ import annotations

import pickle

import pytest

from opd_evolver.environments import registry
from opd_evolver.environments.playing import play
from opd_evolver.environments.protocol import Conventions, Environment, Oracle
from opd_evolver.environments.sql import Sql
from opd_evolver.environments.tasks import subs_of
from opd_evolver.errors import OutageError, SetupError
from opd_evolver.records import Step, Task


class Flaky(Sql):
    """Down at chosen calls of reset and step; what was running is lost."""

    def __init__(self, down: set[int]) -> None:
        super().__init__()
        self.down, self.calls = down, 0

    def _tick(self) -> None:
        self.calls += 1
        if self.calls in self.down:
            self.close()
            raise OutageError("engine down", "a running engine", "start it")

    def reset(self, task: Task) -> str:
        self._tick()
        return super().reset(task)

    def step(self, action: str) -> Step:
        self._tick()
        return super().step(action)


def two_fact_task() -> Task:
    return next(task for task in Sql().tasks("deploy-test", 24) if len(task.gold["subs"]) == 2)


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


@pytest.mark.parametrize("down", [{1}, {2}, {3}, {2, 3}, {3, 4, 5}])
def test_an_outage_is_retried_and_no_action_counts_twice(down: set[int]) -> None:
    task = two_fact_task()
    plain = Sql()
    expected = play(plain, task, lambda _: plain.oracle(task))
    pauses: list[float] = []
    environment = registry.with_retries(Flaky(down), 3, pauses.append)
    facts = task.gold["facts"]
    actions = [plain.action(sub, facts[sub.key]) for sub in subs_of(task)]
    played = play(environment, task, lambda steps: actions[len(steps)])
    assert played.observations == expected.observations
    assert played.success
    assert pauses == sorted(pauses)
    assert len(pauses) == len(down)


def test_a_lasting_outage_is_an_outage_not_a_failed_episode() -> None:
    pauses: list[float] = []
    environment = registry.with_retries(Flaky(set(range(2, 100))), 2, pauses.append)
    environment.reset(two_fact_task())
    with pytest.raises(OutageError, match="engine down"):
        environment.step("select 1")
    assert pauses == [0.5, 1.0]


def test_the_wrapper_passes_the_rest_through() -> None:
    environment = registry.with_retries(Sql(), 1)
    assert isinstance(environment, Environment)
    assert isinstance(environment, Oracle)
    assert isinstance(environment, Conventions)
    assert environment.facts(two_fact_task()) == Sql().facts(two_fact_task())
    with pytest.raises(AttributeError):
        _ = environment.nothing_of_the_kind
    assert pickle.loads(pickle.dumps(environment)).domain == "sql"
