"""The local stack on loopback: Prefect server, a process worker for each pool, MLflow server.

Everything lies below `.opd/` of the project, and a git-ignored `prefect.toml` points Prefect there in
this folder only: nothing of the user's Prefect, MLflow or DVC configuration is read or changed.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from opd_evolver.console import say
from opd_evolver.durable import explained, write_text
from opd_evolver.errors import OutageError, SetupError
from opd_evolver.settings import Settings, dotenv, load_settings
from opd_evolver.stack import services
from opd_evolver.stack.services import HOST, Stack

# A parent that waits on its own one-slot pool never wakes: steps run in a pool of their own.
POOLS = {"control": None, "gpu": 1}
# What a run can do without: MLflow's server only shows what is in its database, and the pool `gpu`
# serves `flows.placement = deployment` alone.
EXTRAS = ("mlflow", "worker-gpu")
TOML_HEAD = "# written by `opd up` for this folder only; `opd down` removes it"
DEPLOY_TIMEOUT_S = 180.0


def up(settings: Settings | None = None, *, extras: tuple[str, ...] = EXTRAS) -> dict[str, Any]:
    """Start what does not run yet, and deploy the flows of prefect.yaml.

    Args:
        settings: ports and addresses of this machine.
        extras: which of EXTRAS to start beside the Prefect server and the worker of the pool `control`.

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
    """Stop what `up` started in this folder, and only that; waits until it is gone."""
    project = Path.cwd()
    if services.read(project) is None:
        return {"running": False, "stopped": [], "why": f"no stack was started in {project}"}
    with _lock(project):
        stack = services.read(project)
        names = [] if stack is None else _stop(project, stack)
    return {"running": False, "stopped": names}


def status() -> dict[str, Any]:
    """`running` (all of it), addresses, and each service's pid."""
    project = Path.cwd()
    stack = services.read(project)
    if stack is None:
        return {"running": False, "why": f"no stack was started in {project}; start one: opd up"}
    tree = _tree(project, stack)
    if not tree["running"]:
        tree["why"] = "not all services run; start them: opd up"
    return tree


def mend(settings: Settings | None = None) -> None:
    """Start again what died of the stack that was started here; nothing when there is none, or all of it runs."""
    stack = services.read(Path.cwd())
    if stack is not None and not all(service.alive() for service in stack.services.values()):
        up(settings, extras=tuple(name for name in EXTRAS if name in stack.services))


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
            "unset PREFECT_API_URL, or use that server: prefect --no-prompt deploy --all",
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
    begun = _Begun(project, settings, stack, extras)
    try:
        begun.servers()
        begun.workers()
        begun.deploy()
        begun.settle()
    except BaseException:
        if not had_one:
            _stop(project, begun.stack)
        raise
    return begun.stack


class _Begun:
    """A stack on its way up. It is recorded after every process, so that `opd down` finds each one."""

    def __init__(self, project: Path, settings: Settings, stack: Stack, extras: tuple[str, ...]) -> None:
        self.project, self.settings, self.stack = project, settings, stack
        self._mlflow = "mlflow" in extras and not settings.mlflow_tracking_uri
        # Asked for before anything starts, so that a busy port costs nobody a minute.
        new_port = self._mlflow and not stack.serves("mlflow")
        self._mlflow_port = services.choose_port(project, "mlflow", settings.mlflow_port) if new_port else 0
        self._pools_served = [pool for pool in POOLS if f"worker-{pool}" not in EXTRAS or f"worker-{pool}" in extras]
        self.api = f"http://{HOST}:{stack.prefect_port}/api"
        self.env = services.environment(project, stack.mark, self.api)

    def _record(self, **changes: Any) -> None:
        self.stack = self.stack.model_copy(update=changes)
        services.write(self.project, self.stack)

    def _start(self, name: str, *arguments: str) -> None:
        if self.stack.serves(name):
            return
        say(f"local stack: starting {name}")
        service = services.spawn(self.project, name, arguments, self.env)
        self._record(services={**self.stack.services, name: service})

    def servers(self) -> None:
        """The Prefect server, and then MLflow's while the rest is set up."""
        services.write(self.project, self.stack)  # its mark finds even a process that was never recorded
        port = str(self.stack.prefect_port)
        self._start("prefect", "prefect", "--no-prompt", "server", "start", "--host", HOST, "--port", port)
        home = self.project / ".opd" / "prefect"
        write_text(self.project / "prefect.toml", f'{TOML_HEAD}\nhome = "{home}"\n\n[api]\nurl = "{self.api}"\n')
        health = f"{self.api}/health"
        services.wait("prefect", self.stack.services["prefect"], lambda: services.request(health) is True)
        if self._mlflow and not self.stack.serves("mlflow"):
            self._start_mlflow()

    def _start_mlflow(self) -> None:
        """On the database that a run writes to without a server."""
        port = self._mlflow_port
        root = self.settings.artifact_root.resolve()
        store = ("--backend-store-uri", f"sqlite:///{root / 'mlflow.db'}")
        files = ("--artifacts-destination", str(root / "mlartifacts"))
        self._start("mlflow", "mlflow", "server", *store, *files, "--host", HOST, "--port", str(port), "--workers", "1")
        self._record(mlflow_port=port)

    def workers(self) -> None:
        """The pools, and one process worker for each that is served."""
        self._pools()
        for pool in self._pools_served:
            command = ("worker", "start", "--pool", pool, "--type", "process", "--name", f"opd-{pool}")
            self._start(f"worker-{pool}", "prefect", "--no-prompt", *command)

    def _pools(self) -> None:
        missing = [pool for pool in POOLS if self._ask(f"work_pools/{pool}") == {"status": 404}]
        if not missing:
            return
        known = self._ask("collections/views/aggregate-worker-metadata")
        template = known["prefect"]["process"]["default_base_job_configuration"]
        for pool in missing:
            body = {"name": pool, "type": "process", "base_job_template": template, "concurrency_limit": POOLS[pool]}
            made = self._ask("work_pools/", body)
            # 409: made by a request whose answer came too late
            if made.get("name") != pool and made != {"status": 409}:
                raise OutageError(f"the work pool {pool} was not made: {made}", "a work pool", "opd down; opd up")

    def _ask(self, path: str, tree: object = None) -> dict[str, Any]:
        """A request that is repeated until the server answers; on a busy machine it may take its time."""
        answer: Any = None

        def answered() -> bool:
            nonlocal answer
            answer = services.request(f"{self.api}/{path}", tree, timeout_s=30)
            return isinstance(answer, dict)

        services.wait("prefect", self.stack.services["prefect"], answered)
        return dict(answer)

    def deploy(self) -> None:
        """`prefect deploy --all`, again only when prefect.yaml has changed."""
        digest = hashlib.sha256((self.project / "prefect.yaml").read_bytes()).hexdigest()
        if self.stack.deployed == digest:
            return
        say("local stack: deploying the flows of prefect.yaml")
        log = self.project / ".opd" / "logs" / "deploy.log"
        with explained(log), log.open("wb") as sink:
            try:
                done = subprocess.run(
                    [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"],
                    cwd=self.project,
                    env=self.env,
                    stdin=subprocess.DEVNULL,
                    stdout=sink,
                    stderr=sink,
                    timeout=DEPLOY_TIMEOUT_S,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                raise OutageError(f"deploying took over {DEPLOY_TIMEOUT_S:.0f} s", "it to end", f"see {log}") from None
        if done.returncode != 0:
            raise SetupError(
                f"prefect deploy failed: {services.last_line(log)}", "flows that can be deployed", f"see {log}"
            )
        self._record(deployed=digest)

    def settle(self) -> None:
        """MLflow answers and each pool's worker polls."""
        if self._mlflow:
            url = f"http://{HOST}:{self.stack.mlflow_port}/health"
            services.wait("mlflow", self.stack.services["mlflow"], lambda: services.request(url) == "OK")
        for pool in self._pools_served:
            services.wait(f"worker-{pool}", self.stack.services[f"worker-{pool}"], partial(self._polls, pool))

    def _polls(self, pool: str) -> bool:
        found = services.request(f"{self.api}/work_pools/{pool}/workers/filter", {})
        return isinstance(found, list) and any(worker.get("status") == "ONLINE" for worker in found)
