"""Processes of the local stack: each in a session of its own, known by pid and start time, marked in its environment.

The mark finds what a service left behind (a flow run outlives a killed worker, and sits in a session
of its own), so that nothing is ever looked for by name.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from opd_evolver.durable import explained, write_text
from opd_evolver.errors import CorruptionError, OutageError, SetupError
from opd_evolver.processes import alive, born, carrying, started
from opd_evolver.records import SCHEMA_VERSION, Record

HOST = "127.0.0.1"
MARK = "EVOLVER_STACK"
# A server that starts beside other work on two cores takes a while.
START_TIMEOUT_S = 240.0
STOP_TIMEOUT_S = 10.0
POLL_S = 0.2
# Below the range from which kernels take ports for outgoing connections.
FIRST_PORT, N_PORTS = 20000, 10000


class Service(Record):
    """One started process, the leader of its own session."""

    pid: int
    started: float
    birth: str | None = None
    log: str

    def alive(self) -> bool:
        return alive(self.pid, self.started, self.birth)


class Stack(Record):
    """What .opd/stack.json holds. `mark` stands in the environment of every process started here."""

    schema_version: int = SCHEMA_VERSION
    mark: str
    prefect_port: int
    mlflow_port: int | None = None
    weaviate_port: int | None = None
    deployed: str = ""
    services: dict[str, Service] = Field(default_factory=dict)

    def serves(self, name: str) -> bool:
        """Whether the very process that was started as `name` still runs."""
        return name in self.services and self.services[name].alive()


def state_path(project: Path) -> Path:
    return project / ".opd" / "stack.json"


def read(project: Path) -> Stack | None:
    """The stack recorded in this project, or None.

    Raises:
        CorruptionError: the record cannot be read.
    """
    path = state_path(project)
    try:
        return Stack.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, ValidationError, OSError) as error:
        raise CorruptionError(
            f"{path} cannot be read: {str(error).splitlines()[0]}",
            "the record that `opd up` wrote",
            f"rm {path} (then stop the processes by hand)",
        ) from None


def write(project: Path, stack: Stack) -> None:
    write_text(state_path(project), stack.model_dump_json(indent=1) + "\n")


def _free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As the servers do: a port that only waits for its last packets counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def choose_port(project: Path, name: str, chosen: int | None) -> int:
    """The chosen port, or a free one: the same for the same project as long as nobody else has it.

    Raises:
        SetupError: the chosen port is taken.
    """
    variable = f"OPD_{name.upper()}_PORT"
    if chosen is not None:
        if _free(chosen):
            return chosen
        raise SetupError(f"{variable}={chosen} is busy", "a free port", f"choose another {variable}, or unset it")
    offset = int.from_bytes(hashlib.sha256(f"{project}/{name}".encode()).digest()[:4], "big")
    for step in range(N_PORTS):
        port = FIRST_PORT + (offset + step) % N_PORTS
        if _free(port):
            return port
    raise SetupError("no free port from 20000 to 29999", "one", f"choose one by {variable}")


def environment(project: Path, mark: str, api_url: str) -> dict[str, str]:
    """Environment of every service: nothing of the user's Prefect set-up, all state below .opd/, telemetry off."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return {
        **inherited,
        MARK: mark,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{inherited.get('PATH', os.defpath)}",
        "NO_PROXY": ",".join(word for word in (inherited.get("NO_PROXY", ""), HOST, "localhost") if word),
        "PREFECT_HOME": str(project / ".opd" / "prefect"),
        "PREFECT_API_URL": api_url,
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "DVC_NO_ANALYTICS": "true",
        "GX_ANALYTICS_ENABLED": "false",
        "OMP_WAIT_POLICY": inherited.get("OMP_WAIT_POLICY", "PASSIVE"),  # as in processes.share_cores
        "PYTHONUNBUFFERED": "1",
    }


def spawn(project: Path, name: str, command: Sequence[str], env: Mapping[str, str]) -> Service:
    """Start a command in a session of its own, with its output in .opd/logs/<name>.log."""
    log = project / ".opd" / "logs" / f"{name}.log"
    with explained(log):
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as sink:
            child = subprocess.Popen(
                list(command),
                cwd=project,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                start_new_session=True,
            )
    began = started(child.pid)
    if began is None:
        raise OutageError(f"{name} ended at once: {last_line(log)}", "a running process", f"see {log}")
    return Service(pid=child.pid, started=began, birth=born(child.pid), log=str(log))


def last_line(log: Path) -> str:
    """The last line of a log that says something."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "nothing was logged")


def request(url: str, tree: object = None, method: str | None = None, timeout_s: float = 5.0) -> Any:
    """One JSON request to a local service; None when it does not answer yet."""
    data = None if tree is None else json.dumps(tree).encode()
    asked = urllib.request.Request(url, data=data, headers={"content-type": "application/json"}, method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(asked, timeout=timeout_s) as answer:
            body = answer.read()
    except urllib.error.HTTPError as error:
        return {"status": error.code}
    except (OSError, ValueError):
        return None
    try:
        return json.loads(body) if body else {}
    except ValueError:
        return body.decode(errors="replace")


def wait(name: str, service: Service, ready: Callable[[], bool]) -> None:
    """Wait until a service is ready.

    Raises:
        OutageError: it died, or was not ready in time.
    """
    deadline = time.monotonic() + START_TIMEOUT_S
    log = Path(service.log)
    while not ready():
        if not service.alive():
            raise OutageError(f"{name} ended while starting: {last_line(log)}", "a running service", f"see {log}")
        if time.monotonic() > deadline:
            raise OutageError(f"{name} was not ready after {START_TIMEOUT_S:.0f} s", "an answer", f"see {log}")
        time.sleep(POLL_S)


def marked(mark: str) -> list[tuple[int, float]]:
    """(pid, start time) of every process of ours that carries the mark, this one excepted."""
    return [(pid, began) for pid, began, value in carrying(MARK) if value == mark]


def _signal(members: Iterable[tuple[int, float]], number: signal.Signals) -> None:
    for pid, began in members:
        if alive(pid, began):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue  # ended between the check and the signal


def end(members: Callable[[], list[tuple[int, float]]]) -> None:
    """TERM to all members, wait, then KILL whoever is left."""
    _signal(members(), signal.SIGTERM)
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while (left := [pair for pair in members() if alive(*pair)]) and time.monotonic() < deadline:
        _reap(pid for pid, _ in left)
        time.sleep(POLL_S)
    _signal(members(), signal.SIGKILL)
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while (left := [pair for pair in members() if alive(*pair)]) and time.monotonic() < deadline:
        _reap(pid for pid, _ in left)
        time.sleep(POLL_S)


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """Within the block, TERM and HUP are Ctrl-C, so that what was started is stopped and ends are told alike."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.default_int_handler) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _reap(pids: Iterable[int]) -> None:
    for pid in pids:
        try:
            os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            continue  # started by an earlier `opd up`


def stop(stack: Stack) -> list[str]:
    """Stop the stack, workers and their flow runs first; returns the services that were alive."""
    names = [name for name, service in stack.services.items() if service.alive()]
    servers = {service.pid for name, service in stack.services.items() if not name.startswith("worker")}
    kept = servers | {pid for server in servers for pid in _descendants(server)}
    end(lambda: [pair for pair in _members(stack) if pair[0] not in kept])
    end(lambda: _members(stack))
    return names


def _members(stack: Stack) -> list[tuple[int, float]]:
    # Start times of now: those that were recorded are others once the clock was set.
    alive_now = ((one.pid, started(one.pid)) for one in stack.services.values() if one.alive())
    recorded = [(pid, began) for pid, began in alive_now if began is not None]
    return sorted(set(recorded) | {pair for pair in marked(stack.mark) if pair[0] not in {pid for pid, _ in recorded}})


def _descendants(pid: int) -> list[int]:
    import psutil

    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
