"""diff, why and gc on a real finished round, and on hand-made entries."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import finished_run
import pytest
from memory_cases import in_children, row, tip

from opd_evolver import cli, lineage, processes, versioning
from opd_evolver.memory import story, views
from opd_evolver.memory.diff import changes, counts
from opd_evolver.memory.segment import LedgerSegment
from opd_evolver.memory.snapshot import read_entries, read_rows, verify
from opd_evolver.memory.store import Memory
from opd_evolver.memory.stores import INDEX_FILE
from opd_evolver.memory.tombstone import tombstone
from opd_evolver.records import MAINTAIN
from opd_evolver.settings import load_settings
from opd_evolver.steps import plan

NAME = finished_run.NAME


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("built")
    finished_run.build(root, finished_run.policy_folder(root))
    return root


@pytest.fixture
def project(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    root = tmp_path / "project"
    shutil.copytree(built, root)
    monkeypatch.chdir(root)
    load_settings.cache_clear()
    yield root
    load_settings.cache_clear()


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:  # type: ignore[type-arg]
    assert cli.main(["memory", *arguments, "--name", NAME, "--json"]) == 0
    return dict(json.loads(capsys.readouterr().out))


def test_every_kind_of_change() -> None:
    kept, used, cut, back, gone = (tip(f"k{n}", "4") for n in range(5))
    off = {"status": "retired", "retired_round": 2, "retired_by": "o"}
    before = [kept, used, cut, back.model_copy(update=off), gone]
    new, stillborn = tip("new", "1"), tip("stillborn", "1")
    after = [
        kept,
        used.model_copy(update={"usage_count": 3, "success_count": 2}),
        cut.model_copy(update=off),
        back,
        tombstone(gone),
        new,
        stillborn.model_copy(update=off),
    ]
    found = changes(before, after, ({used.entry_id: 0.1}, {used.entry_id: 0.4}))
    assert counts(found) == {
        kind: {"tip": 1} for kind in ("added", "added and retired", "erased", "retired", "revived", "used")
    }
    [one] = [change for change in found if change.kind == "used"]
    assert (one.uses, one.wins, one.value_before, one.value_after) == (3, 2, 0.1, 0.4)
    assert [change.kind for change in changes([kept], [])] == ["gone"]
    assert changes(before, before) == []


def test_diff_of_rounds(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entries = read_entries(project / "versions" / NAME / "round-001" / "memory")
    tree = told(capsys, "diff", "0", "1")
    assert {one["entry_id"] for one in tree["changes"]} == {entry.entry_id for entry in entries}
    assert told(capsys, "diff", "1", f"{NAME}:1")["changes"] == []
    for wrong in ("9", "x"):
        assert cli.main(["memory", "diff", "0", wrong, "--name", NAME]) == 2
    assert cli.main(["memory", "diff", "0", "1", "--name", NAME]) == 0
    assert "added" in capsys.readouterr().out


def test_why_tells_the_whole_story(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = project / "versions" / NAME / "round-001" / "memory"
    rows = {row.rollout_id: row for row in read_rows(folder)}
    entry = max(read_entries(folder), key=lambda one: one.usage_count)
    tree = told(capsys, "why", entry.entry_id[:12])
    assert [one["task"] for one in tree["sources"]] == [rows[name].task_text for name in entry.source_episodes]
    seen = tree["evidence"]
    assert (seen["used"], seen["won"]) == (entry.usage_count, entry.success_count)
    assert seen["selected"] >= seen["used"] and seen["candidate"] >= seen["selected"]
    assert [one["round"] for one in tree["values"]] == [1] and tree["values"][0]["known"]
    assert cli.main(["memory", "why", entry.entry_id, "--name", NAME]) == 0
    assert "kept: no operation has retired it" in capsys.readouterr().out
    (project / "runs" / NAME / "steps" / "round-001" / "examples" / "attributions.jsonl").unlink()
    assert cli.main(["memory", "why", entry.entry_id, "--name", NAME]) == 0
    assert "round 1: V not kept" in capsys.readouterr().out


def test_maintenance_that_listed_an_entry_is_no_rollout(tmp_path: Path) -> None:
    entry = tip("late", "4")
    shown = row("with", injected=[entry.entry_id])
    without = shown.model_copy(update={"rollout_id": "without", "selected": (), "injected": ()})
    listing = {"group": MAINTAIN, "episode_return": 0.0, "success": False}
    listed = [without.model_copy(update={**listing, "rollout_id": f"m{number}"}) for number in range(3)]
    with Memory.open(tmp_path) as memory:
        memory.commit(LedgerSegment(lineage="run", round=1, wave=0, entries=(entry,)))
        memory.commit(LedgerSegment(lineage="run", round=1, wave=1, rows=(shown, without, *listed)))
        told = story.tell(memory, entry, {})
        assert "candidate 2 times, selected 1" in story.text_of(told)
        assert "mean return with it 1.0, without 1.0" in story.text_of(told)
        assert [(one["rollouts"], one["successes"]) for one in views.log(memory)] == [(0, 0), (2, 2)]


def test_why_of_an_erased_entry_tells_no_text(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entry = read_entries(project / "versions" / NAME / "round-001" / "memory")[0]
    told(capsys, "erase", entry.entry_id, "--reason", "asked")
    assert cli.main(["memory", "why", entry.entry_id, "--name", NAME]) == 0
    said = capsys.readouterr().out
    assert "erased on request" in said and "[erased]" in said


def test_what_only_a_pointer_stands_for_is_fetched(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rollback needs memory and policy, looking needs the memory: both come from DVC's cache."""
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, cwd=project, check=True, env=versioning.environment())
    folder = project / "versions" / NAME / "round-001"
    versioning.add_pointers(project, [folder / "memory", folder / "policy"])
    info = verify(folder / "memory")
    shutil.rmtree(folder / "memory")
    assert told(capsys, "why", an_id(capsys))["id"]
    assert verify(folder / "memory") == info
    for part in ("memory", "policy"):
        shutil.rmtree(folder / part)
    assert told(capsys, "rollback", "1")["lineage"] == f"{NAME}~2"
    assert verify(folder / "memory") == info and versioning.is_current(folder / "policy")


def an_id(capsys: pytest.CaptureFixture[str]) -> str:
    """An id, as `search` prints it."""
    assert cli.main(["memory", "search", "late", "--limit", "1", "--name", NAME, "--json"]) == 0
    return str(json.loads(capsys.readouterr().out)[0]["id"])


def test_two_that_look_at_once_for_the_first_time(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def look() -> None:
        assert cli.main(["memory", "search", "late", "--name", NAME]) == 0

    for view in (project / "runs" / NAME / "live").glob("view-*"):
        shutil.rmtree(view)
    assert in_children([look, look, look]) == [0, 0, 0]


def test_gc_frees_what_nothing_needs(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["memory", "search", "late", "--name", NAME]) == 0
    capsys.readouterr()
    tree = told(capsys, "gc")
    paths = [one["path"] for one in tree["paths"]]
    assert not tree["removed"] and any("view-" in path for path in paths)
    assert all((project / path).exists() for path in paths) and tree["bytes"] > 0
    before = {path: path.read_bytes() for path in (project / "versions").rglob("*") if path.is_file()}
    assert told(capsys, "gc", "--yes")["removed"]
    assert not any((project / path).exists() for path in paths)
    assert told(capsys, "gc")["paths"] == []
    assert {path: path.read_bytes() for path in (project / "versions").rglob("*") if path.is_file()} == before
    assert told(capsys, "diff", "0", "1")["changes"], "everything still works"
    assert plan.begin_job(lineage.open_run(project, NAME), 2).inputs["start"]


def test_a_run_that_is_written_to_is_not_reindexed(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = lineage.open_run(project, NAME)
    other = {"schema_version": 1, "pid": os.getppid(), "started": processes.started(os.getppid())}
    index = run.paths.live(1) / INDEX_FILE
    (run.paths.run / "writer.json").write_text(json.dumps(other))
    before = index.stat()
    assert cli.main(["memory", "reindex", "--name", NAME]) == 2
    assert f"is being written by process {os.getppid()}" in capsys.readouterr().err
    assert (index.stat().st_ino, index.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    (run.paths.run / "writer.json").unlink()
    assert cli.main(["memory", "reindex", "--name", NAME]) == 0
    assert not (run.paths.run / "writer.json").exists()
