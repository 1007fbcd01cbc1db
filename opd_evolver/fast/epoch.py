"""Waves in one process: micro-batches, barrier, next wave. W = 1 is the streaming protocol.

The flows place shards on workers; this is the same order of the same steps without them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from opd_evolver.fast.barrier import maintain_barrier
from opd_evolver.fast.committer import CommitReport, commit_wave, is_committed, memory_state
from opd_evolver.fast.maintenance import Maintenance, MaintenanceSettings
from opd_evolver.fast.microbatch import MicrobatchResult, run_microbatches
from opd_evolver.fast.wave import Wave, shard_indices
from opd_evolver.memory.store import Memory
from opd_evolver.rollout.runner import Runner


@dataclass(frozen=True)
class WaveReport:
    """What one wave did."""

    wave: Wave
    commit: CommitReport
    maintenance: tuple[Maintenance, ...] = ()


def run_wave(
    memory: Memory,
    wave: Wave,
    runner: Runner,
    maintenance: MaintenanceSettings,
    *,
    lineage: str = "",
    folder: Path | None = None,
    n_shards: int = 1,
) -> WaveReport:
    """Play a wave, commit it and maintain if due. What is committed already is not played again.

    Args:
        memory: open for writing; the runner reads the same one, unchanged until the barrier.
        wave: from `plan_epoch` or `cut_waves`.
        runner: policy, environments and settings; its `memory` is `memory`.
        maintenance: budgets of maintenance.
        lineage: for the segment's header.
        folder: where micro-batches are kept for a restart; None keeps them in memory.
        n_shards: played one after another; changes nothing.

    Raises:
        OutageError: an engine stayed down.
    """
    report = CommitReport(committed=False)
    if not is_committed(memory, wave):
        state = memory_state(memory, wave)
        results: list[MicrobatchResult] = []
        for shard in range(n_shards):
            indices = shard_indices(wave, shard, n_shards)
            results += run_microbatches(wave, indices, runner, memory_state=state, folder=folder)
        report = commit_wave(memory, wave, results, lineage=lineage)
    done = maintain_barrier(
        memory,
        wave,
        runner.policy,
        maintenance,
        lineage=lineage,
        outage_retries=runner.outage_retries,
        sleep=runner.sleep,
    )
    return WaveReport(wave, report, tuple(done))


def run_epoch(
    memory: Memory,
    waves: Sequence[Wave],
    runner: Runner,
    maintenance: MaintenanceSettings,
    *,
    lineage: str = "",
    folder: Path | None = None,
    n_shards: int = 1,
    done: Callable[[WaveReport], None] | None = None,
) -> list[WaveReport]:
    """All waves in order; a restart goes on where it stopped.

    Args:
        done: told after each wave.
        (others): as `run_wave`; each wave has its own folder below `folder`.
    """
    reports = []
    for wave in waves:
        place = None if folder is None else folder / f"wave-{wave.index:02d}"
        report = run_wave(memory, wave, runner, maintenance, lineage=lineage, folder=place, n_shards=n_shards)
        reports.append(report)
        if done is not None:
            done(report)
    return reports
