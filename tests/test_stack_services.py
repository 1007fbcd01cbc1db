"""Processes of the local stack without Prefect: ports, environment, whom `down` stops and whom it never touches."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from conftest import Opd

from opd_evolver import processes, stack, step
from opd_evolver.commands import run
from opd_evolver.errors import CorruptionError, OpdError, OutageError, SetupError
from opd_evolver.processes import alive, started
from opd_evolver.settings import load_settings
from opd_evolver.stack import left, services
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


def test_a_worker_that_began_with_other_settings_is_not_given_a_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in stack.DECISIVE:
        monkeypatch.delenv(name, raising=False)
    assert stack.begun_otherwise() == [], "no stack, no worker"
    worker = _sleeper(OPD_DEVICE="cpu")
    try:
        one = Service(pid=worker.pid, started=started(worker.pid) or 0.0, log=str(folder / "log"))
        services.write(folder, Stack(mark=MARK, prefect_port=1, services={"worker-control": one}))
        monkeypatch.setenv("OPD_DEVICE", "cpu")
        assert stack.begun_otherwise() == []
        monkeypatch.setenv("OPD_ARTIFACT_ROOT", str(folder))
        monkeypatch.setenv("OPD_DEVICE", "cuda")
        monkeypatch.setenv("OPD_DISPLAY", "plain")
        assert stack.begun_otherwise() == ["OPD_ARTIFACT_ROOT", "OPD_DEVICE"]
        with pytest.raises(SetupError, match="another OPD_ARTIFACT_ROOT and another OPD_DEVICE"):
            run._same_settings(stack.begun_otherwise())
        monkeypatch.setenv("OPD_ENDPOINT_URL", "http://127.0.0.1:1/v1")
        assert stack.begun_otherwise()[2:] == ["OPD_ENDPOINT_URL"]
    finally:
        worker.kill()
        worker.wait()


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
        assert child.stdout.readline() == "stopped\n" and child.wait(20) == -signal.SIGINT


@pytest.mark.parametrize("text", ["", "{", '{"mark": 1}', "\x00"])
def test_a_torn_record_is_one_line(folder: Path, text: str) -> None:
    services.state_path(folder).parent.mkdir()
    services.state_path(folder).write_text(text)
    with pytest.raises(CorruptionError, match=r"stack\.json cannot be read"):
        stack.status()


# ── children that outlive whoever needed them ─────────────────────────────────────────────────


def test_what_a_killed_flow_left_is_noticed_and_ended(folder: Path, opd: Opd) -> None:
    """As Prefect's own server is, a child that the kernel was not asked to end; that of a living flow is left alone."""
    code = (
        "import pathlib, subprocess, sys, time\nfrom opd_evolver.stack import left\nleft.mark(pathlib.Path.cwd())\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(child.pid, flush=True)\ntime.sleep(600)\n"
    )
    flows = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    pids = [int(flow.stdout.readline()) for flow in flows if flow.stdout is not None]
    try:
        assert left.behind(folder) == [] and "left_behind" not in stack.status()
        flows[0].kill()
        flows[0].wait()
        assert stack.status()["left_behind"] == pids[:1]
        assert left.behind(folder.parent) == [], "another project's are not ours to end"
        said = opd("down")
        assert said.code == 0 and f"{pids[0]} (left by a killed flow)" in said.out
        assert started(pids[0]) is None and started(pids[1]) is not None
        assert left.behind(folder) == [] and "left_behind" not in stack.status()
    finally:
        for flow in flows:
            flow.kill()
            flow.wait()
        left.end(folder)
    assert started(pids[1]) is None


STEP = "from flows.step_flow import step; step.fn('job.json')"


def step_of(folder: Path, waiting: dict[str, object] | None) -> tuple[int, str]:
    """`step/gpu` as its worker runs it: exit code and last line."""
    tree = {"job": {"step": "none", "lineage": "m", "round": 1, "root": str(folder), "out": "out", "params": {}}}
    (folder / "job.json").write_text(json.dumps(tree if waiting is None else {**tree, "waiting": waiting}))
    done = subprocess.run([sys.executable, "-c", STEP], capture_output=True, text=True, check=False)
    return done.returncode, (done.stderr.splitlines() or [""])[-1]


def test_a_step_of_a_deployment_ends_without_whoever_waits_for_it(folder: Path) -> None:
    """Its parent is a worker that lives on. Where pids mean something else, and by hand, it runs."""
    assert "unknown step" in step_of(folder, None)[1]
    waits = _sleeper()
    waiting = {"pid": waits.pid, "started": started(waits.pid), "place": processes.place()}
    assert "unknown step" in step_of(folder, waiting)[1]
    code = f"import time; from opd_evolver import processes; processes.end_without({waiting!r}); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code]) as under_way:
        time.sleep(1)
        assert under_way.poll() is None
        waits.kill()
        waits.wait()
        assert under_way.wait(20) == processes.KILLED
    assert step_of(folder, waiting) == (processes.KILLED, "")
    assert "unknown step" in step_of(folder, {**waiting, "place": "another machine"})[1]
    assert not (folder / "out").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="start times move with the clock on Linux")
def test_what_runs_is_neither_left_behind_nor_forgotten_when_the_clock_is_set(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(left.FLOW, "")
    left.mark(folder)
    env = {**os.environ, services.MARK: MARK}
    server = services.spawn(folder, "server", [sys.executable, "-c", "import time; time.sleep(60)"], env)
    try:
        end = time.monotonic() + 30
        while not any(pid == server.pid for pid, _, _ in processes.carrying(left.FLOW)):
            assert time.monotonic() < end
            time.sleep(0.02)
        boot = psutil.boot_time()
        monkeypatch.setattr("psutil._pslinux.boot_time", lambda: boot + 3600)
        assert server.alive() and left.behind(folder) == []
        assert services.stop(Stack(mark=MARK, prefect_port=1, services={"server": server})) == ["server"]
        assert not server.alive()
    finally:
        if server.alive():
            os.kill(server.pid, signal.SIGKILL)


def test_a_step_goes_on_when_the_clock_is_set() -> None:
    """First before it begins, then under way."""
    code = (
        "import psutil, time\nfrom opd_evolver import processes\n"
        f"waiting, boot = {processes.waiting()!r}, psutil.boot_time()\n"
        "psutil._pslinux.boot_time = lambda: boot + step\n"
        "processes.POLL_S, step = 0.01, 2\nprocesses.end_without(waiting)\n"
        "step = 3600\ntime.sleep(0.5)\nprint('goes on')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "goes on\n", "")


def test_a_step_is_told_who_waits_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows import placement

    told: list[dict[str, Any]] = []

    def start(name: str, parameters: dict[str, str], as_subflow: bool) -> SimpleNamespace:
        told.append({"name": name, **json.loads(Path(parameters["job_path"]).read_text())})
        assert step.load_job(Path(parameters["job_path"])) == job
        return SimpleNamespace(state="Crashed")

    monkeypatch.setattr("prefect.deployments.run_deployment", start)
    job = step.Job(step="none", lineage="m", round=1, root=str(tmp_path), out="out", params={})
    with pytest.raises(OpdError, match="step none ran as step/gpu and ended Crashed"):
        placement.run_deployment(job)
    assert [one["name"] for one in told] == ["step/gpu"]
    assert told[0]["waiting"] == {**processes.me(), "place": processes.place()}
