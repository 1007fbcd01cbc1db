"""What follows the last round: pointers and rows that could not be made at once are made by whoever comes next."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Opd

from opd_evolver import lineage, versioning
from opd_evolver.errors import OutageError
from opd_evolver.settings import load_settings
from opd_evolver.steps import dispatch, progress, publish, track
from opd_evolver.tracking import open_tracker

ENTRY_POINTS = (("run", "--name", "done", "--local"), ("resume", "done"))


@pytest.fixture
def versioned(project: Path) -> Path:
    """The finished run in a DVC project; nothing of it has been published."""
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, cwd=project, check=True, env=versioning.environment())
    (project / "runs/done/published.json").unlink()
    return project


@pytest.mark.parametrize("command", ENTRY_POINTS, ids=" ".join)
def test_what_was_not_published_is_when_the_run_is_asked_for_again(
    versioned: Path, opd: Opd, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("OPD_MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    load_settings.cache_clear()
    said = opd(*command)
    assert said.code == 3 and "MLflow at http://127.0.0.1:9 does not answer" in said.err
    pointers = [versioned / f"versions/done/round-001/{part}.dvc" for part in ("memory", "policy")]
    assert all(one.exists() for one in pointers), "an outage of MLflow costs no pointer"
    monkeypatch.delenv("OPD_MLFLOW_TRACKING_URI")
    load_settings.cache_clear()
    said = opd(*command)
    assert said.code == 0 and "have not taken yet" in said.err, said
    assert set(open_tracker(versioned).logged("done")) == {0, 1}
    said = opd(*command)
    assert said.code == 0 and len(said.err.splitlines()) == 1 and "nothing to do" in said.err


def test_a_folder_that_was_pushed_and_freed_keeps_no_other_from_its_pointer(versioned: Path) -> None:
    run = lineage.open_run(versioned, "done")
    memory, policy = (versioned / "versions/done/round-001" / part for part in ("memory", "policy"))
    versioning.add_pointer(versioned, policy)
    shutil.rmtree(policy)
    track.pointers(run)
    assert versioning.is_current(memory) and not policy.exists()


def test_a_lineage_that_was_left_behind_is_not_resumed_as_another_one(project: Path, opd: Opd) -> None:
    """Its name would start whatever lineage is current."""
    assert opd("memory", "rollback", "1", "--name", "done").code == 0
    first = lineage.open_run(project, "done~1")
    assert first.lineage == "done"
    (project / "runs/done/rounds/round-001.json").unlink()
    said = opd("resume", "done~1")
    assert said.code == 2 and "the current one, `done~2`" in said.err and "opd memory undo --name done" in said.err


def test_an_error_behind_the_last_round_is_told(project: Path) -> None:
    run = lineage.open_run(project, "done")
    assert run.is_complete() and publish.is_published(run)
    dispatch.check(run)
    progress.record_error(project, "done", OutageError("MLflow does not answer", "a server", "start it"))
    with pytest.raises(dispatch.Stopped, match="MLflow does not answer") as stopped:
        dispatch.check(run)
    assert stopped.value.exit_code == OutageError.exit_code
