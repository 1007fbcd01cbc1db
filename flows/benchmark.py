"""Benchmark and gate: held-out tasks × {policy alone, policy + memory}; promote, or keep the champion."""

from __future__ import annotations

from pathlib import Path

from prefect import flow

from flows.placement import run_step, run_steps
from opd_evolver import lineage
from opd_evolver.steps import plan, progress


@flow(name="benchmark", persist_result=False)
def benchmark(root: str, lineage_name: str, round_: int, memory_digest: str = "", policy_digest: str = "") -> None:
    """Measure a round (0: the base policy) and, from round 1 on, let the gate decide."""
    run = lineage.Run(Path(root), lineage.read_identity(Path(root), lineage_name))
    placement = run.params.flows.placement
    parts = []
    if placement == "pool" and run.params.flows.shards > 1:
        parts = plan.benchmark_part_jobs(run, round_, memory_digest, policy_digest)

    def tell(done: int) -> None:
        progress.report(run, round_, "benchmark", done, len(parts) + 1)

    tell(0)
    run_steps(parts, placement, tell)
    measured = run_step(plan.benchmark_job(run, round_, memory_digest, policy_digest), placement)
    if round_ > 0:
        run_step(plan.gate_job(run, round_, measured.digests["benchmark"]), placement)
    tell(len(parts) + 1)
