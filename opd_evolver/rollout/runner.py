"""Where rollouts get their environments, and the one call that plays many of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType
from typing import Self

from opd_evolver.environments.protocol import Environment
from opd_evolver.memory.levels import Count
from opd_evolver.policy.protocol import Policy
from opd_evolver.records import Entry, Episode, GenerationRequest, Reply
from opd_evolver.rollout.budget import policy_count
from opd_evolver.rollout.driver import Sleep, Start, drive
from opd_evolver.rollout.episode import MemoryView, episode
from opd_evolver.rollout.settings import EpisodeSettings, Rollout

Load = Callable[[str], Environment]


class EnvironmentPool:
    """Environments lent to one episode each. One that failed is closed, never lent again.

    Use as a context manager: leaving it closes all that are left.
    """

    def __init__(self, load: Load) -> None:
        """Args: load: a fresh environment of a domain."""
        self._load = load
        self._free: dict[str, list[Environment]] = {}

    @contextmanager
    def lend(self, domain: str) -> Iterator[Environment]:
        """An environment of `domain` for one episode."""
        free = self._free.setdefault(domain, [])
        env = free.pop() if free else self._load(domain)
        try:
            yield env
        except BaseException:
            env.close()
            raise
        free.append(env)

    def close(self) -> None:
        for free in self._free.values():
            while free:
                free.pop().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class FrozenView:
    """The memory as it stands now, read at most once per query: the K rollouts of a task read the same."""

    def __init__(self, memory: MemoryView) -> None:
        self._memory = memory
        self._found: dict[tuple[str, str, str, int, float, bool], tuple[tuple[Entry, float], ...]] = {}

    def retrieve(
        self, query: str, *, domain: str, scope: str, limit: int, alpha: float, scope_filter: bool
    ) -> Sequence[tuple[Entry, float]]:
        """As `MemoryView.retrieve`."""
        key = (query, domain, scope, limit, alpha, scope_filter)
        if key not in self._found:
            self._found[key] = tuple(
                self._memory.retrieve(
                    query, domain=domain, scope=scope, limit=limit, alpha=alpha, scope_filter=scope_filter
                )
            )
        return self._found[key]


@dataclass(frozen=True)
class Runner:
    """All it takes to play rollouts. The fast loop and the benchmark use the same.

    Attributes:
        policy: answers requests.
        environments: lends one to each episode.
        memory: what episodes read; None with `settings.read` off.
        settings: abilities, budgets, sampling.
        outage_retries: restarts an episode may take.
        sleep: waits seconds between retries.
        count: what the entry budget counts; the policy's own by default, see rollout/budget.py.
    """

    policy: Policy
    environments: EnvironmentPool
    memory: MemoryView | None
    settings: EpisodeSettings
    outage_retries: int = 3
    sleep: Sleep = time.sleep
    count: Count | None = None

    @cached_property
    def _count(self) -> Count:
        return self.count or policy_count(self.settings.budget_unit, self.policy)

    def start(self, rollout: Rollout, memory: MemoryView | None) -> Start[Episode]:
        """A restartable episode that borrows its environment and gives it back."""

        count = self._count

        def begin() -> Generator[GenerationRequest, Reply, Episode]:
            with self.environments.lend(rollout.task.domain) as env:
                return (yield from episode(rollout, env, memory, self.settings, count=count))

        return begin

    def run(self, rollouts: Sequence[Rollout], batch: int) -> list[Episode]:
        """Finished episodes in the order of `rollouts`; the memory is read as it stands now.

        Raises:
            OutageError: an engine stayed down through all retries.
        """
        view = FrozenView(self.memory) if self.memory is not None else None
        starts = [self.start(rollout, view) for rollout in rollouts]
        return drive(self.policy, starts, batch, outage_retries=self.outage_retries, sleep=self.sleep)
