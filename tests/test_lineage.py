"""Run identity: resume, refuse, extend, fork, roll back, undo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import psutil
import pytest
from memory_cases import die, in_child

from opd_evolver import heads, lineage, writer
from opd_evolver.durable import append_line, write_text
from opd_evolver.errors import CorruptionError, SchemaError, SetupError
from opd_evolver.lineage import RunPaths
from opd_evolver.params import Params, PolicyParams, merge
from opd_evolver.policy.weights import weights_digest
from opd_evolver.processes import started
from opd_evolver.records import SCHEMA_VERSION, canonical_json
from opd_evolver.steps import plan, prepare


def finish(root: Path, name: str, *rounds: int) -> None:
    for round_ in rounds:
        write_text(RunPaths(root, name).summary(round_), canonical_json({"round": round_, "champion": 0}))


def test_the_same_parameters_resume_and_changed_ones_are_listed_and_refused(tmp_path: Path) -> None:
    lineage.open_or_create(tmp_path, "a", Params())
    assert lineage.open_or_create(tmp_path, "a", Params()).lineage == "a"
    changed = merge(Params(), {"fast.wave_tasks": 7, "seed": 3}, "test")
    with pytest.raises(SetupError) as caught:
        lineage.open_or_create(tmp_path, "a", changed)
    assert "fast.wave_tasks: 40 → 7" in str(caught.value)
    assert "seed: 0 → 3" in str(caught.value)
    assert "--fork" in str(caught.value)
    assert caught.value.exit_code == 2


def test_more_rounds_extend_and_placement_never_counts_as_change(tmp_path: Path) -> None:
    lineage.open_or_create(tmp_path, "a", Params(rounds=1))
    finish(tmp_path, "a", 0, 1)
    assert lineage.open_run(tmp_path, "a").is_complete()
    wider = merge(Params(rounds=2), {"flows.shards": 2, "flows.placement": "subprocess"}, "test")
    run = lineage.open_or_create(tmp_path, "a", wider)
    assert not run.is_complete()
    assert run.params.flows.shards == 2
    fewer = lineage.open_or_create(tmp_path, "a", Params(rounds=1))
    assert fewer.params.rounds == 2


def test_fork_opens_a_lineage_and_undo_returns(tmp_path: Path) -> None:
    lineage.open_or_create(tmp_path, "a", Params())
    forked = lineage.open_or_create(tmp_path, "a", Params(seed=9), fork=True)
    assert forked.lineage == "a~2"
    assert lineage.open_run(tmp_path, "a").lineage == "a~2"
    assert lineage.open_run(tmp_path, "a~1").lineage == "a"  # else nothing could name it any more
    assert lineage.open_run(tmp_path, "a~2").lineage == "a~2"
    assert lineage.undo(tmp_path, "a~2").lineage == "a", "a lineage stands for its run"
    assert lineage.open_run(tmp_path, "a").params.seed == 0
    with pytest.raises(SetupError, match="no rollback or fork to undo"):
        lineage.undo(tmp_path, "a")


def test_rollback_keeps_the_earlier_rounds_and_rewrites_nothing(tmp_path: Path) -> None:
    lineage.open_or_create(tmp_path, "a", Params(rounds=3))
    finish(tmp_path, "a", 0, 1, 2, 3)
    before = {path: path.read_bytes() for path in (tmp_path / "runs" / "a" / "rounds").iterdir()}
    branched = lineage.branch(tmp_path, "a", 1)
    assert branched.lineage == "a~2"
    assert branched.finished_rounds() == [1]
    assert branched.owner(1).lineage == "a"
    assert branched.owner(2).lineage == "a~2"
    assert {path: path.read_bytes() for path in before} == before
    finish(tmp_path, "a~2", 2)
    deeper = lineage.branch(tmp_path, "a", 2)
    assert deeper.lineage == "a~3"
    assert [deeper.owner(r).lineage for r in (1, 2, 3)] == ["a", "a~2", "a~3"]
    with pytest.raises(SetupError, match="has not finished"):
        lineage.branch(tmp_path, "a", 3)


def test_an_unknown_run_names_the_nearest(tmp_path: Path) -> None:
    lineage.open_or_create(tmp_path, "default", Params())
    with pytest.raises(SetupError, match="did you mean `default`"):
        lineage.open_run(tmp_path, "defualt")
    with pytest.raises(SetupError, match="run name"):
        lineage.open_or_create(tmp_path, "../up", Params())


def test_newer_and_corrupt_identities_are_refused(tmp_path: Path) -> None:
    lineage.open_or_create(tmp_path, "a", Params())
    path = RunPaths(tmp_path, "a").identity
    whole = path.read_text()
    path.write_text(whole.replace('"schema_version":1', '"schema_version":99'))
    with pytest.raises(SchemaError, match="upgrade"):
        lineage.open_run(tmp_path, "a")
    path.write_text(whole[: len(whole) // 2])
    with pytest.raises(CorruptionError, match=r"run\.json"):
        lineage.open_run(tmp_path, "a")


def test_a_torn_head_line_was_never_acknowledged(tmp_path: Path) -> None:
    lineage.open_or_create(tmp_path, "a", Params())
    head = tmp_path / "runs" / "a" / "HEAD.jsonl"
    with head.open("a") as file:
        file.write('{"lineage": "a~')
    assert lineage.open_run(tmp_path, "a").lineage == "a"
    append_line(head, '{"action":"undo","lineage":"a"}')
    assert len(head.read_text().splitlines()) == 2


def test_a_malformed_head_line_that_ends_is_no_torn_one(tmp_path: Path) -> None:
    """It was acknowledged: without it another lineage would be the current one."""
    lineage.open_or_create(tmp_path, "a", Params())
    finish(tmp_path, "a", 0, 1)
    lineage.branch(tmp_path, "a", 1)
    head = tmp_path / "runs" / "a" / "HEAD.jsonl"
    head.write_text(head.read_text().replace('"action":"rollback"', '"action":"rollb'))
    with pytest.raises(CorruptionError, match=r"HEAD\.jsonl line 2 is malformed.*restore"):
        lineage.open_run(tmp_path, "a")


def test_a_run_killed_before_its_first_head_line_is_rolled_back_and_undone(tmp_path: Path) -> None:
    def killed() -> None:
        with patch.object(heads, "append", die):
            lineage.open_or_create(tmp_path, "a", Params())

    assert in_child(killed) < 0
    assert lineage.open_or_create(tmp_path, "a", Params()).lineage == "a"
    finish(tmp_path, "a", 0, 1)
    assert lineage.branch(tmp_path, "a", 1).lineage == "a~2"
    assert lineage.undo(tmp_path, "a").lineage == "a"
    with pytest.raises(SetupError, match="no rollback or fork to undo"):
        lineage.undo(tmp_path, "a")
    assert lineage.branch(tmp_path, "a", 1).lineage == "a~3"
    assert lineage.undo(tmp_path, "a").lineage == "a"


def test_a_head_line_of_a_newer_version_is_refused_and_an_older_one_read(tmp_path: Path) -> None:
    """Even where it stands last, as a torn line would."""
    lineage.open_or_create(tmp_path, "a", Params())
    head = tmp_path / "runs" / "a" / "HEAD.jsonl"
    assert json.loads(head.read_text())["schema_version"] == SCHEMA_VERSION
    append_line(head, '{"action":"fork","lineage":"a","reason":"written before lines had a schema"}')
    assert lineage.open_run(tmp_path, "a").lineage == "a"
    append_line(head, '{"action":"swap","lineage":"a","schema_version":99}')
    with pytest.raises(SchemaError, match=r"HEAD\.jsonl line 3 has schema 99.*pip install"):
        lineage.open_run(tmp_path, "a")


def test_one_writer_at_a_time_and_a_dead_one_is_taken_over(tmp_path: Path) -> None:
    run = lineage.open_or_create(tmp_path, "a", Params())
    path = run.paths.run / "writer.json"
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        write_text(path, canonical_json({"pid": child.pid, "started": started(child.pid)}))
        with pytest.raises(SetupError, match=f"process {child.pid}"), writer.writing(run):
            pass
    finally:
        child.kill()
        child.wait()
    with writer.writing(run, {"flow_run_id": "x"}):
        assert lineage.read_json(path)["pid"] == os.getpid()
    assert not path.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="start times move with the clock on Linux")
def test_a_writer_keeps_its_run_when_the_clock_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = lineage.open_or_create(tmp_path, "a", Params())
    boot = psutil.boot_time()
    with writer.writing(run):
        monkeypatch.setattr("psutil._pslinux.boot_time", lambda: boot + 2)
        held = writer.holder(run)
        assert held is not None and held["live"]
        monkeypatch.setattr(os, "getpid", lambda: held["pid"] + 1)  # as another process sees it
        with pytest.raises(SetupError, match=f"process {held['pid']}"), writer.writing(run):
            pass


def test_a_relative_base_policy_is_found_from_every_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, folder = tmp_path / "artifacts", tmp_path / "project" / "policy"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    monkeypatch.chdir(folder.parent)
    relative, absolute = (
        lineage.open_or_create(root, name, Params(policy=PolicyParams(path=path)))
        for name, path in (("a", "policy"), ("b", str(folder)))
    )
    for run in (relative, absolute):
        prepare.base(run)
    assert plan.base_policy(relative) == plan.base_policy(absolute)
    job = plan.begin_job(relative, 1)
    monkeypatch.chdir(tmp_path)
    assert weights_digest(job.path("policy")) == job.input_digests["policy"]


def test_a_project_is_moved_with_the_base_policy_in_it(tmp_path: Path) -> None:
    root = tmp_path / "project"
    (root / "policy").mkdir(parents=True)
    (root / "policy" / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    prepare.base(lineage.open_or_create(root, "a", Params(policy=PolicyParams(path=str(root / "policy")))))
    root.rename(tmp_path / "moved")
    job = plan.begin_job(lineage.open_run(tmp_path / "moved", "a"), 1)
    assert weights_digest(job.path("policy")) == job.input_digests["policy"]
