"""Undo of one operation: what it retired lives again, what it made goes, in the ledger and through a whole round."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest.mock import patch

import finished_run
import pytest
from conftest import Opd
from memory_cases import row, tip
from one_line import one_line
from rollout_world import agent

from opd_evolver import lineage, step
from opd_evolver.durable import write_text
from opd_evolver.errors import SetupError
from opd_evolver.lineage import Run
from opd_evolver.memory import erase
from opd_evolver.memory.segment import LedgerSegment
from opd_evolver.memory.snapshot import read_entries, verify, write_snapshot
from opd_evolver.memory.store import LEDGER_FOLDER, Memory, reindex
from opd_evolver.memory.undo import inverse
from opd_evolver.policy.scripted import ScriptedPolicy
from opd_evolver.records import Entry, GenerationRequest, MemoryOperation, Prompt
from opd_evolver.steps import plan, resources

A, B, C, M, N = (tip(key, "4") for key in ("a", "b", "c", "m", "n"))


def operation(
    name: str, retired: Sequence[Entry], created: Sequence[Entry] = (), round: int = 1, kind: str = "merge"
) -> MemoryOperation:
    ids = [tuple(one.entry_id for one in entries) for entries in (retired, created)]
    return MemoryOperation(operation_id=name, kind=kind, round=round, retired=ids[0], created=ids[1])  # type: ignore[arg-type]


def commit(
    memory: Memory, wave: int, entries: Sequence[Entry] = (), operations: Sequence[MemoryOperation] = ()
) -> None:
    rows = [row(f"w{wave}", wave=wave)]
    memory.commit(
        LedgerSegment(
            lineage="run", round=1, wave=wave, rows=rows, entries=tuple(entries), operations=tuple(operations)
        )
    )


def undo(memory: Memory, name: str, wave: int) -> tuple[str, ...]:
    """Undoes in the ledger at once; returns what stayed."""
    entries = {entry.entry_id: entry for entry in memory.entries(live_only=False)}
    done = inverse(list(memory.ledger.read_all()), entries, name, 2)
    commit(memory, wave, operations=[done.inverse])
    return done.kept


def live(memory: Memory) -> set[str]:
    return {entry.entry_id for entry in memory.entries()}


def ids(*entries: Entry) -> set[str]:
    return {entry.entry_id for entry in entries}


@pytest.fixture
def memory(tmp_path: Path) -> Memory:
    opened = Memory.open(tmp_path / "live")
    commit(opened, 0, [A, B, C])
    merged = M.model_copy(update={"parents": tuple(sorted(ids(A, B)))})
    commit(opened, 1, [merged], [operation("first", [A, B], [M])])
    return opened


def test_a_merge_is_taken_back_and_done_again(memory: Memory) -> None:
    before = {entry.entry_id: entry for entry in memory.entries(live_only=False)}
    assert undo(memory, "first", 2) == ()
    assert live(memory) == ids(A, B, C)
    back = memory.get([A.entry_id, M.entry_id])
    assert back[0].retired_by == "" and back[0].retired_round is None
    assert back[1].retired_by.startswith("undo-") and set(back[1].parents) == ids(A, B), "lineage is kept"
    assert all(one.entry_id != M.entry_id for one, _ in memory.index.search("m", level="tip", limit=9))
    with pytest.raises(SetupError, match="nothing of merge first is left to undo"):
        undo(memory, "first", 3)
    undo(memory, "undo-", 3)
    assert live(memory) == ids(C, M)
    assert memory.get([A.entry_id])[0].created_round == before[A.entry_id].created_round
    undo(memory, [one.operation_id for s in memory.ledger.read_all() for one in s.operations][-1], 4)
    assert live(memory) == ids(A, B, C)


def test_a_deletion_is_taken_back(memory: Memory) -> None:
    commit(memory, 2, operations=[operation("cut", [C], kind="delete")])
    assert live(memory) == ids(M)
    undo(memory, "cut", 3)
    assert live(memory) == ids(M, C)


def test_what_others_wrote_too_stays(memory: Memory) -> None:
    commit(memory, 2, [M])
    assert undo(memory, "first", 3) == (M.entry_id,)
    assert live(memory) == ids(A, B, C, M)


def test_what_was_there_before_the_merge_stays(memory: Memory) -> None:
    commit(memory, 2, [N])
    commit(memory, 3, [N], [operation("into-known", [C], [N])])
    assert undo(memory, "into-known", 4) == (N.entry_id,)
    assert live(memory) == ids(M, N, C)


def test_what_another_merge_also_made_stays_while_that_one_holds(memory: Memory) -> None:
    commit(memory, 2, [M], [operation("second", [C], [M])])
    assert undo(memory, "first", 3) == (M.entry_id,)
    assert live(memory) == ids(A, B, M)


def test_a_merge_of_a_merge_is_undone_from_either_end(memory: Memory) -> None:
    commit(memory, 2, [N], [operation("second", [M, C], [N])])
    undo(memory, "first", 3)
    assert live(memory) == ids(A, B, N), "what the later merge made stays"
    undo(memory, "second", 4)
    assert live(memory) == ids(A, B, C, M)


def test_what_was_forgotten_does_not_come_back(tmp_path: Path, memory: Memory) -> None:
    memory.close()
    erase.rewrite_ledger(tmp_path / "live" / LEDGER_FOLDER, ids(A))
    reindex(tmp_path / "live")
    with Memory.open(tmp_path / "live") as again:
        undo(again, "first", 2)
        assert live(again) == ids(B, C) and again.get([A.entry_id])[0].status == "erased"


def test_a_replay_and_a_snapshot_tell_the_same(tmp_path: Path, memory: Memory) -> None:
    undo(memory, "first", 2)
    info = write_snapshot(memory, tmp_path / "memory", 1, "run")
    memory.index.clear()
    memory.close()
    with Memory.open(tmp_path / "live") as again:
        assert again.digest() == info.digest_entries
    assert verify(tmp_path / "memory") == info


@pytest.mark.parametrize("wrong", ["nothing-so-named", ""])
def test_an_unknown_operation_says_where_ids_are(memory: Memory, wrong: str) -> None:
    with pytest.raises(SetupError, match="opd memory log"):
        undo(memory, wrong, 2)


# ── the commands over a run whose first round deleted an entry ──────────────────────────────


def tidy(prompt: Prompt, request: GenerationRequest) -> str:
    """The scripted agent, which deletes the first entry that maintenance shows."""
    if prompt.ability != "maintain":
        return agent(prompt, request)
    return "delete h1" if len(prompt.messages) == 1 else "finish"


@pytest.fixture(scope="module")
def maintained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("maintained")
    with patch.object(finished_run, "agent", tidy):
        finished_run.build(root, finished_run.policy_folder(root))
    return root


@pytest.fixture
def run(maintained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    shutil.copytree(maintained, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return lineage.open_run(tmp_path / "project", finished_run.NAME)


def called(opd: Opd, *arguments: str) -> dict:  # type: ignore[type-arg]
    said = opd("memory", *arguments, "--name", finished_run.NAME, "--json")
    assert said.code == 0, said.err
    return json.loads(said.out)  # type: ignore[no-any-return]


def test_undo_of_a_logged_operation_enters_the_next_round(run: Run, opd: Opd) -> None:
    operations = [one for commit in called(opd, "log") for one in commit["operations"]]
    assert operations and operations[0]["kind"] == "delete"
    name, gone = operations[0]["id"], operations[0]["retired"]
    assert name in opd("memory", "log", "--name", finished_run.NAME).out
    assert called(opd, "undo", name, "--dry-run")["back"] == gone
    assert plan.begin_job(run, 2).inputs.get("edits") is None, "a dry run writes nothing"
    done = called(opd, "undo", name[:10])
    assert (done["operation"], done["round"], done["back"], done["retired"]) == (name, 2, gone, [])
    one_line(opd("memory", "undo", name, "--name", finished_run.NAME), "left to undo")
    folder = run.paths.version(1) / "memory"
    assert {one.entry_id for one in read_entries(folder) if one.status == "retired"} >= set(gone)
    with finished_run.scripted():
        step.run(plan.begin_job(run, 2))
        with Memory.open(run.paths.live(2), run.params.memory, read_only=True) as memory:
            assert all(one.status == "live" for one in memory.get(gone))
            assert memory.ledger.read(memory.ledger.segment_keys()[-1]).operations[0].kind == "undo"


def test_undo_without_an_operation_is_still_the_way_back_from_a_rollback(run: Run, opd: Opd) -> None:
    one_line(opd("memory", "undo", "--name", finished_run.NAME), "no rollback or fork to undo")
    one_line(opd("memory", "undo", "--dry-run", "--name", finished_run.NAME), "without an operation")
    assert opd("memory", "rollback", "1", "--name", finished_run.NAME).code == 0
    assert called(opd, "undo")["lineage"] == finished_run.NAME


def test_an_operation_of_a_refused_round_needs_no_undo(run: Run, opd: Opd) -> None:
    [name, *_] = [one["id"] for commit in called(opd, "log") for one in commit["operations"]]
    path = run.paths.summary(1)
    tree = json.loads(path.read_text())
    path.write_text(json.dumps({**tree, "champion": 0}))
    one_line(opd("memory", "undo", name, "--name", finished_run.NAME), "refused every round", "empty memory")
    path.write_text(json.dumps(tree))
    with finished_run.scripted(), patch.object(finished_run, "agent", tidy):
        finished_run.play_round(run, 2)
    second = called(opd, "log")[-1]["operations"][0]["id"]
    path = run.paths.summary(2)
    path.write_text(json.dumps({**json.loads(path.read_text()), "champion": 1}))
    one_line(opd("memory", "undo", second, "--name", finished_run.NAME), "which the gate refused")
    assert called(opd, "undo", name)["round"] == 3, "the champion's operations can be undone"


def test_an_undo_that_entered_a_refused_round_enters_the_next(run: Run, opd: Opd) -> None:
    [first, *_] = [one for commit in called(opd, "log") for one in commit["operations"]]
    done = called(opd, "undo", first["id"])
    with finished_run.scripted():
        step.run(plan.begin_job(run, 2))
    write_text(run.paths.summary(2), json.dumps({**(run.summary(1) or {}), "round": 2, "champion": 1}))
    one_line(opd("memory", "undo", first["id"], "--name", finished_run.NAME), "left to undo")
    with finished_run.scripted():
        assert step.run(plan.begin_job(run, 3)).metrics["n_edits"] == 1
    with Memory.open(run.paths.live(3), run.params.memory, read_only=True) as memory:
        assert all(one.status == "live" for one in memory.get(first["retired"]))
        [entered] = memory.ledger.read(memory.ledger.segment_keys()[-1]).operations
        assert (entered.operation_id, entered.round) == (done["undo"], 3)
    again = called(opd, "undo", done["undo"])
    assert (again["round"], again["retired"]) == (4, first["retired"]), "it can be undone in turn"


def test_why_tells_that_an_entry_came_back(run: Run, opd: Opd) -> None:
    [first, *_] = [one for commit in called(opd, "log") for one in commit["operations"]]
    assert "cut: delete" in opd("memory", "why", first["retired"][0], "--name", finished_run.NAME).out
    called(opd, "undo", first["id"])
    with finished_run.scripted():
        finished_run.play_round(run, 2)
    said = opd("memory", "why", first["retired"][0], "--name", finished_run.NAME).out
    assert f"kept: cut by delete {first['id']}" in said and "brought back by undo undo-" in said


# ── maintenance as a dry run ──────────────────────────────────────────────────────────────────


def dry(opd: Opd, policy: Callable[[Prompt, GenerationRequest], str]) -> dict:  # type: ignore[type-arg]
    with patch.object(resources, "policy", lambda job: ScriptedPolicy(policy, "v")):
        return called(opd, "maintain", "--dry-run")


def test_a_dry_run_of_maintenance_tells_and_changes_nothing(run: Run, opd: Opd) -> None:
    before = {path: path.read_bytes() for path in (run.root / "versions").rglob("*") if path.is_file()}
    tree = dry(opd, tidy)
    [one] = tree["operations"]
    alive = {entry.entry_id for entry in read_entries(run.paths.version(1) / "memory") if entry.status == "live"}
    assert one["kind"] == "delete" and {entry["id"] for entry in one["retired"]} <= alive
    assert (tree["steps"], tree["unreadable"], tree["entries"]) == (2, 0, len(alive))
    assert {path: path.read_bytes() for path in (run.root / "versions").rglob("*") if path.is_file()} == before
    assert plan.begin_job(run, 2).inputs.get("edits") is None
    with patch.object(resources, "policy", lambda job: ScriptedPolicy(tidy, "v")):
        said = opd("memory", "maintain", "--dry-run", "--name", finished_run.NAME).out
    assert "nothing was changed" in said and one["retired"][0]["id"][:12] in said


def test_nonsense_would_change_nothing_and_is_counted(run: Run, opd: Opd) -> None:
    tree = dry(opd, lambda prompt, request: "mumble")
    assert tree["operations"] == [] and tree["unreadable"] == tree["steps"] > 0


def test_maintenance_by_hand_is_not_offered(run: Run, opd: Opd) -> None:
    one_line(opd("memory", "maintain", "--name", finished_run.NAME), "--dry-run")
