"""Hand a prepared run to whatever carries it out: a deployment with a worker, or a child process here.

The command line speaks to Prefect by deployment name and never imports the flows.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

from opd_evolver import stack
from opd_evolver.durable import write_text
from opd_evolver.errors import OpdError, OutageError, SetupError
from opd_evolver.lineage import Run, read_json
from opd_evolver.records import SCHEMA_VERSION, canonical_json
from opd_evolver.stack import home, left, orphans
from opd_evolver.steps.progress import clear_error, error_path
from opd_evolver.writer import holder

DEPLOYMENT = "coevolve/default"
POLL_S = 0.5
STOP_S = 30.0
LOOK_AFTER_S = 10.0
Tick = Callable[[], None]


class Stopped(OpdError):
    """The run ended before its last round; the exit code is that of the error that stopped it."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def wait_for_writer(run: Run, tick: Tick) -> bool:
    """Wait for a live process that is already at work on this run; True when there was one."""
    waited = False
    while (held := holder(run)) is not None and held["live"]:
        waited = True
        tick()
        time.sleep(POLL_S)
    return waited


def check(run: Run) -> None:
    """After a run was carried out: complete, or the error that stopped it or its logging.

    Raises:
        Stopped: with the recorded message and exit code.
    """
    path = error_path(run.root, run.lineage)
    if path.exists():
        tree = read_json(path)
        raise Stopped(str(tree["message"]), int(tree["exit_code"]))
    if run.is_complete():
        return
    raise Stopped(f"run `{run.lineage}` was interrupted; mend: {resume_command(run)}", 1)


def resume_command(run: Run) -> str:
    return f"opd resume {run.identity.name}"


def last_line(log: Path) -> str:
    """The last thing that a log says, which is where a traceback names its error."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4096))
        lines = file.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "nothing was said")


def need_project() -> None:
    """Flows are a project's, not the library's.

    Raises:
        SetupError: this folder is no project.
    """
    if not Path("flows/coevolve.py").exists():
        raise SetupError(f"no flows/ in {Path.cwd()}", "a project's folder", "cd to the project, or clone it")


def locally(run: Run, tick: Tick) -> None:
    """`python -m flows coevolve` in the project's folder, with an ephemeral Prefect server of its own.

    Raises:
        SetupError: this folder is no project.
    """
    need_project()
    clear_error(run)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PREFECT_PROFILE")},
        "PREFECT_HOME": str(Path(home.LOCAL).resolve()),
        "PREFECT_LOGGING_LEVEL": os.environ.get("PREFECT_LOGGING_LEVEL", "WARNING"),
    }
    log = run.paths.run / "flow.log"
    with log.open("ab") as sink:
        command = [sys.executable, "-m", "flows", "coevolve", "--name", run.identity.name, "--resume", "--local"]
        # A group of its own: Ctrl-C reaches it once, through this process, and nothing of it stays behind.
        child = subprocess.Popen(command, stdout=sink, stderr=sink, env=environment, process_group=0)
        try:
            while child.poll() is None:
                tick()
                time.sleep(POLL_S)
        finally:
            _stop(child)
    tick()
    if child.returncode != 0 and not error_path(run.root, run.lineage).exists() and not run.is_complete():
        code = child.returncode
        why = f"signal {-code}" if code < 0 else f"exit {code}"
        said = f"the flow ended with {why}: {last_line(log)}"
        raise Stopped(f"{said}; see {log}; mend: {resume_command(run)}", max(code, 1))
    check(run)


def _stop(child: subprocess.Popen[bytes]) -> None:
    """End a flow that still runs, and what a killed one left: a step, or Prefect's own server."""
    try:
        child.terminate()  # nothing when it has ended
        child.wait(STOP_S)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        child.kill()
        child.wait()
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


def api_url() -> str | None:
    """The Prefect API this folder or user is configured for, or None."""
    home.settle()
    from prefect.settings import get_current_settings

    url = get_current_settings().api.url
    return str(url) if url else None


def need_deployment(url: str) -> None:
    """The server that is configured has the deployment, and lets this user in.

    Raises:
        SetupError: not so.
    """
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    mend = "opd up, or add --local"
    try:
        with get_client({"timeout": 5.0}, sync_client=True) as client:
            client.read_deployment_by_name(DEPLOYMENT)
        return
    except ObjectNotFound:
        why = f"the Prefect server at {url} has no deployment {DEPLOYMENT}"
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        why = f"the Prefect server at {url} answers HTTP {status}"
        if status in (401, 403):
            why = f"the Prefect server at {url} refuses the key (HTTP {status})"
            mend = "set PREFECT_API_KEY, or PREFECT_API_AUTH_STRING, to a valid one; or add --local"
    except httpx.HTTPError as error:
        why = f"no Prefect server answers at {url} ({type(error).__name__})"
    except ValueError:
        why = f"what answers at {url} is no Prefect API"
    raise SetupError(why, "a server with the deployment and a worker", mend)


def through_worker(run: Run, tick: Tick) -> None:
    """Run `coevolve/default` through its worker and watch it to the end.

    Raises:
        Stopped: the flow run ended otherwise than completed.
        OutageError: the server does not answer any more.
    """
    home.settle()
    import httpx
    from prefect.deployments import run_deployment

    clear_error(run)
    parameters = {"name": run.identity.name, "resume": True}
    try:
        release_zombie(run)
        started: Any = run_deployment(DEPLOYMENT, parameters=parameters, timeout=0, as_subflow=False)
        tree = {"schema_version": SCHEMA_VERSION, "flow_run_id": str(started.id)}
        write_text(run.paths.run / "flow_run.json", canonical_json(tree) + "\n")
        state = _watch(started.id, tick)
    except httpx.HTTPError as error:
        raise OutageError(
            f"the Prefect server does not answer ({type(error).__name__})",
            "a server",
            f"`opd status`, then: {resume_command(run)}",
        ) from error
    tick()
    if not state.is_completed() and not error_path(run.root, run.lineage).exists() and not run.is_complete():
        raise Stopped(f"flow run {started.name} ended {state.name}: {state.message}; mend: {resume_command(run)}", 1)
    check(run)


def _watch(flow_run_id: UUID, tick: Tick) -> Any:
    """The flow run's final state. A local worker that is killed meanwhile is started again."""
    from prefect.client.orchestration import get_client
    from prefect.states import Cancelling

    looked = time.monotonic()
    with get_client(sync_client=True) as client:
        try:
            while (state := client.read_flow_run(flow_run_id).state) is None or not state.is_final():
                tick()
                time.sleep(POLL_S)
                if time.monotonic() - looked > LOOK_AFTER_S:
                    stack.mend()
                    orphans.release(Path.cwd())
                    looked = time.monotonic()
        except KeyboardInterrupt:
            client.set_flow_run_state(flow_run_id, Cancelling())
            raise
    return state


def release_zombie(run: Run) -> None:
    """A flow run whose process was killed stays `Running` and holds its slot: mark it crashed.

    What a killed flow without a deployment left behind is ended, too.
    """
    left.end(Path.cwd())
    orphans.release(Path.cwd())
    held = holder(run)
    if held is None or held["live"] or not held.get("flow_run_id"):
        return
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound
    from prefect.states import Crashed

    with get_client(sync_client=True) as client:
        try:
            state = client.read_flow_run(held["flow_run_id"]).state
        except ObjectNotFound:
            return
        if state is not None and not state.is_final():
            client.set_flow_run_state(held["flow_run_id"], Crashed(message="its process is gone"), force=True)
