"""What follows the last round: pointers and rows that could not be made at once are made by whoever comes next."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Opd

from flows.coevolve import coevolve
from opd_evolver import lineage, versioning
from opd_evolver.errors import OutageError, SetupError
from opd_evolver.processes import started
from opd_evolver.settings import load_settings
from opd_evolver.steps import dispatch, prepare, progress, publish, track
from opd_evolver.tracking import EXPERIMENT, open_tracker

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


def test_a_process_that_a_run_was_refused_to_leaves_no_error_with_it(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one, here a process that holds the run, would end with the other's error once it is done."""
    run = lineage.open_run(project, "done")
    summary, kept = run.paths.summary(1), run.paths.summary(1).read_bytes()
    summary.unlink()
    first = subprocess.Popen(["sleep", "600"])
    try:
        held = {"schema_version": 1, "pid": first.pid, "started": started(first.pid)}
        (run.paths.run / "writer.json").write_text(json.dumps(held))
        with pytest.raises(SetupError, match=f"is being written by process {first.pid}"):
            coevolve.fn("done", resume=True)
        with pytest.raises(SetupError, match="has other science parameters"):
            coevolve.fn("done", overrides={"seed": 7})
    finally:
        first.kill()
        first.wait()
    assert not progress.error_path(project, "done").exists()
    summary.write_bytes(kept)
    dispatch.check(run)
    summary.unlink()

    def gone(run: lineage.Run) -> None:
        raise OutageError("no server", "one", "opd resume")

    monkeypatch.setattr(prepare, "hosted", gone)
    with pytest.raises(OutageError):
        coevolve.fn("done", resume=True)
    with pytest.raises(dispatch.Stopped, match=r"no server.*opd resume done"):
        dispatch.check(run)


@pytest.mark.parametrize(("rounds", "declared", "as_declared"), [(1, 1, True), (2, 1, True), (1, 2, False)])
def test_stages_are_up_to_date_with_all_rounds_that_are_declared(
    project: Path, rounds: int, declared: int, as_declared: bool
) -> None:
    path = project / "params.yaml"
    text = path.read_text()
    assert text.count("\nrounds: 1\n") == 1
    path.write_text(text.replace("\nrounds: 1\n", f"\nrounds: {declared}\n"))
    params = lineage.open_run(project, "done").params.model_copy(update={"rounds": rounds})
    assert track._as_declared(lineage.open_or_create(project, "done", params)) is as_declared


def test_a_round_is_finished_though_mlflow_does_not_take_it(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = lineage.open_run(project, "done")
    track.round_(run, 0)
    client = open_tracker(project)._client
    number = client.get_experiment_by_name(EXPERIMENT).experiment_id
    client.delete_experiment(number)
    run.paths.summary(1).unlink()
    publish.finish_round(run, 1)
    said, mend = capsys.readouterr().err, f"mlflow experiments restore --experiment-id {number}"
    assert run.is_complete() and "round 1 is finished but not logged yet" in said
    assert "is deleted" in said and mend in said and "move that file away" not in said
    with pytest.raises(SetupError, match=mend):
        publish.versions(run)
    client.restore_experiment(number)
    publish.versions(run)
    assert set(open_tracker(project).logged("done")) == {0, 1}
