"""The local stack on loopback: Prefect server, a process worker for each pool, MLflow server.

Everything lies below `.opd/` of the project, and a git-ignored `prefect.toml` points Prefect there in
this folder only: nothing of the user's Prefect, MLflow or DVC configuration is read or changed.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from opd_evolver.console import say
from opd_evolver.durable import explained
from opd_evolver.errors import OutageError, SetupError
from opd_evolver.settings import Settings, dotenv, load_settings
from opd_evolver.stack import left, services, weaviate
from opd_evolver.stack.begun import EXTRAS, ON_REQUEST, TOML_HEAD, Begun
from opd_evolver.stack.services import HOST, Stack

# Where a run lies, and what computes it.
DECISIVE = ("OPD_ARTIFACT_ROOT", "OPD_DEVICE", "OPD_ENDPOINT_URL", "OPD_EMBEDDINGS_URL")


def up(settings: Settings | None = None, *, extras: tuple[str, ...] = EXTRAS) -> dict[str, Any]:
    """Start what does not run yet, and deploy the flows of prefect.yaml.

    Args:
        settings: ports and addresses of this machine.
        extras: which of EXTRAS and ON_REQUEST to start beside the Prefect server and the worker of the pool
            `control`.

    Returns:
        The same object as `status`, with `already` (nothing had to be started) and `seconds`.

    Raises:
        SetupError: no project here, a chosen port is busy, or another Prefect address would win over ours.
        OutageError: a service does not start; the rest is stopped again.
    """
    began = time.monotonic()
    project, settings = Path.cwd(), settings or load_settings()
    _check_project(project)
    with _lock(project):
        stack = services.read(project)
        if stack is not None and not stack.serves("prefect"):
            say("the local stack was not stopped cleanly: starting it anew")
            services.stop(stack)
            stack = None
        before = stack
        stack = _ensure(project, settings, stack, extras)
    tree = _tree(project, stack)
    return {**tree, "already": stack == before, "seconds": round(time.monotonic() - began, 1)}


def down() -> dict[str, Any]:
    """Stop what `up` started in this folder, and what killed flows left here, and only that; waits until it is gone."""
    project = Path.cwd()
    names = [f"{pid} (left by a killed flow)" for pid in left.end(project)]
    if services.read(project) is None:
        return {"running": False, "stopped": names, "why": f"no stack was started in {project}"}
    with _lock(project):
        stack = services.read(project)
        names += [] if stack is None else _stop(project, stack)
    return {"running": False, "stopped": names}


def status() -> dict[str, Any]:
    """`running` (all of it), addresses, each service's pid, and what was left by processes that were killed."""
    project = Path.cwd()
    stack = services.read(project)
    if stack is None:
        tree: dict[str, Any] = {"running": False, "why": f"no stack was started in {project}; start one: opd up"}
    else:
        tree = _tree(project, stack)
        if not tree["running"]:
            tree["why"] = "not all services run; start them: opd up"
    if pids := [pid for pid, _ in left.behind(project)]:
        tree["left_behind"] = pids
        tree["mend"] = "opd down ends what a killed flow left behind"
    return tree


def mend(settings: Settings | None = None) -> None:
    """Start again what died of the stack that was started here; nothing when there is none, or all of it runs."""
    stack = services.read(Path.cwd())
    if stack is not None and not all(service.alive() for service in stack.services.values()):
        up(settings, extras=tuple(name for name in (*EXTRAS, *ON_REQUEST) if name in stack.services))


def begun_otherwise() -> list[str]:
    """Site settings with which the worker that was started here began, where this process has others.

    Of those that decide results: a worker hands its own to the flows.
    """
    stack = services.read(Path.cwd())
    if stack is None or not stack.serves("worker-control"):
        return []
    import psutil

    theirs = psutil.Process(stack.services["worker-control"].pid).environ()
    return [name for name in DECISIVE if theirs.get(name) != os.environ.get(name)]


@contextmanager
def running(settings: Settings | None = None, *, extras: tuple[str, ...] = ()) -> Iterator[dict[str, Any]]:
    """`up`, and `down` at the end, also after an error or Ctrl-C; a stack that was there before stays."""
    before = services.read(Path.cwd())
    had_one = before is not None and before.serves("prefect")
    with services.sigterm_raises():
        tree = up(settings, extras=extras)
        try:
            yield tree
        finally:
            if not had_one:
                down()


def _tree(project: Path, stack: Stack) -> dict[str, Any]:
    tree: dict[str, Any] = {
        "running": all(service.alive() for service in stack.services.values()),
        "prefect": f"http://{HOST}:{stack.prefect_port}",
        "mlflow": f"http://{HOST}:{stack.mlflow_port}" if "mlflow" in stack.services else None,
        "weaviate": f"http://{HOST}:{stack.weaviate_port}" if "weaviate" in stack.services else None,
        "services": {
            name: service.pid if service.alive() else "not running" for name, service in stack.services.items()
        },
        "logs": str(project / ".opd" / "logs"),
    }
    return tree


def _check_project(project: Path) -> None:
    if not (project / "prefect.yaml").is_file():
        raise SetupError(f"no prefect.yaml in {project}", "a project's folder", "cd to the project")
    if os.environ.get("PREFECT_API_URL") or dotenv().get("PREFECT_API_URL"):
        raise SetupError(
            "PREFECT_API_URL is set and would win over the local stack",
            "no Prefect address in the environment or .env",
            "unset PREFECT_API_URL, or use that server, as the head of prefect.yaml says",
        )
    toml = project / "prefect.toml"
    if toml.exists() and not toml.read_text(encoding="utf-8").startswith(TOML_HEAD):
        raise SetupError(f"{toml} is your own", "no prefect.toml, or one that `opd up` wrote", f"move {toml} away")


@contextmanager
def _lock(project: Path) -> Iterator[None]:
    """One `opd up` or `opd down` at a time in a project."""
    from filelock import FileLock, Timeout

    path = project / ".opd" / "stack.lock"
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, timeout=2 * services.START_TIMEOUT_S)
        try:
            lock.acquire()
        except Timeout:
            raise OutageError(f"{path} is held", "one `opd up` at a time", "wait for it, or end it") from None
    try:
        yield
    finally:
        lock.release()


def _stop(project: Path, stack: Stack) -> list[str]:
    names = services.stop(stack)
    weaviate.address_path(project).unlink(missing_ok=True)
    toml = project / "prefect.toml"
    if toml.exists() and toml.read_text(encoding="utf-8").startswith(TOML_HEAD):
        toml.unlink()
    services.state_path(project).unlink(missing_ok=True)
    return names


def _ensure(project: Path, settings: Settings, stack: Stack | None, extras: tuple[str, ...]) -> Stack:
    """Bring every service up; when one fails or the user interrupts, leave things as they were."""
    had_one = stack is not None
    if stack is None:
        stack = Stack(
            mark=uuid.uuid4().hex,
            prefect_port=services.choose_port(project, "prefect", settings.prefect_port),
        )
    begun = Begun(project, settings, stack, extras)
    try:
        services.write(project, stack)  # its mark finds even a process that was never recorded
        begun.memory()
        begun.servers()
        begun.workers()
        begun.deploy()
        begun.settle()
    except BaseException:
        if not had_one:
            _stop(project, begun.stack)
        raise
    return begun.stack
