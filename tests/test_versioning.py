"""DVC in a real project of its own: pointers, checkout, and both entry points finding nothing to do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from opd_evolver import versioning
from opd_evolver.errors import CorruptionError, OutageError, SetupError

ROOT = Path(__file__).resolve().parents[1]

STAGES = """
stages:
  seed_policy:
    cmd: python -c "raise SystemExit('trained again')"
    frozen: true
    outs:
      - seed: {cache: false, persist: true}
  coevolve:
    cmd: PYTHON work.py
    deps: [seed]
    params:
      - params.yaml:
    metrics:
      - reports/metrics.json: {cache: false, persist: true}
"""
# The stage as a function: resumes (says so by not counting), writes the same bytes for the same parameters.
WORK = """
import json, pathlib, yaml
def work():
    runs = pathlib.Path("runs.txt")
    runs.write_text(runs.read_text() + "x" if runs.exists() else "x")
    seed = yaml.safe_load(pathlib.Path("params.yaml").read_text())["seed"]
    pathlib.Path("reports").mkdir(exist_ok=True)
    pathlib.Path("reports/metrics.json").write_text(json.dumps({"seed": seed}))
if __name__ == "__main__":
    work()
"""


def run(root: Path, *arguments: str, more: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    env = {**versioning.environment(), **(more or {})}
    return subprocess.run(arguments, cwd=root, env=env, capture_output=True, text=True, check=False)


def dvc(root: Path, *arguments: str) -> str:
    done = run(root, sys.executable, "-m", "dvc", *arguments)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("template")
    run(root, "git", "init", "-q")
    dvc(root, "init", "-q")
    shutil.copy(ROOT / ".dvc" / "config", root / ".dvc" / "config")
    return root


@pytest.fixture
def project(template: Path, tmp_path: Path) -> Path:
    root = tmp_path / "project"
    shutil.copytree(template, root)
    return root


def version(root: Path, name: str = "memory", text: str = "entry") -> Path:
    folder = root / "versions" / "default" / "round-001" / name
    (folder / "deep").mkdir(parents=True)
    (folder / "entries.jsonl").write_text(text)
    (folder / "deep" / "a").write_text("a")
    (folder / "deep.b").write_text("b")
    return folder


def test_pointers_lie_beside_their_folders_and_bring_them_back(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    for name in ("HOME", "XDG_CONFIG_HOME", "DVC_GLOBAL_CONFIG_DIR"):
        monkeypatch.setenv(name, str(home))
    memory, policy = version(project), version(project, "policy", "weights")
    pointers = versioning.add_pointers(project, [memory, policy])
    assert [pointer.name for pointer in pointers] == ["memory.dvc", "policy.dvc"]
    assert all(pointer.parent == memory.parent for pointer in pointers)
    # our own reading of a folder's name agrees with DVC's
    assert yaml.safe_load(pointers[0].read_text())["outs"][0]["md5"] == versioning.directory_md5(memory)
    assert versioning.is_current(memory)
    before = pointers[0].read_bytes()
    assert versioning.add_pointers(project, [memory, policy]) == pointers and pointers[0].read_bytes() == before

    shutil.rmtree(memory)
    assert versioning.checkout(project, pointers[0]) == memory
    assert (memory / "entries.jsonl").read_text() == "entry" and (memory / "deep" / "a").read_text() == "a"

    (memory / "entries.jsonl").write_text("torn")
    assert not versioning.is_current(memory)
    versioning.checkout(project, pointers[0])
    assert (memory / "entries.jsonl").read_text() == "entry"

    shutil.rmtree(memory)
    shutil.rmtree(project / ".dvc" / "cache")
    with pytest.raises(CorruptionError, match="dvc pull"):
        versioning.checkout(project, pointers[0])
    # the user's own configuration was not written, and nothing was told to anyone
    assert not list(home.rglob("config")) and not list(home.rglob("user_id*"))


def test_outside_a_dvc_project_nothing_breaks_and_one_line_says_so(tmp_path: Path) -> None:
    folder = version(tmp_path)
    assert not versioning.is_repo(tmp_path)
    assert versioning.add_pointers(tmp_path, [folder]) == [] and versioning.add_pointer(tmp_path, folder) is None
    assert not versioning.pointer_of(folder).exists()
    assert versioning.commit(tmp_path, ["coevolve"]) is False
    assert "\n" not in versioning.note(tmp_path) and "dvc init" in versioning.note(tmp_path)
    with pytest.raises(SetupError, match="no DVC project"):
        versioning.checkout(tmp_path, versioning.pointer_of(folder))
    assert versioning.git_sha(tmp_path) == ""


def test_bad_folders_are_refused_in_one_clear_line(project: Path, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="no folder"):
        versioning.add_pointer(project, project / "versions" / "absent")
    with pytest.raises(SetupError, match="lies outside"):
        versioning.add_pointer(project, version(tmp_path))
    (project / ".gitignore").write_text("runs/\n")
    ignored = project / "runs" / "memory"
    ignored.mkdir(parents=True)
    (ignored / "a").write_text("a")
    with pytest.raises(SetupError, match="ignore"):
        versioning.add_pointer(project, ignored)


def test_a_busy_dvc_is_waited_for(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[int] = []
    answers = [(255, "ERROR: Unable to acquire lock.")] * 2 + [(0, "")]

    def fake(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        code, said = answers[len(tries)]
        tries.append(code)
        return subprocess.CompletedProcess(command, code, "", said)

    waited: list[float] = []
    monkeypatch.setattr(subprocess, "run", fake)
    versioning.add_pointers(project, [version(project)], sleep=waited.append)
    assert tries == [255, 255, 0] and waited == [1.0, 2.0]
    answers[:] = [(255, "ERROR: Unable to acquire lock.")] * 9
    tries.clear()
    with pytest.raises(OutageError, match="busy"):
        versioning.add_pointers(project, [version(project, "policy")], sleep=waited.append)
    assert len(tries) == versioning.ATTEMPTS


def prepared(project: Path) -> Path:
    (project / "seed").mkdir()
    (project / "seed" / "weights").write_text("w")
    (project / "params.yaml").write_text("seed: 0\n")
    (project / "work.py").write_text(WORK)
    (project / "dvc.yaml").write_text(STAGES.replace("PYTHON", sys.executable))
    assert versioning.commit(project, ["seed_policy"])
    return project


def n_runs(project: Path) -> int:
    path = project / "runs.txt"
    return len(path.read_text()) if path.exists() else 0


def test_whichever_entry_point_did_the_work_the_other_has_nothing_to_do(project: Path) -> None:
    prepared(project)
    dvc(project, "repro")
    dvc(project, "repro")
    assert n_runs(project) == 1
    # Other parameters: the work is done in process, then committed. The frozen stage never runs (its command fails).
    (project / "params.yaml").write_text("seed: 1\n")
    assert run(project, sys.executable, "-c", "import work; work.work()").returncode == 0 and n_runs(project) == 2
    assert versioning.commit(project, ["coevolve"])
    lock = (project / "dvc.lock").read_bytes()
    dvc(project, "repro")
    assert n_runs(project) == 2 and (project / "dvc.lock").read_bytes() == lock
    # And a stage that does run finds its outputs still there, so that it can resume.
    (project / "params.yaml").write_text("seed: 2\n")
    (project / "work.py").write_text("import pathlib; assert pathlib.Path('reports/metrics.json').exists()\n" + WORK)
    dvc(project, "repro")
    assert n_runs(project) == 3 and (project / "seed" / "weights").read_text() == "w"


def test_inside_a_stage_dvc_commits_itself(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "dvc.yaml").write_text(STAGES)
    monkeypatch.setenv("DVC_STAGE", "coevolve")
    assert versioning.inside_stage() and versioning.commit(project, ["coevolve"]) is False


def test_this_repositorys_stages_are_as_designed() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert list(stages) == ["seed_policy", "coevolve", "benchmark", "report"]
    assert stages["seed_policy"]["frozen"] is True
    for name, stage in stages.items():
        for kind in ("outs", "metrics", "plots"):
            for out in stage.get(kind, []):
                ((path, flags),) = out.items()
                assert flags["cache"] is False and flags["persist"] is True, (name, path)
                assert not path.startswith(("runs/", "versions/"))
    assert os.environ.get("DVC_STAGE") is None
