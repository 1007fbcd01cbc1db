"""Slow loop: attribution → example sets → contracts → distillation."""

from __future__ import annotations

from pathlib import Path

from prefect import flow

from flows.placement import run_step
from opd_evolver import lineage
from opd_evolver.steps import plan, progress


@flow(name="slow-loop", persist_result=False)
def slow_loop(root: str, lineage_name: str, round_: int, memory_digest: str) -> dict[str, str]:
    """Returns the digests of the examples and of the new weights. A failed contract stops it before training."""
    run = lineage.Run(Path(root), lineage.read_identity(Path(root), lineage_name))
    placement = run.params.flows.placement
    progress.report(run, round_, "examples", 0, 1)
    examples = run_step(plan.examples_job(run, round_, memory_digest), placement).digests["examples"]
    progress.report(run, round_, "contracts", 0, 1)
    run_step(plan.contracts_job(run, round_, memory_digest, examples), placement)
    weights = run_step(plan.distil_job(run, round_, examples), placement).digests["weights"]
    return {"examples": examples, "weights": weights}
