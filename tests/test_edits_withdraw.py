"""`opd memory waiting` and `withdraw`: what was brought in by mistake is taken back before a round begins with it."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import finished_run
import pytest
from conftest import Opd
from test_edits_waiting import NAME, add, end, import_of, undo_of, waiting

from opd_evolver import lineage, step
from opd_evolver.durable import write_text
from opd_evolver.errors import SetupError
from opd_evolver.memory import edits
from opd_evolver.processes import born, started
from opd_evolver.records import SCHEMA_VERSION, MemoryOperation, canonical_json
from opd_evolver.steps import plan
from opd_evolver.steps import waiting as steps


def told(opd: Opd, *arguments: str) -> list[dict[str, object]]:
    said = opd("memory", "waiting", "--name", NAME, "--json", *arguments)
    assert said.code == 0, said.err
    return list(json.loads(said.out))


def test_a_file_imported_by_mistake_is_withdrawn(project: Path, opd: Opd) -> None:
    run = lineage.open_run(project, NAME)
    bare = plan.begin_job(run, 2).key()
    wrong, right = Path("wrong.jsonl"), Path("right.jsonl")
    for file, key in ((wrong, "late"), (right, "paid")):
        content = {"trigger": key, "text": "4"}
        file.write_text(json.dumps({"level": "tip", "domain": "sql", "scope": "zora", "content": content}) + "\n")
        assert opd("memory", "import", str(file), "--name", NAME).code == 0
    first, second = told(opd)
    assert (first["kind"], first["reason"], first["entries"], first["round"]) == ("import", "wrong.jsonl", 1, 2)
    assert "wrong.jsonl (1 entry), enters when the next round begins" in opd("memory", "waiting", "--name", NAME).out
    said = opd("memory", "withdraw", str(first["edit"])[:8], "--name", NAME)
    assert (said.code, said.out) == (0, f"import wrong.jsonl (1 entry) is withdrawn from `{NAME}`\n")
    assert told(opd) == [second]
    assert json.loads(opd("memory", "withdraw", str(second["edit"]), "--name", NAME, "--json").out) == second
    assert opd("memory", "waiting", "--name", NAME).out == "nothing waits\n"
    assert plan.begin_job(run, 2).key() == bare, "the round is what it was without them"


def test_what_a_refused_round_was_given_can_be_withdrawn_before_it_enters_again(project: Path) -> None:
    run = lineage.open_run(project, NAME)
    add(run, 2, import_of("a"), import_of("b"))
    end(run, 2, champion=1)
    add(run, 3, import_of("a"))
    ids = {one.edit.reason: one.edit_id for one in steps.waiting(run)}
    assert steps.withdraw(run, ids["a.jsonl"]).edit == import_of("a")
    assert waiting(run, 3) == [import_of("b")], "asked for twice, it is withdrawn wherever it waits"


def test_with_what_a_round_has_begun_it_goes_on_until_a_rollback(project: Path, opd: Opd) -> None:
    run = lineage.open_run(project, NAME)
    add(run, 2, import_of("a"))
    with finished_run.scripted():
        step.run(plan.begin_job(run, 2))
    add(run, 3, import_of("b"))
    assert [one["taken"] for one in told(opd)] == [2, None]
    taken, free = (str(one["edit"]) for one in told(opd))
    refused = opd("memory", "withdraw", taken, "--name", NAME)
    mend = f"opd memory rollback 1 --name {NAME}"
    assert (
        refused.code == 2 and "round 2 of `done` has begun with import a.jsonl" in refused.err and mend in refused.err
    )
    assert opd("memory", "withdraw", free, "--name", NAME).code == 0
    assert waiting(run, 3) == [import_of("a")]
    assert opd("memory", "rollback", "1", "--name", NAME).code == 0
    assert opd("memory", "withdraw", taken, "--name", NAME).code == 0
    back = lineage.open_run(project, NAME)
    assert (back.lineage, waiting(back, 2)) == (f"{NAME}~2", [])
    assert waiting(run, 2) == [import_of("a")], "the lineage that was left keeps its own"


def test_what_another_edit_needs_is_withdrawn_behind_it(project: Path) -> None:
    run = lineage.open_run(project, NAME)
    again = MemoryOperation(operation_id="again", kind="undo", round=2, retired=())
    add(run, 2, undo_of("x"), edits.Edit(kind="undo", operations=(again,), reason="undo-x"))
    first, second = steps.waiting(run)
    needs = second.edit_id[:12]
    with pytest.raises(SetupError, match=rf"undo {needs}, which waits too.*withdraw {needs}"):
        steps.withdraw(run, first.edit_id)
    for one in (second, first):
        steps.withdraw(run, one.edit_id)
    assert not edits.file_of(run.paths.run, 2).exists()


@pytest.mark.parametrize("asked", ["", "nothing"])
def test_an_edit_that_does_not_wait_is_named_with_those_that_do(project: Path, opd: Opd, asked: str) -> None:
    run = lineage.open_run(project, NAME)
    none = opd("memory", "withdraw", asked, "--name", NAME)
    assert none.code == 2 and f"no edit `{asked}`" in none.err and "there is none" in none.err
    add(run, 2, import_of("a"))
    refused = opd("memory", "withdraw", asked, "--name", NAME)
    assert refused.code == 2 and f"one of {steps.waiting(run)[0].edit_id[:12]}" in refused.err
    assert waiting(run, 2) == [import_of("a")]


def test_a_run_that_is_being_written_is_left_alone(project: Path) -> None:
    run = lineage.open_run(project, NAME)
    add(run, 2, import_of("a"))
    (one,) = steps.waiting(run)
    parent = os.getppid()
    other = {"schema_version": SCHEMA_VERSION, "pid": parent, "started": started(parent), "birth": born(parent)}
    write_text(run.paths.run / "writer.json", canonical_json(other))
    with pytest.raises(SetupError, match="is being written by process"):
        steps.withdraw(run, one.edit_id)
    assert waiting(run, 2) == [import_of("a")]


def test_an_import_during_a_withdrawal_is_not_lost(tmp_path: Path) -> None:
    path = edits.file_of(tmp_path, 2)
    edits.add(path, import_of("a"))
    begun = threading.Event()

    def bring() -> None:
        begun.wait(10)
        edits.add(path, import_of("b"))

    other = threading.Thread(target=bring)
    other.start()

    def without(found: list[edits.Edit]) -> list[edits.Edit]:
        begun.set()
        other.join(0.5)
        return [one for one in found if one != import_of("a")]

    edits.rewrite(path, without)
    other.join(10)
    assert edits.read(path) == [import_of("b")]
