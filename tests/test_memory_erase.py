"""A forgetting request: no file keeps the text, everything else stays, and a kill in the middle loses nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import finished_run
import pytest
from memory_cases import FULL_LEVELS, die, in_child, row, tip, wave

from opd_evolver import cli, durable, lineage, processes, step, versioning
from opd_evolver.errors import SetupError
from opd_evolver.memory import edits, erase
from opd_evolver.memory.attribution import attribute
from opd_evolver.memory.segment import LedgerSegment
from opd_evolver.memory.snapshot import read_entries, read_rows, verify, write_snapshot
from opd_evolver.memory.store import LEDGER_FOLDER, Memory, entry_of, reindex
from opd_evolver.memory.tombstone import tombstone
from opd_evolver.params import MemoryParams, load_preset
from opd_evolver.records import CallRecord, Proposal, TipContent, TurnRecord
from opd_evolver.settings import load_settings
from opd_evolver.slow.hindsight import winners
from opd_evolver.steps import forget, plan

SECRET = "xyzzysecret"


def secret_row(name: str, entry_id: str, *, created: bool = False):  # type: ignore[no-untyped-def]
    call = CallRecord(
        ability="act",
        turn=0,
        prompt_token_ids=(1, 2),
        reply_token_ids=(3,),
        logprobs=(-0.1,),
        reply_text=SECRET,
        finish="stop",
    )
    turn = TurnRecord(observation="", action=SECRET, result=SECRET, reward=1.0)
    shown = row(name, wave=1, injected=() if created else (entry_id,))
    return shown.model_copy(update={"calls": (call,), "turns": (turn,), "created": (entry_id,) if created else ()})


def filled(memory: Memory) -> str:
    """A memory in which one tip says SECRET; returns its id."""
    entry = tip("late", SECRET)
    memory.commit(wave(0))
    rows = (secret_row("w", entry.entry_id, created=True), row("other", wave=1))
    memory.commit(LedgerSegment(lineage="run", round=1, wave=1, rows=rows, entries=(entry, tip("held", "7"))))
    memory.commit(LedgerSegment(lineage="run", round=1, wave=2, rows=(secret_row("u", entry.entry_id),)))
    memory.retire([entry.entry_id], "test", 1)
    return entry.entry_id


def test_nothing_in_a_rewritten_snapshot_tells_of_it(tmp_path: Path) -> None:
    with Memory.open(tmp_path / "live") as memory:
        entry_id = filled(memory)
        before = write_snapshot(memory, tmp_path / "memory", 1, "run")
    kept = [one for one in read_entries(tmp_path / "memory") if one.entry_id != entry_id]
    values = attribute(
        read_rows(tmp_path / "memory"), read_entries(tmp_path / "memory"), load_preset("micro").attribution
    )
    after = erase.rewrite_snapshot(tmp_path / "memory", {entry_id}, MemoryParams())
    assert after is not None and after.digest_entries != before.digest_entries
    assert after.digest_ledger != before.digest_ledger
    assert verify(tmp_path / "memory") == after
    for path in (tmp_path / "memory").rglob("*"):
        assert SECRET.encode() not in path.read_bytes()
    entries = read_entries(tmp_path / "memory")
    assert [one for one in entries if one.entry_id != entry_id] == kept
    [left] = [one for one in entries if one.entry_id == entry_id]
    assert left.status == "erased" and left.usage_count == 1
    again = attribute(read_rows(tmp_path / "memory"), entries, load_preset("micro").attribution)
    assert again == values, "forgetting one entry changes the value of none"
    assert erase.rewrite_snapshot(tmp_path / "memory", {entry_id}, MemoryParams()) is None


def test_a_live_memory_forgets_and_does_not_learn_it_again(tmp_path: Path) -> None:
    with Memory.open(tmp_path) as memory:
        entry_id = filled(memory)
    erase.rewrite_ledger(tmp_path / LEDGER_FOLDER, {entry_id})
    reindex(tmp_path)
    relearnt = LedgerSegment(
        lineage="run", round=1, wave=9, rows=(row("again", wave=9),), entries=(tip("late", SECRET, episode="again"),)
    )
    with Memory.open(tmp_path) as memory:
        for _ in range(2):  # the same commit again is a no-op
            memory.commit(relearnt)
        assert memory.get([entry_id])[0].status == "erased"
        assert all(one.entry_id != entry_id for one, _ in memory.index.search(SECRET, level="tip", limit=9))
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path


@pytest.mark.parametrize("content", FULL_LEVELS, ids=lambda one: one.level)
def test_a_tombstone_says_nothing_at_any_level(content) -> None:  # type: ignore[no-untyped-def]
    entry = entry_of(Proposal(domain="sql", scope="zora", content=content, source_episodes=("e",)), 1)
    left = tombstone(entry)
    assert (left.entry_id, left.level, left.source_episodes) == (entry.entry_id, entry.level, ("e",))
    for value in content.model_dump(exclude={"level", "outcome", "episode_return", "severity"}).values():
        if isinstance(value, str) and value:
            assert value not in left.model_dump_json().replace(entry.entry_id, "")


# ── the command over a whole run ──────────────────────────────────────────────────────────────


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


def a_tip(project: Path) -> tuple[str, str]:
    folder = project / "versions" / finished_run.NAME / "round-001" / "memory"
    entry = next(one for one in read_entries(folder) if one.level == "tip")
    assert isinstance(entry.content, TipContent)
    return entry.entry_id, f'"text":"{entry.content.text}","trigger":"{entry.content.trigger}"'


def test_erase_reaches_every_lineage_and_the_run_goes_on(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entry_id, _ = a_tip(project)
    assert cli.main(["memory", "rollback", "1", "--name", finished_run.NAME]) == 0
    run = lineage.open_run(project, finished_run.NAME)
    edits.add(
        edits.file_of(run.paths.run, 2),
        edits.Edit(
            kind="import",
            proposals=tuple(
                Proposal(domain=one.domain, scope=one.scope, content=one.content)
                for one in read_entries(project / "versions" / finished_run.NAME / "round-001" / "memory")
                if one.entry_id == entry_id
            ),
        ),
    )
    capsys.readouterr()
    assert cli.main(["memory", "erase", entry_id[:12], "--reason", "asked", "--name", finished_run.NAME, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["entry_id"] == entry_id and told["edits"] == 1
    assert list(told["rewritten"]) == [f"{finished_run.NAME}/round-001"]
    summary = lineage.open_run(project, finished_run.NAME).summary(1)
    info = verify(project / "versions" / finished_run.NAME / "round-001" / "memory")
    assert summary is not None and summary["digests"]["entries"] == info.digest_entries
    assert summary["digests"]["ledger"] == info.digest_ledger
    with finished_run.scripted():
        step.run(plan.begin_job(lineage.open_run(project, finished_run.NAME), 2))
    with Memory.open(project / "runs" / f"{finished_run.NAME}~2" / "live" / "round-002", read_only=True) as memory:
        assert memory.get([entry_id])[0].status == "erased"
    assert (project / "runs" / finished_run.NAME / "erasures.jsonl").read_text().count(entry_id) == 1


def test_a_killed_request_is_finished_by_asking_again(project: Path) -> None:
    entry_id, text = a_tip(project)

    def killed() -> None:
        with patch.object(durable, "write_text", die):  # the summary: after the snapshot
            forget.forget(project, finished_run.NAME, entry_id, "asked")

    assert in_child(killed) < 0
    done = forget.forget(project, finished_run.NAME, entry_id[:10], "asked")
    folder = project / "versions" / finished_run.NAME / "round-001"
    info = verify(folder / "memory")
    summary = lineage.open_run(project, finished_run.NAME).summary(1)
    assert summary is not None and summary["digests"]["entries"] == info.digest_entries
    assert done.entry_id == entry_id
    for path in [*folder.rglob("*.jsonl"), *(project / "runs").rglob("*.jsonl")]:
        for line in path.read_text().splitlines():
            assert not (text in line and entry_id in line), path


def test_a_live_ledger_that_was_moved_away_when_a_request_was_killed_comes_back(tmp_path: Path) -> None:
    with Memory.open(tmp_path) as memory:
        entry_id = filled(memory)
        before = memory.ledger.segment_keys()

    def killed() -> None:
        with patch.object(durable.os, "replace", lambda old, new: die() if new == ledger else move(old, new)):
            erase.rewrite_ledger(ledger, {entry_id})

    ledger, move = tmp_path / LEDGER_FOLDER, os.replace
    assert in_child(killed) < 0 and not ledger.exists()
    with Memory.open(tmp_path) as memory:
        assert memory.ledger.segment_keys() == before


def test_what_killed_requests_left_goes_with_the_next(project: Path) -> None:
    entry_id, text = a_tip(project)
    folder = project / "versions" / finished_run.NAME / "round-001"
    for left in (".memory.0123abcd.old.tmp", ".erasing-x"):
        shutil.copytree(folder / "memory", folder / left)
    forget.forget(project, finished_run.NAME, entry_id, "asked")
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["memory", "policy"]
    assert not any(text in path.read_text() for path in folder.rglob("*.jsonl"))


def test_a_lineage_stands_for_its_whole_run(project: Path) -> None:
    entry_id, _ = a_tip(project)
    assert cli.main(["memory", "rollback", "1", "--name", finished_run.NAME]) == 0
    done = forget.forget(project, f"{finished_run.NAME}~2", entry_id, "asked")
    assert list(done.rewritten) == [f"{finished_run.NAME}/round-001"]
    assert (project / "runs" / finished_run.NAME / "erasures.jsonl").exists()


def test_a_run_that_is_written_to_is_left_alone(project: Path) -> None:
    run = lineage.open_run(project, finished_run.NAME)
    other = {"schema_version": 1, "pid": os.getppid(), "started": processes.started(os.getppid())}
    (run.paths.run / "writer.json").write_text(json.dumps(other))
    with pytest.raises(SetupError, match=r"is being written by process.*erase, then: opd resume"):
        forget.forget(project, finished_run.NAME, a_tip(project)[0], "asked")
    (run.paths.run / "writer.json").unlink()
    forget.forget(project, finished_run.NAME, a_tip(project)[0], "asked")
    assert not (run.paths.run / "writer.json").exists()


def test_of_a_round_under_way_the_snapshot_is_told_anew(project: Path) -> None:
    run = lineage.open_run(project, finished_run.NAME)
    for name in ("snapshot", "examples", "begin"):
        shutil.copytree(run.paths.step(1, name), run.paths.step(2, name))
    forget.forget(project, finished_run.NAME, a_tip(project)[0], "asked")
    left = {path.name for path in run.paths.step(2, "").iterdir()}
    assert left == {"begin"} and run.paths.step(1, "snapshot").exists()


def test_erased_turns_are_no_example_to_follow(tmp_path: Path) -> None:
    entry = tip("late", SECRET)
    told, silent = secret_row("w", entry.entry_id), erase.redact_row(secret_row("v", entry.entry_id), {entry.entry_id})
    assert silent.turns and silent.success
    assert {task: [one.rollout_id for one in won] for task, won in winners([told, silent]).items()} == {"t": ["w"]}


def test_the_cached_bytes_go_too(project: Path) -> None:
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, cwd=project, check=True, env=versioning.environment())
    folder = project / "versions" / finished_run.NAME / "round-001"
    versioning.add_pointers(project, [folder / "memory", folder / "policy"])
    entry_id, _ = a_tip(project)
    cached = [path for path in (project / ".dvc" / "cache").rglob("*") if path.is_file()]
    shutil.rmtree(folder / "memory")  # only the pointer stands for it
    done = forget.forget(project, finished_run.NAME, entry_id, "asked")
    assert done.cached > 0 and done.rewritten
    assert versioning.is_current(folder / "memory") and versioning.is_current(folder / "policy")
    left = [path for path in (project / ".dvc" / "cache").rglob("*") if path.is_file()]
    assert len(left) == len(cached), "as many new objects as old ones that went"
    told = [path for path in left if f'"entry_id":"{entry_id}"'.encode() in path.read_bytes()]
    assert told and all(b'"status":"erased"' in path.read_bytes() for path in told)


def test_hosted_copies_data_docs_and_backups_are_reached(project: Path) -> None:
    entry_id, _ = a_tip(project)
    run = lineage.open_run(project, finished_run.NAME)
    assert cli.main(["memory", "copy", "--to", "embedded", "--name", finished_run.NAME]) == 0
    hosted = run.paths.run / "hosted" / "embedded"
    backup = hosted / f"{LEDGER_FOLDER}.before-schema-1"
    backup.mkdir()
    docs = run.paths.step(1, "contracts") / "data_docs"
    docs.mkdir(parents=True)
    for page in (docs / "index.html", backup / "segment"):
        page.write_text(SECRET)
    done = forget.forget(project, finished_run.NAME, entry_id, "asked")
    assert done.live == 1 and not docs.exists() and not backup.exists()
    with Memory.open(hosted, run.params.memory, read_only=True) as memory:
        assert memory.get([entry_id])[0].status == "erased"
        assert memory.digest() == verify(run.paths.version(1) / "memory").digest_entries


def test_bad_requests(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in (["ffffffffffff", "--reason", "x"], ["", "--reason", "x"], [a_tip(project)[0], "--reason", " "]):
        assert cli.main(["memory", "erase", *wrong, "--name", finished_run.NAME]) == 2
    assert cli.main(["memory", "erase", "x", "--reason", "x", "--name", "nobody"]) == 2
    assert capsys.readouterr().err.count("error:") == 4
    with pytest.raises(SetupError, match="no run"):
        forget.forget(project, "nobody", "x", "x")
