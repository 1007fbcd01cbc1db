"""Flow runs whose process was killed: they stay `Running` and hold the deployment's only slot until somebody says so.

A worker reports the death of its own flow runs; when the worker was killed too, nobody does.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from opd_evolver.processes import started
from opd_evolver.stack import services
from opd_evolver.stack.services import HOST, Stack

UNFINISHED = ("RUNNING", "PENDING", "CANCELLING")


def release(project: Path) -> list[str]:
    """Mark as crashed what the workers of this folder's stack began and no process carries on.

    Args:
        project: the folder where `opd up` was called; without a running stack nothing happens, since only on
            this machine can a process be looked up.

    Returns:
        The ids of those flow runs.
    """
    stack = services.read(project)
    if stack is None or not stack.serves("prefect"):
        return []
    api = f"http://{HOST}:{stack.prefect_port}/api"
    wanted = {"flow_runs": {"state": {"type": {"any_": list(UNFINISHED)}}}}
    found = services.request(f"{api}/flow_runs/filter", wanted, timeout_s=30)
    runs = found if isinstance(found, list) else []
    owners = [run for run in runs if run.get("deployment_id") or not run.get("parent_task_run_id")]
    gone = [run for run in owners if run.get("deployment_id") and _orphaned(run, stack)]
    if len(gone) == len(owners):
        gone = runs  # subflows share their owner's process, and no owner is left
    for run in gone:
        crashed = {"type": "CRASHED", "name": "Crashed", "message": "its process is gone"}
        services.request(f"{api}/flow_runs/{run['id']}/set_state", {"state": crashed, "force": True}, timeout_s=30)
    return [str(run["id"]) for run in gone]


def _orphaned(run: dict[str, Any], stack: Stack) -> bool:
    pid = str(run.get("infrastructure_pid") or "")
    if pid.isdigit():
        return started(int(pid)) is None
    # No process yet: only the worker that took it would start one, and a later worker never does.
    worker = stack.services.get(f"worker-{run.get('work_pool_name')}")
    since = datetime.fromisoformat(run["state"]["timestamp"]).timestamp()
    return worker is None or not worker.alive() or worker.started > since
