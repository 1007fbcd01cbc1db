"""Steps of the fast loop: open the round's memory, play shards of waves, commit and maintain, snapshot."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from opd_evolver.console import say
from opd_evolver.durable import write_text
from opd_evolver.environments import registry
from opd_evolver.fast.barrier import maintain_barrier
from opd_evolver.fast.committer import commit_wave, counted, is_committed, memory_state, rejections
from opd_evolver.fast.maintenance import MaintenanceSettings
from opd_evolver.fast.microbatch import run_microbatches
from opd_evolver.fast.wave import Wave, plan_epoch, shard_indices
from opd_evolver.lineage import Run, RunPaths, read_identity
from opd_evolver.memory import edits
from opd_evolver.memory.snapshot import restore, write_snapshot
from opd_evolver.memory.store import Memory
from opd_evolver.records import MAINTAIN
from opd_evolver.rollout.runner import EnvironmentPool, Runner
from opd_evolver.rollout.settings import EpisodeSettings
from opd_evolver.rollout.tools import SHOWN_ONLY
from opd_evolver.step import Job, StepResult, result
from opd_evolver.steps import plan, resources
from opd_evolver.steps.progress import report_job

REJECTED = "rejected.txt"
"""Beside a barrier's result: `reason: detail`, one proposal a line."""


def begin(job: Job, out: Path) -> StepResult:
    """The round's live memory: the champion's snapshot, or empty, and the edits by hand that it does not have yet.

    What a killed round committed is kept.
    """
    live = job.path("live")
    if not live.exists() and "start" in job.inputs:
        restore(job.path("start"), live, job.typed_params().memory, job.options.get("reembeds", ()))
    run = Run(Path(job.root), read_identity(Path(job.root), job.lineage))
    with _written(job) as memory:
        # Whatever waits by now, also what was added while the memory was being restored.
        waiting = edits.read_all(plan.edit_files(run, job.round))
        begun = any(key.round >= job.round for key in memory.ledger.segment_keys())
        n_added = 0 if begun else edits.apply(memory, waiting, job.round, job.lineage)
        return result(job, metrics={"n_entries": len(memory.entries()), "n_edits": len(waiting), "n_added": n_added})


def _wave(job: Job) -> Wave:
    params = job.typed_params()
    n = params.fast.tasks_per_domain
    tasks = resources.tasks_of(params, "deploy-train", n, skip=(job.round - 1) * n)
    return plan_epoch(params, job.round, tasks)[int(job.options["wave"])]


@contextmanager
def _written(job: Job) -> Iterator[Memory]:
    """The live memory for commits, which say nothing of what was erased in any lineage of the run."""
    name = job.lineage.partition("~")[0]
    with resources.live_memory(job, read_only=False) as memory:
        memory.forgotten = edits.forgotten(RunPaths(Path(job.root), name).run)
        yield memory


@contextmanager
def _runner(job: Job, memory: Memory) -> Iterator[Runner]:
    params = job.typed_params()
    with EnvironmentPool(registry.loader(params.environments)) as pool:
        yield Runner(
            resources.policy(job), pool, memory, EpisodeSettings.of(params), outage_retries=params.fast.outage_retries
        )


def _microbatches(job: Job) -> Path:
    wave = int(job.options["wave"])
    return RunPaths(Path(job.root), job.lineage).step(job.round, f"wave-{wave:02d}") / "microbatches"


def shard(job: Job, out: Path) -> StepResult:
    """The micro-batches of one shard, each a durable file; valid ones are not played again."""
    wave = _wave(job)
    with resources.live_memory(job, read_only=True) as memory:
        if is_committed(memory, wave):
            return result(job)
        with _runner(job, memory) as runner:
            indices = shard_indices(wave, int(job.options["shard"]), int(job.options["n_shards"]))
            run_microbatches(
                wave,
                indices,
                runner,
                memory_state=memory_state(memory, wave),
                folder=_microbatches(job),
                done=lambda done, total: report_job(job, f"wave {wave.index + 1}", done, total),
            )
    return result(job)


def barrier(job: Job, out: Path) -> StepResult:
    """Commit the wave in task order; maintain when it is due."""
    wave = _wave(job)
    told = out / REJECTED
    with _written(job) as memory, _runner(job, memory) as runner:
        metrics: dict[str, object] = {}
        if not is_committed(memory, wave):
            state = memory_state(memory, wave)
            # Those whose file was lost or torn since their shard ended are played here.
            everything = range(len(wave.microbatches))
            results = run_microbatches(wave, everything, runner, memory_state=state, folder=_microbatches(job))
            # Before the commit: a step that is killed behind it has nothing left to count.
            write_text(told, "".join(f"{line}\n" for line in rejections(results)))
            report = commit_wave(memory, wave, results, lineage=job.lineage)
            metrics = {"n_rollouts": report.n_rollouts, "mean_return": report.mean_return, "n_new": report.n_new}
        if memory.forgotten:  # the files may tell what the commit did not
            shutil.rmtree(_microbatches(job), ignore_errors=True)
        rejected = counted(told.read_text(encoding="utf-8").splitlines() if told.exists() else ())
        metrics["rejected"] = rejected
        if rejected:
            listed = ", ".join(f"{reason} {n}" for reason, n in rejected.items())
            n = sum(rejected.values())
            say(f"round {job.round}: wave {wave.index + 1}: {n} entries rejected ({listed}): {told}")
        params = job.typed_params()
        maintain_barrier(
            memory,
            wave,
            runner.policy,
            MaintenanceSettings.of(params),
            lineage=job.lineage,
            outage_retries=params.fast.outage_retries,
        )
    return result(job, metrics=metrics)


def _rejected(job: Job) -> dict[str, int]:
    """Rejected proposals of the round's waves by reason."""
    steps = RunPaths(Path(job.root), job.lineage).step(job.round, "")
    lines = [line for path in steps.glob(f"wave-*/barrier/{REJECTED}") for line in path.read_text("utf-8").splitlines()]
    return counted(lines)


def snapshot(job: Job, out: Path) -> StepResult:
    """The round's memory as an immutable, canonical folder."""
    with resources.live_memory(job, read_only=True) as memory:
        info = write_snapshot(memory, job.path("snapshot"), job.round, job.lineage)
        rows = [row for row in memory.ledger.rows(job.round) if row.group != MAINTAIN]
        operations = [
            one for segment in memory.ledger.read_all() for one in segment.operations if one.round == job.round
        ]
    return result(
        job,
        digests={"entries": info.digest_entries, "ledger": info.digest_ledger},
        metrics={
            "memories": dict(info.n_by_level),
            "maintenance": {
                "merged": sum(one.kind == "merge" for one in operations),
                "retired": sum(len({*one.retired} - {*one.created}) for one in operations),
            },
            "rejected": _rejected(job),
            "n_rollouts": len(rows),
            "tokens": sum(row.n_prompt_tokens + row.n_reply_tokens for row in rows),
            "train_success": sum(row.success for row in rows) / max(1, len(rows)),
            "select_fallbacks": sum(row.select_fallback for row in rows) / max(1, len(rows)),
            "tool_calls": sum(turn.called is not None for row in rows for turn in row.turns),
            "tools_shown_only": sum(turn.result == SHOWN_ONLY for row in rows for turn in row.turns),
        },
    )
