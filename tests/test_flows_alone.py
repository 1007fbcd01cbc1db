"""A flow without a deployment, as `dvc repro` and a hand start it: whose Prefect it speaks to, what it leaves."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import driver
import pytest
import yaml

from opd_evolver import versioning
from opd_evolver.processes import alive
from opd_evolver.stack import left

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """This project's flows in a folder of its own, beside an empty home."""
    (tmp_path / "home").mkdir()
    project = tmp_path / "project"
    shutil.copytree(driver.PROJECT / "flows", project / "flows", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(driver.PROJECT / "params.yaml", project)
    return project


def environment(folder: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    paths = f"{folder}{os.pathsep}{driver.PROJECT}"
    return {**kept, "HOME": str(folder.parent / "home"), "PYTHONPATH": paths, **more}


def called(folder: Path, *arguments: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=dict(env or environment(folder)),
        capture_output=True,
        text=True,
        check=False,
    )


def profiles(folder: Path, **settings: str) -> Path:
    """A profile of the user's own; returns its file."""
    path = folder.parent / "home" / ".prefect" / "profiles.toml"
    path.parent.mkdir(parents=True)
    lines = [f'{name} = "{value}"' for name, value in settings.items()]
    path.write_text("\n".join(['active = "team"', "[profiles.team]", *lines, ""]))
    return path


def kept(folder: Path) -> dict[str, bytes]:
    home = folder.parent / "home"
    return {str(path.relative_to(home)): path.read_bytes() for path in home.rglob("*") if path.is_file()}


STUCK = """
import time
from pathlib import Path
from prefect import flow


@flow(name="coevolve", persist_result=False)
def coevolve(name: str, preset: str | None, overrides: dict, fork: bool, resume: bool) -> None:
    Path("here").touch()
    time.sleep(600)
"""


def test_prefects_state_stays_in_the_project_and_a_killed_flows_server_is_ended(folder: Path) -> None:
    """Prefect's real server, twice: a flow that is killed, with nobody left to end it, then the next one."""
    home, whole = folder.parent / "home", (folder / "flows" / "coevolve.py").read_text()
    (folder / "flows" / "coevolve.py").write_text(STUCK)
    flow = subprocess.Popen([sys.executable, "-m", "flows", "coevolve"], cwd=folder, env=environment(folder))
    try:
        end = time.monotonic() + 400
        while not (folder / "here").exists():
            assert flow.poll() is None and time.monotonic() < end
            time.sleep(0.1)
        assert list(home.iterdir()) == [] and (folder / ".opd" / "prefect-local" / "prefect.db").is_file()
        assert left.behind(folder) == []
        flow.kill()
        flow.wait()
        behind = left.behind(folder)
        assert behind

        # A profile without an address, which need not allow a server without one, as Prefect's own profile does.
        profiles(folder, PREFECT_LOGGING_LEVEL="ERROR")
        before = kept(folder)
        (folder / "flows" / "coevolve.py").write_text(whole)
        # The flow really begins, and ends where it looks for the policy; nobody answers at the addresses that are set.
        (folder / "prefect.toml").write_text('[api]\nurl = "http://127.0.0.1:9/api"\n')
        nobody = environment(folder, PREFECT_API_URL="http://127.0.0.1:9/api")
        begun = ["coevolve", "--local", "--preset", "micro", "--set", "policy.path=/nowhere/at/all"]
        done = called(folder, "-m", "flows", *begun, env=nobody)
        assert done.returncode == 2 and "error: no folder /nowhere/at/all" in done.stderr, done.stderr
        assert "EventsWorker" not in done.stderr + done.stdout, "events of the flow are lost"
        assert kept(folder) == before
        assert not any(alive(*one) for one in behind) and left.behind(folder) == []
    finally:
        flow.kill()
        flow.wait()
        left.end(folder)


SEEN = (
    "import json\nfrom opd_evolver.stack import home\nhome.settle()\n"
    "from prefect.settings import get_current_settings\nnow = get_current_settings()\n"
    "key = now.api.key.get_secret_value() if now.api.key else None\n"
    "print(json.dumps([str(now.api.url) if now.api.url else None, key, str(now.home)]))"
)


def test_a_server_of_the_users_is_spoken_to(folder: Path) -> None:
    ours = str(folder / ".opd" / "prefect-local")
    assert json.loads(called(folder, "-c", SEEN).stdout) == [None, None, ours]
    by_environment = environment(folder, PREFECT_API_URL="http://team.example/api")
    assert json.loads(called(folder, "-c", SEEN, env=by_environment).stdout) == ["http://team.example/api", None, ours]
    by_toml = folder / "prefect.toml"
    by_toml.write_text('[api]\nurl = "http://folder.example/api"\n')
    assert json.loads(called(folder, "-c", SEEN).stdout) == ["http://folder.example/api", None, ours]
    by_toml.unlink()
    profiles(folder, PREFECT_API_URL="http://profile.example/api", PREFECT_API_KEY="theirs")
    before = kept(folder)
    assert json.loads(called(folder, "-c", SEEN).stdout) == ["http://profile.example/api", "theirs", ours]
    elsewhere = folder.parent / "elsewhere"
    shutil.move(folder.parent / "home" / ".prefect", elsewhere)
    moved = environment(folder, PREFECT_HOME=str(elsewhere))
    assert json.loads(called(folder, "-c", SEEN, env=moved).stdout) == ["http://profile.example/api", "theirs", ours]
    assert [path.name for path in elsewhere.iterdir()] == ["profiles.toml"] and len(before) == 1


def test_asking_which_server_is_configured_makes_no_home(folder: Path) -> None:
    """`opd run` does, before it knows that there is none."""
    code = "from opd_evolver.steps import dispatch; print(dispatch.api_url())"
    assert called(folder, "-c", code).stdout == "None\n"
    assert list((folder.parent / "home").iterdir()) == []
    outside = folder.parent / "outside"
    outside.mkdir()
    assert called(outside, "-c", code).stdout == "None\n"
    assert list((folder.parent / "home").iterdir()) == list(outside.iterdir()) == []


def test_what_is_finished_imports_no_prefect(project: Path) -> None:
    """Each of the three commands, on the finished run of the fixture, with this project's own flows."""
    shutil.rmtree(project / "flows")
    shutil.copytree(driver.PROJECT / "flows", project / "flows")
    (project / "spy.py").write_text(
        "import runpy, sys\nsys.argv[0] = 'flows'\n"
        "try: runpy.run_module('flows', run_name='__main__')\n"
        "except SystemExit as left: code = left.code\n"
        "print(code, 'prefect' in sys.modules, file=sys.stderr)"
    )
    said, left_by = {}, {}
    for command in ("coevolve", "benchmark", "report"):
        done = called(project, "spy.py", command, "--name", "done", env=environment(project))
        assert done.stderr.splitlines()[-1] == "0 False", done.stderr
        said[command] = done.stdout
        left_by[command] = {path.name: path.read_bytes() for path in (project / "reports" / "done").iterdir()}
    assert set(left_by["coevolve"]) == {"metrics.json", "rounds.csv", "rounds.txt"}
    assert left_by["coevolve"] == left_by["benchmark"] == left_by["report"], (
        "DVC would see a change where there is none"
    )
    assert "nothing to do" in said["coevolve"] and said["benchmark"].strip().endswith("reports/done/rounds.csv")
    assert said["report"] == (project / "reports" / "done" / "rounds.txt").read_text()
    for command, words in (("coevolve --set=seed=[", "--set seed=["), ("benchmark", "no run"), ("report", "no run")):
        done = called(project, "-m", "flows", *command.split(), "--name", "doen", env=environment(project))
        assert done.returncode == 2 and done.stderr.startswith("error: ") and words in done.stderr, done


# ── the interpreter of a stage ────────────────────────────────────────────────────────────────

STAND_IN = '#!/bin/sh\necho "$0 $*" >> called\nmkdir -p reports/default opd_evolver/assets/seed-policy\n' + "\n".join(
    f"touch reports/default/{name}" for name in ("metrics.json", "rounds.csv", "rounds.txt")
)


def test_a_stage_finds_the_projects_interpreter_without_activation(folder: Path) -> None:
    """`.venv/bin/dvc repro`, from a folder below it, with a PATH that knows no python of ours; and again: nothing."""
    shutil.copy(driver.PROJECT / "dvc.yaml", folder)
    shutil.copytree(driver.PROJECT / ".dvc", folder / ".dvc", ignore=shutil.ignore_patterns("tmp", "cache"))
    (folder / "opd_evolver" / "assets" / "seed-policy").mkdir(parents=True)
    (folder / "opd_evolver" / "assets" / "seed-policy" / "weights").touch()
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(STAND_IN)
    python.chmod(0o755)
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    env = {**versioning.environment(), **environment(folder, PATH="/usr/bin:/bin", PYTHONPATH="")}
    for _ in range(2):
        done = called(folder / "flows", "-m", "dvc", "repro", "../dvc.yaml", env=env)
        assert done.returncode == 0, done.stderr
        run = [line.split(" ", 1) for line in (folder / "called").read_text().splitlines()]
        assert [arguments for _, arguments in run] == [
            f"-m flows {stage} --name default" for stage in ("coevolve", "benchmark", "report")
        ]
        assert {where for where, _ in run} == {str(python)}
    lock = yaml.safe_load((folder / "dvc.lock").read_text())
    assert str(folder) not in json.dumps(lock), "a lock that names one clone is out of date in the next"


def test_the_committed_lock_belongs_to_the_committed_stages() -> None:
    """Or the first `dvc status` of a clone calls the seed policy changed."""
    stages, lock = (yaml.safe_load((driver.PROJECT / name).read_text())["stages"] for name in ("dvc.yaml", "dvc.lock"))
    assert lock["seed_policy"]["cmd"] == stages["seed_policy"]["cmd"]
