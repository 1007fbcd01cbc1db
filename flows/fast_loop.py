"""Fast loop: waves of tasks → the committer → maintenance → the round's memory snapshot."""

from __future__ import annotations

from pathlib import Path

from prefect import flow

from flows.placement import run_step, run_steps
from opd_evolver import lineage
from opd_evolver.steps import plan, progress


@flow(name="fast-loop", persist_result=False)
def fast_loop(root: str, lineage_name: str, round_: int) -> dict[str, str]:
    """One epoch. Returns the digests of the snapshot: entries and ledger."""
    run = lineage.Run(Path(root), lineage.read_identity(Path(root), lineage_name))
    placement = run.params.flows.placement
    waves = plan.n_waves(run)
    run_step(plan.begin_job(run, round_), placement)
    for wave in range(waves):
        progress.report(run, round_, "fast loop", wave, waves)
        run_steps(plan.shard_jobs(run, round_, wave), placement)
        run_step(plan.barrier_job(run, round_, wave), placement)
    progress.report(run, round_, "fast loop", waves, waves)
    return run_step(plan.snapshot_job(run, round_), placement).digests
