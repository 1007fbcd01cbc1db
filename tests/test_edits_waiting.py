"""Edits by hand that no memory has yet: behind a refused round, a rollback and a fork none is lost without a word."""

from __future__ import annotations

from pathlib import Path

import finished_run
import pytest
from conftest import Opd

from opd_evolver import lineage, step
from opd_evolver.durable import write_text
from opd_evolver.errors import CorruptionError
from opd_evolver.lineage import Run
from opd_evolver.memory import edits
from opd_evolver.memory.snapshot import write_snapshot
from opd_evolver.memory.store import Memory
from opd_evolver.params import Params, merge
from opd_evolver.records import Entry, MemoryOperation, Proposal, TipContent, canonical_json, digest_of
from opd_evolver.steps import plan

NAME = finished_run.NAME


def proposal(key: str) -> Proposal:
    return Proposal(domain="sql", scope="zora", content=TipContent(trigger=key, text="4"))


def import_of(*keys: str) -> edits.Edit:
    return edits.Edit(kind="import", proposals=tuple(map(proposal, keys)), reason=f"{keys[0]}.jsonl")


def undo_of(name: str) -> edits.Edit:
    operation = MemoryOperation(operation_id=f"undo-{name}", kind="undo", round=2, retired=(), created=())
    return edits.Edit(kind="undo", operations=(operation,), reason=name)


def end(run: Run, round_: int, *, champion: int) -> None:
    """The round's summary, as the gate leaves it; nothing was played."""
    tree = {**(run.summary(1) or {}), "round": round_, "champion": champion}
    write_text(run.paths.summary(round_), canonical_json(tree))


def waiting(run: Run, round_: int) -> list[edits.Edit]:
    return [edit for path in plan.edit_files(run, round_) for edit in edits.read(path)]


def add(run: Run, round_: int, *given: edits.Edit) -> None:
    for edit in given:
        edits.add(edits.file_of(run.paths.run, round_), edit)


# ── behind a refused round ────────────────────────────────────────────────────────────────────


def test_what_a_refused_round_was_given_enters_the_next(project: Path) -> None:
    run = lineage.open_run(project, NAME)
    bare = plan.begin_job(run, 2).key()
    add(run, 2, import_of("a"))
    with finished_run.scripted():
        assert step.run(plan.begin_job(run, 2)).metrics["n_added"] == 1
        end(run, 2, champion=1)
        add(run, 3, import_of("b"))
        job = plan.begin_job(run, 3)
        assert step.run(job).metrics["n_added"] == 2
    with Memory.open(job.path("live"), run.params.memory, read_only=True) as memory:
        brought = [entry.created_round for entry in memory.entries() if entry.created_round > 1]
    assert brought == [3, 3]
    end(run, 3, champion=3)
    assert "edits" not in plan.begin_job(run, 4).inputs, "the champion has them"
    assert bare != plan.begin_job(run, 2).key(), "an edit is an input of its round"


def test_the_keys_of_a_round_with_edits_of_its_own_are_what_they_were(project: Path) -> None:
    run = lineage.open_run(project, NAME)
    given = [import_of("a"), import_of("b")]
    add(run, 2, *given)
    told = plan.begin_job(run, 2).input_digests["edits"]
    assert told == digest_of([canonical_json(edit) for edit in given])


# ── rollback, fork ────────────────────────────────────────────────────────────────────────────


def test_a_rollback_takes_along_what_waits(project: Path, opd: Opd) -> None:
    run = lineage.open_run(project, NAME)
    add(run, 2, import_of("a"))
    end(run, 2, champion=1)
    add(run, 3, import_of("b"), undo_of("x"))
    said = opd("memory", "rollback", "1", "--name", NAME)
    assert said.code == 0 and "without" not in said.err, "the memory is the same: an undo can enter"
    back = lineage.open_run(project, NAME)
    assert waiting(back, 2) == [import_of("a"), import_of("b"), undo_of("x")]
    assert lineage.branch(project, NAME, 1).lineage == f"{NAME}~3"
    assert len(waiting(lineage.open_run(project, NAME), 2)) == 3, "and again"


def test_a_rollback_to_a_refused_round_finds_its_edits_where_they_are(project: Path) -> None:
    run = lineage.open_run(project, NAME)
    add(run, 2, import_of("a"))
    end(run, 2, champion=1)
    end(run, 3, champion=3)
    back = lineage.branch(project, NAME, 2)
    assert waiting(back, 3) == [import_of("a")] and not (back.paths.run / "edits").exists()


def test_a_rollback_says_what_it_leaves_behind(project: Path, opd: Opd) -> None:
    """What entered a round that is taken back; and the undo of an operation that the older memory does not have."""
    run = lineage.open_run(project, NAME)
    add(run, 2, import_of("taken"))
    end(run, 2, champion=2)
    add(run, 3, undo_of("of-round-2"), undo_of("undo-of-round-2"), import_of("kept"))
    said = opd("memory", "rollback", "1", "--name", NAME)
    assert said.code == 0, said.err
    [line] = [line for line in said.err.splitlines() if "without" in line]
    assert f"{NAME}~2 goes on from round 1 without: import taken.jsonl, undo of-round-2, undo undo-of-round-2" in line
    assert waiting(lineage.open_run(project, NAME), 2) == [import_of("kept")]
    with finished_run.scripted():
        job = plan.begin_job(lineage.open_run(project, NAME), 2)
        assert step.run(job).metrics["n_added"] == 1


def test_a_rollback_takes_along_the_undo_of_what_the_older_memory_has(project: Path, opd: Opd) -> None:
    run = lineage.open_run(project, NAME)
    with Memory.open(run.paths.live(1), run.params.memory) as memory:
        gone = memory.entries()[0].entry_id
        done = memory.retire([gone], "test", 1).operation_id
        write_snapshot(memory, run.paths.version(1) / "memory", 1, run.lineage)
    end(run, 2, champion=2)
    add(run, 3, undo_of(done), undo_of(f"undo-{done}"))
    assert len(waiting(lineage.branch(project, NAME, 1), 2)) == 2


def test_the_way_back_from_a_rollback_says_what_waits_there(project: Path, opd: Opd) -> None:
    add(lineage.open_run(project, NAME), 2, import_of("a"))
    add(lineage.branch(project, NAME, 1), 2, import_of("b"))
    said = opd("memory", "undo", "--name", NAME)
    assert said.code == 0 and f"{NAME} goes on from round 1 without: import b.jsonl; ask again" in said.err, said.err
    assert waiting(lineage.open_run(project, NAME), 2) == [import_of("a")]


def test_a_lineage_that_cannot_be_opened_leaves_no_name_behind(project: Path) -> None:
    run = lineage.open_run(project, NAME)
    add(run, 2, import_of("a"))
    path = edits.file_of(run.paths.run, 2)
    path.write_text("{}\n" + path.read_text())
    for _ in range(2):
        with pytest.raises(CorruptionError, match="line 1 is malformed"):
            lineage.branch(project, NAME, 1)
    assert lineage.next_lineage(project, NAME) == f"{NAME}~2"


def test_a_fork_takes_along_all_that_came_from_outside(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = lineage.open_run(project, NAME)
    add(run, 1, import_of("first"))
    add(run, 2, import_of("waits"), undo_of("gone"))
    forked = lineage.open_or_create(project, NAME, merge(run.params, {"seed": 9}, "test"), fork=True)
    assert waiting(forked, 1) == [import_of("first"), import_of("waits")]
    assert f"{NAME}~2 goes on from round 0 without: undo gone" in capsys.readouterr().err
    back = lineage.undo(project, NAME)
    assert len(waiting(back, 2)) == 2, "nothing was moved"


def test_a_fork_that_keeps_rounds_takes_along_what_waits(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lineage.branch(project, NAME, 1)
    run = lineage.open_run(project, NAME)
    add(run, 2, import_of("a"), undo_of("x"))
    forked = lineage.open_or_create(project, NAME, merge(run.params, {"gate.margin": 0.5}, "test"), fork=True)
    assert forked.finished_rounds() == [1] and waiting(forked, 2) == [import_of("a"), undo_of("x")]
    assert "without" not in capsys.readouterr().err


def test_a_run_without_edits_hands_none_on(tmp_path: Path) -> None:
    lineage.open_or_create(tmp_path, "a", Params())
    forked = lineage.open_or_create(tmp_path, "a", Params(seed=9), fork=True)
    assert not (forked.paths.run / "edits").exists()


# ── order ─────────────────────────────────────────────────────────────────────────────────────


def test_an_import_behind_an_undo_brings_back_what_the_undo_retires(tmp_path: Path) -> None:
    """In one segment operations come behind entries; the user said it the other way round."""
    with Memory.open(tmp_path) as memory:
        edits.apply(memory, [import_of("m", "n")], 1, "run")
        ids: dict[str, Entry] = {entry.content.trigger: entry for entry in memory.entries()}  # type: ignore[union-attr]
        retire = MemoryOperation(operation_id="o", kind="undo", round=1, retired=(ids["m"].entry_id, ids["n"].entry_id))
        undone = edits.Edit(kind="undo", operations=(retire,), reason="x")
        for _ in range(2):  # a killed begin step does it again
            edits.apply(memory, [import_of("n"), undone, import_of("m")], 2, "run")
        states = {entry.entry_id: entry for entry in memory.entries(live_only=False)}
        assert states[ids["m"].entry_id].status == "live"
        left = states[ids["n"].entry_id]
        assert (left.status, left.retired_round, len(memory.ledger.segment_keys())) == ("retired", 2, 2)
