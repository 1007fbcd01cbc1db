"""A rejected entry is told with its reason and counted: in the step, the round's summary, the table and MLflow."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from unittest.mock import patch

import finished_run
import pytest
from conftest import Opd
from memory_cases import die, in_child
from rollout_world import agent

from opd_evolver import lineage, step
from opd_evolver.benchmark.measure import RoundMeasurement
from opd_evolver.lineage import Run
from opd_evolver.records import GenerationRequest, Prompt
from opd_evolver.steps import fast, forget, plan, publish, track

UNREADABLE = "mumble mumble SECRETWORD"


def sloppy(prompt: Prompt, request: GenerationRequest) -> str:
    """The scripted agent, which also writes something that nobody can read."""
    said = agent(prompt, request)
    return f"{said} | {UNREADABLE}" if prompt.ability == "write" and said != "none" else said


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sloppy")
    with patch.object(finished_run, "agent", sloppy):
        finished_run.build(root, finished_run.policy_folder(root))
    return root


@pytest.fixture
def run(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    shutil.copytree(built, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return lineage.open_run(tmp_path / "project", finished_run.NAME)


def test_the_round_counts_them_and_every_display_tells(run: Run, opd: Opd) -> None:
    summary = run.summary(1)
    assert summary is not None
    n = summary["rejected"]["unreadable"]
    lines = [
        line
        for path in run.paths.step(1, "").glob(f"*/barrier/{fast.REJECTED}")
        for line in path.read_text().split("\n")
    ]
    assert sum(line == f"unreadable: {UNREADABLE}" for line in lines) == n > 0, "with what was wrong, for people"
    assert json.loads(opd("rounds", finished_run.NAME, "--json").out)["rounds"][0]["rejected"] == {"unreadable": n}
    assert f"round 1 rejected {n} written entries: unreadable {n}" in opd("rounds", finished_run.NAME).out
    logged = track.metrics_of(RoundMeasurement.model_validate(summary["measurement"]), summary)
    assert logged["rejected/all"] == logged["rejected/unreadable"] == n


def test_a_round_without_any_says_nothing_of_them(project: Path, opd: Opd) -> None:
    said = opd("rounds", "done")
    assert said.code == 0 and "rejected" not in said.out


def test_a_barrier_that_is_killed_behind_its_commit_still_counts(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with finished_run.scripted(), patch.object(finished_run, "agent", sloppy):
        step.run(plan.begin_job(run, 2))
        for job in plan.shard_jobs(run, 2, 0):
            step.run(job)

        def killed() -> None:
            with patch.object(fast, "maintain_barrier", die):
                step.run(plan.barrier_job(run, 2, 0))

        assert in_child(killed) < 0
        metrics = step.run(plan.barrier_job(run, 2, 0)).metrics
    assert "n_rollouts" not in metrics, "it had been committed"
    assert metrics["rejected"] == {"unreadable": metrics["rejected"]["unreadable"]}
    assert "entries rejected (unreadable " in capsys.readouterr().err


def test_forgetting_leaves_counts_without_words(run: Run) -> None:
    before = publish.rounds_tree(run)["rounds"][0]["rejected"]
    entry_id = json.loads((run.paths.version(1) / "memory" / "entries.jsonl").read_text().splitlines()[0])["entry_id"]
    forget.forget(run.root, finished_run.NAME, entry_id, "asked")
    paths = list(run.paths.step(1, "").glob(f"*/barrier/{fast.REJECTED}"))
    assert paths and all("SECRETWORD" not in path.read_text() for path in paths)
    assert publish.rounds_tree(run)["rounds"][0]["rejected"] == before
    assert sum(len(path.read_text().splitlines()) for path in paths) == sum(before.values())
