"""`step/gpu`: one step as a deployment of its own, for `flows.placement = deployment`."""

from __future__ import annotations

from pathlib import Path

from prefect import flow

from opd_evolver import processes
from opd_evolver import step as contract
from opd_evolver.durable import read_json


@flow(name="step", persist_result=False)
def step(job_path: str) -> None:
    """Run the step that job.json describes; what it leaves is found in its own folder.

    Args:
        job_path: a job.json, on a file system that the caller and this process share.
    """
    path = Path(job_path)
    processes.end_without(read_json(path).get("waiting"))
    contract.run(contract.load_job(path))
