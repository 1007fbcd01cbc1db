"""Processes of the local stack without Prefect: ports, environment, whom `down` stops and whom it never touches."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from opd_evolver import stack
from opd_evolver.errors import CorruptionError, OutageError, SetupError
from opd_evolver.processes import alive, started
from opd_evolver.settings import load_settings
from opd_evolver.stack import services
from opd_evolver.stack.services import Service, Stack

MARK = "mark-of-this-stack"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "prefect.yaml").write_text("name: empty\ndeployments: []\n")
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _sleeper(**env: str) -> subprocess.Popen[bytes]:
    """A process in a session of its own, as a flow run is."""
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    return subprocess.Popen(command, env={**os.environ, **env}, start_new_session=True)


def test_down_stops_what_carries_the_mark_and_never_a_pid_that_was_given_anew(folder: Path) -> None:
    other, left_behind = _sleeper(), _sleeper(**{services.MARK: MARK})
    try:
        began = started(other.pid)
        assert began is not None
        reused = Service(pid=other.pid, started=began - 3600, log=str(folder / "log"))
        services.write(folder, Stack(mark=MARK, prefect_port=1, services={"prefect": reused}))
        assert stack.status()["running"] is False and stack.down()["stopped"] == []
        assert alive(other.pid, began) and left_behind.wait(10) is not None
    finally:
        for child in (other, left_behind):
            child.kill()
            child.wait()


def test_a_stubborn_process_is_killed_in_the_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "STOP_TIMEOUT_S", 1.0)
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    env = {**os.environ, services.MARK: MARK}
    with subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, start_new_session=True) as it:
        assert it.stdout is not None and it.stdout.readline()
        began = started(it.pid)
        assert began is not None
        service = Service(pid=it.pid, started=began, log="log")
        assert services.stop(Stack(mark=MARK, prefect_port=1, services={"worker-control": service})) == [
            "worker-control"
        ]
        assert it.wait(10) is not None


def test_ports_are_free_and_stay_with_the_project(tmp_path: Path) -> None:
    port = services.choose_port(tmp_path, "prefect", None)
    assert port == services.choose_port(tmp_path, "prefect", None)
    assert port != services.choose_port(tmp_path, "mlflow", None)
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        assert services.choose_port(tmp_path, "prefect", None) != port


def test_an_address_in_dotenv_is_respected_too(folder: Path) -> None:
    (folder / ".env").write_text("PREFECT_API_URL=https://team.example/api\n")
    with pytest.raises(SetupError, match="PREFECT_API_URL is set"):
        stack.up(load_settings())
    assert services.read(folder) is None


def test_a_service_that_dies_says_its_last_line(tmp_path: Path) -> None:
    env = services.environment(tmp_path, MARK, "http://127.0.0.1:1/api")
    service = services.spawn(tmp_path, "prefect", [sys.executable, "-m", "no_such_module"], env)
    with pytest.raises(OutageError, match="No module named no_such_module") as caught:
        services.wait("prefect", service, lambda: False)
    assert "prefect.log" in caught.value.mend and caught.value.exit_code == 3


def test_a_service_that_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "START_TIMEOUT_S", 0.3)
    me = Service(pid=os.getpid(), started=started(os.getpid()) or 0.0, log=str(tmp_path / "log"))
    with pytest.raises(OutageError, match="prefect was not ready"):
        services.wait("prefect", me, lambda: services.request("http://127.0.0.1:9/health") is True)


def test_services_see_nothing_of_the_users_prefect_setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_KEY", "secret")
    monkeypatch.setenv("PREFECT_PROFILE", "team")
    env = services.environment(tmp_path, MARK, "http://127.0.0.1:1/api")
    assert {name for name in env if name.startswith("PREFECT_")} == {
        "PREFECT_API_URL",
        "PREFECT_HOME",
        "PREFECT_SERVER_ANALYTICS_ENABLED",
        "PREFECT_WORKER_QUERY_SECONDS",
    }
    assert Path(env["PREFECT_HOME"]).is_relative_to(tmp_path) and env["DO_NOT_TRACK"] == "true"
    assert Path(env["PATH"].split(os.pathsep)[0]) == Path(sys.executable).parent


def test_running_leaves_a_stack_that_was_there_before(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(stack, "up", lambda *_, **__: calls.append("up") or {})
    monkeypatch.setattr(stack, "down", lambda: calls.append("down") or {})
    with pytest.raises(KeyError), stack.running():
        raise KeyError("the run failed")
    assert calls == ["up", "down"]
    me = Service(pid=os.getpid(), started=started(os.getpid()) or 0.0, log="log")
    services.write(folder, Stack(mark=MARK, prefect_port=1, services={"prefect": me}))
    with stack.running():
        pass
    assert calls == ["up", "down", "up"]


def test_a_run_that_is_terminated_stops_its_stack(folder: Path) -> None:
    code = (
        "import time\nfrom opd_evolver import stack\n"
        "stack.up = lambda *_, **__: {}\nstack.down = lambda: print('stopped', flush=True)\n"
        "with stack.running():\n    print('up', flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stdout.readline() == "up\n"
        child.terminate()
        assert child.stdout.readline() == "stopped\n" and child.wait(20) == 143


@pytest.mark.parametrize("text", ["", "{", '{"mark": 1}', "\x00"])
def test_a_torn_record_is_one_line(folder: Path, text: str) -> None:
    services.state_path(folder).parent.mkdir()
    services.state_path(folder).write_text(text)
    with pytest.raises(CorruptionError, match=r"stack\.json cannot be read"):
        stack.status()
