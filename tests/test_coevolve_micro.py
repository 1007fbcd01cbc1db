"""The `micro` preset through a real Prefect server and a real worker, by the command that a user types."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import driver
import pytest

from opd_evolver import processes
from opd_evolver.stack import services

pytestmark = pytest.mark.timeout(1200)
WAIT_S = 400.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This project in a folder of its own, and an empty home."""
    place = tmp_path_factory.mktemp("micro")
    (place / "home").mkdir()
    (place / "project").mkdir()
    shutil.copytree(driver.PROJECT / "flows", place / "project" / "flows")
    for name in ("prefect.yaml", "params.yaml"):
        shutil.copy(driver.PROJECT / name, place / "project")
    return place / "project"


def begin(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_API", "PREFECT_HOME"))}
    return subprocess.Popen(
        [sys.executable, "-m", "opd_evolver.cli", *arguments],
        cwd=folder,
        env={**kept, "HOME": str(folder.parent / "home"), "PYTHONPATH": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def opd(folder: Path, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    child = begin(folder, *arguments)
    try:
        out, err = child.communicate(timeout=WAIT_S)
    except subprocess.TimeoutExpired:
        child.terminate()  # which stops what it started, too
        out, err = child.communicate()
    return child.returncode, out, err


def logs(folder: Path) -> str:
    """What the services said, for the report of a failure."""
    return "\n".join(path.read_text()[-3000:] for path in sorted((folder / ".opd" / "logs").glob("*.log")))


def test_micro_goes_through_a_worker_and_a_second_call_does_nothing(folder: Path, children: driver.Children) -> None:
    arguments = ("run", "--preset", "micro", "--up", "--json")
    code, out, err = opd(folder, *arguments)
    assert code == 0, err + logs(folder)
    tree = json.loads(out)
    assert (tree["name"], tree["preset"], len(tree["rounds"])) == ("default", "micro", 2)
    flow_run = json.loads((folder / "runs" / "default" / "flow_run.json").read_text())["flow_run_id"]
    assert flow_run and "Finished in state Completed" in logs(folder)
    assert not (folder / "prefect.toml").exists() and not services.state_path(folder).exists()
    assert list((folder.parent / "home").rglob("*")) == [], "nothing of the user's is touched"

    # The log of the server says whether anything was started again.
    before = (folder / ".opd" / "logs" / "prefect.log").stat().st_mtime_ns
    code, again, err = opd(folder, *arguments)
    assert code == 0 and "nothing to do" in err
    assert json.loads(again) == tree
    assert (folder / ".opd" / "logs" / "prefect.log").stat().st_mtime_ns == before

    bare = folder.parent / "bare"
    assert children.run(bare, "default") == 0, driver.said(bare)
    assert driver.digests(bare, "default") == driver.digests(folder, "default")


def test_worker_and_flow_killed_at_once_and_resumed(folder: Path, children: driver.Children) -> None:
    bare = folder.parent / "bare-small"
    assert children.run(bare, "killed", driver.SMALL) == 0, driver.said(bare)
    small = [f"--set={key}={json.dumps(value)}" for key, value in driver.SMALL.items()]
    try:
        code, _, err = opd(folder, "up")
        assert code == 0, err + logs(folder)
        run = begin(folder, "run", "--preset", "micro", "--name", "killed", *small)
        flow = _once_in_the_fast_loop(folder, run)
        recorded = services.read(folder)
        assert recorded is not None
        os.kill(recorded.services["worker-control"].pid, signal.SIGKILL)
        os.kill(flow, signal.SIGKILL)
        _, err = run.communicate(timeout=WAIT_S)
        assert run.returncode == 1 and "mend: opd resume killed" in err and "Traceback" not in err
        code, _, err = opd(folder, "resume", "killed")
        assert code == 0, err + logs(folder)
        assert "through the deployment coevolve/default" in err
    finally:
        code, _, err = opd(folder, "down")
    assert code == 0, err
    assert services.marked(recorded.mark) == []
    assert driver.digests(folder, "killed") == driver.digests(bare, "killed")


def _once_in_the_fast_loop(folder: Path, run: subprocess.Popen[str]) -> int:
    """The pid of the flow's process, when the fast loop has begun."""
    place = folder / "runs" / "killed"
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline and run.poll() is None:
        progress = place / "progress.jsonl"
        if progress.exists() and '"fast loop"' in progress.read_text():
            held: dict[str, Any] = json.loads((place / "writer.json").read_text())
            assert processes.alive(held["pid"], held["started"])
            return int(held["pid"])
        time.sleep(0.05)
    run.kill()
    raise TimeoutError("".join(run.communicate()) + logs(folder))
