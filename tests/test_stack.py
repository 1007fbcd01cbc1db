"""The local stack, really started once: what runs, what it leaves alone, what it repairs, what it stops."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from opd_evolver import stack
from opd_evolver.errors import CorruptionError, SetupError
from opd_evolver.processes import me
from opd_evolver.settings import Settings
from opd_evolver.stack import services

PROJECT = Path(__file__).resolve().parents[1]
FLOW = """
from prefect import flow

from flows.written import write


@flow(name="{name}", persist_result=False)
def {name}({parameters}) -> None:
    write({told!r}, {told})
"""
WRITTEN = """
import json
import os
from pathlib import Path


def write(name: str, value: object) -> None:
    tree = {"value": value, "cwd": os.getcwd(), "pid": os.getpid(), "home": os.environ.get("PREFECT_HOME")}
    Path("written.json").write_text(json.dumps(tree))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The project's own prefect.yaml with flows that only say where they ran, and a home of its own."""
    place = tmp_path_factory.mktemp("stack")
    project = place / "project"
    (project / "flows").mkdir(parents=True)
    (place / "home").mkdir()
    shutil.copy(PROJECT / "prefect.yaml", project)
    coevolve = FLOW.format(name="coevolve", parameters="name: str, preset=None, overrides=None", told="name")
    (project / "flows" / "coevolve.py").write_text(coevolve)
    (project / "flows" / "step_flow.py").write_text(
        FLOW.format(name="step", parameters="job_path: str", told="job_path")
    )
    (project / "flows" / "written.py").write_text(WRITTEN)
    (project / "flows" / "__init__.py").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(place / "home"))
        for name in [name for name in os.environ if name.startswith("PREFECT_") and name.endswith(("_URL", "_HOME"))]:
            patch.delenv(name)
        patch.chdir(project)
        yield project


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[dict[str, Any]]:
    tree = stack.up(Settings())
    recorded = services.read(folder)
    assert recorded is not None
    try:
        yield tree
    finally:
        services.stop(recorded)


def _pids(folder: Path) -> dict[str, int]:
    recorded = services.read(folder)
    assert recorded is not None
    return {name: service.pid for name, service in recorded.services.items()}


def _run(tree: dict[str, Any], deployment: str, parameters: dict[str, Any]) -> str:
    """The final state of a flow run that a worker carried out."""
    api = f"{tree['prefect']}/api"
    found = services.request(f"{api}/deployments/name/{deployment}")
    url, deadline = f"{api}/deployments/{found['id']}/create_flow_run", time.monotonic() + 200
    # As Prefect's own client does: its server answers so while its database is busy.
    busy = ({"status": 429}, {"status": 502}, {"status": 503})
    while (begun := services.request(url, {"parameters": parameters}, None, 30)) in busy:
        assert time.monotonic() < deadline, begun
        time.sleep(1)
    assert "id" in begun, begun
    while time.monotonic() < deadline:
        state = services.request(f"{api}/flow_runs/{begun['id']}", timeout_s=30)["state"]
        if state["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"):
            return str(state["type"])
        time.sleep(0.2)
    raise TimeoutError(f"{deployment} did not end; see {tree['logs']}")


def test_up_starts_everything_below_the_project_and_nothing_of_the_user_is_touched(
    folder: Path, running: dict[str, Any]
) -> None:
    assert running["running"] and stack.status()["running"]
    assert set(_pids(folder)) == {"prefect", "mlflow", "worker-control", "worker-gpu"}
    for pid in _pids(folder).values():
        assert os.getsid(pid) == pid != os.getsid(0), "a session of its own"
    listening = {
        c.laddr.ip
        for pid in _pids(folder).values()
        for p in [psutil.Process(pid), *psutil.Process(pid).children(True)]
        for c in p.net_connections("inet")
        if c.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}
    assert running["prefect"] in (folder / "prefect.toml").read_text()
    assert (folder / ".opd" / "prefect" / "prefect.db").is_file()
    assert list(Path(os.environ["HOME"]).rglob("*")) == []


def test_a_flow_run_goes_through_the_worker_of_its_pool_in_the_projects_folder(
    folder: Path, running: dict[str, Any]
) -> None:
    assert _run(running, "coevolve/default", {"name": "x"}) == "COMPLETED"
    written = json.loads((folder / "written.json").read_text())
    assert written["value"] == "x" and written["cwd"] == str(folder)
    assert written["home"] == str(folder / ".opd" / "prefect")
    api = f"{running['prefect']}/api"
    step = services.request(f"{api}/deployments/name/step/gpu")
    coevolve = services.request(f"{api}/deployments/name/coevolve/default")
    assert (step["work_pool_name"], coevolve["work_pool_name"]) == ("gpu", "control")
    assert coevolve["global_concurrency_limit"]["limit"] == 1
    assert coevolve["concurrency_options"]["collision_strategy"] == "ENQUEUE"


def test_up_again_starts_nothing_and_restarts_what_was_killed(folder: Path, running: dict[str, Any]) -> None:
    before = _pids(folder)
    assert stack.up(Settings())["already"]
    assert _pids(folder) == before
    os.kill(before["worker-control"], signal.SIGKILL)
    _gone(before["worker-control"])
    assert not stack.status()["running"]
    assert not stack.up(Settings())["already"]
    after = _pids(folder)
    assert after.pop("worker-control") != before.pop("worker-control")
    assert after == before
    assert stack.status()["running"]


def _gone(pid: int) -> None:
    """Wait until a killed child is reaped."""
    deadline = time.monotonic() + 20
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_busy_port_is_named_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(PROJECT / "prefect.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for name in ("prefect", "mlflow"):
            with pytest.raises(SetupError, match=rf"OPD_{name.upper()}_PORT={port} is busy.*mend") as caught:
                stack.up(Settings(**{f"{name}_port": port}))
            assert caught.value.exit_code == 2
    assert not services.state_path(tmp_path).exists() and not (tmp_path / "prefect.toml").exists()
    assert not stack.status()["running"]


def test_what_is_not_ours_is_neither_overwritten_nor_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SetupError, match=r"no prefect\.yaml"):
        stack.up(Settings())
    shutil.copy(PROJECT / "prefect.yaml", tmp_path)
    (tmp_path / "prefect.toml").write_text('[api]\nurl = "http://team:4200/api"\n')
    with pytest.raises(SetupError, match="is your own"):
        stack.up(Settings())
    monkeypatch.setenv("PREFECT_API_URL", "http://team:4200/api")
    with pytest.raises(SetupError, match="unset PREFECT_API_URL"):
        stack.up(Settings())
    # After a reboot the pid belongs to somebody else, here to this very process.
    left = services.Service(pid=me()["pid"], started=me()["started"] - 1000, log="gone.log")
    services.write(tmp_path, services.Stack(mark="nobody", prefect_port=1, services={"prefect": left}))
    assert not stack.status()["running"]
    assert stack.down()["stopped"] == []
    assert "team" in (tmp_path / "prefect.toml").read_text()
    assert not services.state_path(tmp_path).exists()


def test_a_torn_record_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    services.state_path(tmp_path).parent.mkdir()
    services.state_path(tmp_path).write_text('{"mark": ')
    with pytest.raises(CorruptionError, match=r"stack\.json cannot be read"):
        stack.status()


def test_down_leaves_no_process_and_no_prefect_toml(folder: Path, running: dict[str, Any]) -> None:
    recorded = services.read(folder)
    assert recorded is not None and services.marked(recorded.mark)
    assert sorted(stack.down()["stopped"]) == ["mlflow", "prefect", "worker-control", "worker-gpu"]
    assert services.marked(recorded.mark) == []
    assert not (folder / "prefect.toml").exists() and not services.state_path(folder).exists()
    assert list(Path(os.environ["HOME"]).rglob("*")) == []
    assert "no stack was started" in stack.down()["why"]
