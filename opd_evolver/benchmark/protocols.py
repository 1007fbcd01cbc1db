"""Ways to measure a policy with a memory, as types that cannot be mixed.

*Frozen*: the memory is read-only. *Streaming*: it grows in test order, one task a wave, on a
scratch copy. A number of one protocol says nothing about a number of the other, so each gives a
column type of its own and a comparison of different ones is refused by the type checker and at run time.
*Fresh* is frozen, with a memory that the policy itself fills before: one round's fast loop on other tasks.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Protocol, TypeVar

from opd_evolver.benchmark.statistics import Outcome
from opd_evolver.fast.epoch import run_epoch
from opd_evolver.fast.maintenance import MaintenanceSettings
from opd_evolver.fast.wave import cut_waves, plan_epoch
from opd_evolver.memory import stores
from opd_evolver.memory.snapshot import restore
from opd_evolver.memory.store import Memory
from opd_evolver.params import Params
from opd_evolver.policy.protocol import Policy
from opd_evolver.records import LedgerRow, Record, Task, canonical_json, digest_of
from opd_evolver.rollout.runner import EnvironmentPool, Runner
from opd_evolver.rollout.settings import EpisodeSettings, Rollout

EMPTY = "empty"


class Measured(Record):
    """Outcomes of one policy with one memory on a fixed list of tasks, and what they were measured on."""

    key: str
    policy_digest: str
    memory_digest: str | None
    tasks_digest: str
    outcomes: tuple[Outcome, ...]


class FrozenColumn(Record):
    """A column of the frozen protocol."""

    protocol: Literal["frozen"] = "frozen"
    measured: Measured


class StreamingColumn(Record):
    """A column of the streaming protocol."""

    protocol: Literal["streaming"] = "streaming"
    measured: Measured


Column = TypeVar("Column", FrozenColumn, StreamingColumn)
Column_co = TypeVar("Column_co", FrozenColumn, StreamingColumn, covariant=True)


@dataclass(frozen=True)
class MemorySource:
    """A memory to measure with: a snapshot's folder and digest, or the empty memory.

    `reembeds`: see `snapshot.restore`.
    """

    folder: Path | None
    digest: str
    reembeds: tuple[str, ...] = ()

    @classmethod
    def empty(cls) -> MemorySource:
        return cls(None, EMPTY)


@dataclass(frozen=True)
class Bench:
    """What a protocol plays with.

    Attributes:
        policy: answers, greedily.
        environments: lends engines.
        params: budgets, batch size, retries.
    """

    policy: Policy
    environments: EnvironmentPool
    params: Params


class BenchmarkProtocol(Protocol[Column_co]):
    """How tasks are played; `FrozenProtocol` or `StreamingProtocol`."""

    name: ClassVar[str]

    def key(self, params: Params) -> str:
        """What of the protocol decides an outcome, for the key of its columns."""
        ...

    @property
    def column(self) -> type[Column_co]:
        """The type of its columns."""
        ...

    def play(self, bench: Bench, memory: MemorySource, tasks: Sequence[Task]) -> list[LedgerRow]:
        """One row per task, in order."""
        ...


def play_alone(bench: Bench, tasks: Sequence[Task]) -> list[LedgerRow]:
    """The policy without any memory: the same under both protocols."""
    settings = EpisodeSettings.of(bench.params, read=False, write=False, greedy=True)
    return _play(bench, None, settings, tasks)


def _play(bench: Bench, memory: Memory | None, settings: EpisodeSettings, tasks: Sequence[Task]) -> list[LedgerRow]:
    runner = Runner(bench.policy, bench.environments, memory, settings, bench.params.fast.outage_retries)
    rollouts = [Rollout(rollout_id=f"bench/{task.task_id}", round=0, wave=0, task=task) for task in tasks]
    return [one.row for one in runner.run(rollouts, bench.params.benchmark.batch_rollouts)]


@dataclass(frozen=True)
class FrozenProtocol:
    """The memory is read, never written: no reflection, no commit, no maintenance."""

    name: ClassVar[str] = "frozen"
    column: type[FrozenColumn] = FrozenColumn

    def key(self, params: Params) -> str:
        """As `BenchmarkProtocol.key`."""
        return self.name

    def play(self, bench: Bench, memory: MemorySource, tasks: Sequence[Task]) -> list[LedgerRow]:
        """As `BenchmarkProtocol.play`."""
        if memory.folder is None:
            return play_alone(bench, tasks)
        settings = EpisodeSettings.of(bench.params, write=False, greedy=True)
        with tempfile.TemporaryDirectory(prefix="opd-frozen-") as scratch:
            live = Path(scratch) / "live"
            restore(memory.folder, live, bench.params.memory, memory.reembeds)
            try:
                with Memory.open(live, bench.params.memory, read_only=True) as opened:
                    return _play(bench, opened, settings, tasks)
            finally:
                stores.discard(live)


def _greedy_maintenance(params: Params) -> MaintenanceSettings:
    settings = MaintenanceSettings.of(params)
    return settings.model_copy(update={"sampling": settings.sampling.model_copy(update={"temperature": 0.0})})


@dataclass(frozen=True)
class StreamingProtocol:
    """The memory grows in test order, W = 1, with maintenance when it is due; the snapshot stays as it is."""

    name: ClassVar[str] = "streaming"
    column: type[StreamingColumn] = StreamingColumn

    def key(self, params: Params) -> str:
        """As `BenchmarkProtocol.key`."""
        return self.name

    def play(self, bench: Bench, memory: MemorySource, tasks: Sequence[Task]) -> list[LedgerRow]:
        """As `BenchmarkProtocol.play`."""
        params = bench.params
        settings = EpisodeSettings.of(params, greedy=True)
        with tempfile.TemporaryDirectory(prefix="opd-streaming-") as scratch:
            live = Path(scratch) / "live"
            if memory.folder is not None:
                restore(memory.folder, live, params.memory, memory.reembeds)
            try:
                with Memory.open(live, params.memory) as opened:
                    keys = opened.ledger.segment_keys()
                    round_ = keys[-1].round + 1 if keys else 1
                    waves = cut_waves(
                        tasks,
                        round=round_,
                        wave_tasks=1,
                        rollouts_per_task=1,
                        microbatch_rollouts=1,
                        maintain_every_tasks=params.fast.maintain_every_tasks
                        if params.fast.maintain_max_steps
                        else None,
                        prefix="stream",
                    )
                    runner = Runner(bench.policy, bench.environments, opened, settings, params.fast.outage_retries)
                    run_epoch(opened, waves, runner, _greedy_maintenance(params))
                    return [row for row in opened.ledger.rows() if row.round == round_]
            finally:
                stores.discard(live)


@dataclass(frozen=True)
class FreshProtocol:
    """A memory that begins empty: one round's fast loop on `filling` as in service, then frozen. Nothing is trained.

    Attributes:
        filling: tasks of the measured families by domain, none of them measured.
    """

    filling: Mapping[str, Sequence[Task]]
    name: ClassVar[str] = "fresh"
    column: type[FrozenColumn] = FrozenColumn

    def key(self, params: Params) -> str:
        """As `BenchmarkProtocol.key`: also the tasks and how they are played."""
        tasks = [canonical_json(task) for domain in sorted(self.filling) for task in self.filling[domain]]
        played = EpisodeSettings.of(params).model_dump(mode="json") | {"fast": params.science()["fast"]}
        return f"{self.name} {digest_of([*tasks, canonical_json(played)])}"

    def play(self, bench: Bench, memory: MemorySource, tasks: Sequence[Task]) -> list[LedgerRow]:
        """As `BenchmarkProtocol.play`; `memory` is the empty one."""
        params = bench.params
        with tempfile.TemporaryDirectory(prefix="opd-fresh-") as scratch:
            live = Path(scratch) / "live"
            try:
                with Memory.open(live, params.memory) as opened:
                    settings = EpisodeSettings.of(params)
                    runner = Runner(bench.policy, bench.environments, opened, settings, params.fast.outage_retries)
                    run_epoch(opened, plan_epoch(params, 1, self.filling), runner, MaintenanceSettings.of(params))
                    return _play(bench, opened, EpisodeSettings.of(params, write=False, greedy=True), tasks)
            finally:
                stores.discard(live)
