"""Finds environments by name, and keeps outages apart from failures of the agent.

An outside package adds an environment by an entry point of the group `opd_evolver.environments`
that names a class or function without required arguments (see docs/environments.md).
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from opd_evolver.environments.domain import TIPS_ONLY
from opd_evolver.environments.protocol import Environment
from opd_evolver.errors import OutageError, SetupError
from opd_evolver.records import Level, Split, Step, Task
from opd_evolver.sections import NO_HEADROOM, EnvironmentParams, HeadroomParams

T = TypeVar("T")
GROUP = "opd_evolver.environments"
# Known without being installed, and never shadowed by an outside package.
BUILT_IN = {
    "sql": "opd_evolver.environments.sql:Sql",
    "apps": "opd_evolver.environments.apps:Apps",
    "shell": "opd_evolver.environments.shell:Shell",
    "grid": "opd_evolver.environments.grid:Grid",
    "household": "opd_evolver.environments.household:Household",
}
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0


def names() -> tuple[str, ...]:
    """Every name that `load` knows, sorted."""
    return tuple(sorted({*BUILT_IN, *(point.name for point in importlib.metadata.entry_points(group=GROUP))}))


def loader(worlds: EnvironmentParams) -> Callable[[str], Environment]:
    """`load` for these levels and this headroom, as pools of environments want it."""
    return lambda name: load(name, worlds.levels, worlds.headroom)


def load(name: str, levels: Sequence[Level] = TIPS_ONLY, headroom: HeadroomParams = NO_HEADROOM) -> Environment:
    """A new instance of an environment.

    Args:
        name: a built-in domain or an entry point of the group `opd_evolver.environments`.
        levels: home levels of the families of a built-in domain; an outside one has its own.
        headroom: of a built-in domain, see `environments/headroom.py`.

    Raises:
        SetupError: the name is unknown (the nearest one is named), its package cannot be imported, or what it
            names is not an environment.
    """
    made = _factory(name)(levels=levels, headroom=headroom) if name in BUILT_IN else _factory(name)()
    if not isinstance(made, Environment):
        raise SetupError(
            f"environment {name!r} is a {type(made).__name__} without {', '.join(_missing(made))}",
            "the methods of opd_evolver.environments.protocol.Environment",
            "see docs/environments.md",
        )
    if made.domain != name:
        raise SetupError(
            f"environment {name!r} calls its domain {made.domain!r}", "the same name", f"set `domain = {name!r}`"
        )
    return made


def _factory(name: str) -> Callable[..., Any]:
    try:
        if name in BUILT_IN:
            module, attribute = BUILT_IN[name].split(":")
            found: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
            return found
        for point in importlib.metadata.entry_points(group=GROUP, name=name):
            found = point.load()
            return found
    except (ImportError, AttributeError) as error:
        raise SetupError(
            f"environment {name!r} cannot be imported: {error}",
            "an importable module and attribute",
            "install the package that offers it, with its dependencies",
        ) from error
    near = difflib.get_close_matches(name, names(), n=1, cutoff=0.0)
    raise SetupError(
        f"unknown environment {name!r}",
        f"one of {', '.join(names())}",
        f"did you mean {near[0]!r}? Others come with packages that offer an entry point in {GROUP}",
    )


def _missing(made: object) -> list[str]:
    return [part for part in ("domain", "tasks", "reset", "step", "close") if not hasattr(made, part)]


def with_retries(environment: Environment, retries: int, pause: Callable[[float], None] = time.sleep) -> Retrying:
    """An environment whose outages are retried with back-off; see `Retrying`."""
    return Retrying(environment, retries, pause)


class Retrying:
    """Wraps an environment: an `OutageError` is retried, then raised; it never ends an episode as a failure.

    After an outage in the middle of an episode the task is reset and its actions are played again, so that no
    action counts twice. Everything else (oracle, facts, …) goes through to the environment.

    Args:
        environment: what is wrapped.
        retries: further tries after the first one.
        pause: waits so many seconds.
    """

    def __init__(self, environment: Environment, retries: int, pause: Callable[[float], None] = time.sleep) -> None:
        self.domain = environment.domain
        self._environment = environment
        self._retries = retries
        self._pause = pause
        self._task: Task | None = None
        self._played: list[tuple[str, Step]] = []

    def __getattr__(self, name: str) -> Any:
        # Copying and unpickling ask for attributes before __init__ has run.
        if name.startswith("__") or "_environment" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self._environment, name)

    def tasks(self, split: Split, n: int, seed: int = 0) -> Sequence[Task]:
        """The environment's tasks; an outage (a remote task list) is retried too."""
        return self._retried(lambda _: self._environment.tasks(split, n, seed))

    def reset(self, task: Task) -> str:
        """Start `task`.

        Raises:
            OutageError: the engine is still down after the last retry.
        """
        self._task, self._played = task, []
        return self._retried(lambda _: self._environment.reset(task))

    def step(self, action: str) -> Step:
        """Apply one action exactly once.

        Raises:
            OutageError: the engine is still down after the last retry, or answered the replay differently.
        """

        def play(attempt: int) -> Step:
            if attempt:
                self._replay()
            return self._environment.step(action)

        step = self._retried(play)
        self._played.append((action, step))
        return step

    def close(self) -> None:
        self._environment.close()

    def _replay(self) -> None:
        if self._task is None:
            return
        self._environment.reset(self._task)
        for action, before in self._played:
            if self._environment.step(action).observation != before.observation:
                raise OutageError(
                    f"{self.domain}: after an outage {action!r} was answered differently than before",
                    "a deterministic environment",
                    f"opd check-env {self.domain}",
                )

    def _retried(self, play: Callable[[int], T]) -> T:
        attempt = 0
        while True:
            try:
                return play(attempt)
            except OutageError:
                if attempt >= self._retries:
                    raise
                self._pause(min(FIRST_PAUSE_S * 2**attempt, LONGEST_PAUSE_S))
                attempt += 1
