"""One step as a deployment of its own (`step/gpu`), for `flows.placement: deployment`."""

from __future__ import annotations

from pathlib import Path

from prefect import flow

from opd_evolver import step as steps


@flow(name="step", flow_run_name="{job_path}", persist_result=False)
def step(job_path: str) -> None:
    """Run the step that a job.json describes; its result lies in the step's folder."""
    steps.run(steps.load_job(Path(job_path)))
