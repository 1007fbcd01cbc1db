"""What was erased stays so when rounds are played again, and a round under way goes on after a request."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import finished_run
import pytest
from rollout_world import agent

from opd_evolver import lineage, step
from opd_evolver.durable import write_text
from opd_evolver.lineage import Run
from opd_evolver.memory import edits
from opd_evolver.memory.store import Memory
from opd_evolver.records import Entry, GenerationRequest, Prompt, Proposal, TipContent
from opd_evolver.steps import forget, plan

NAME = finished_run.NAME
SECRET = "xyzzysecret"


def telling(prompt: Prompt, request: GenerationRequest) -> str:
    """The scripted agent, which says a secret wherever it acts and writes it down."""
    told = agent(prompt, request)
    if prompt.ability == "act":
        return f"{told} {SECRET}"
    return f"tip late {SECRET}" if prompt.ability == "write" else told


@pytest.fixture(autouse=True)
def told():  # type: ignore[no-untyped-def]
    with finished_run.scripted(), patch.object(finished_run, "agent", telling):
        yield


def play(run: Run, round_: int, waves: int | None = None) -> None:
    """The first waves of a round, or all."""
    step.run(plan.begin_job(run, round_))
    for wave in range(plan.n_waves(run) if waves is None else waves):
        for job in plan.shard_jobs(run, round_, wave):
            step.run(job)
        step.run(plan.barrier_job(run, round_, wave))


def entries(run: Run, round_: int) -> list[Entry]:
    with Memory.open(run.paths.live(round_), run.params.memory, read_only=True) as memory:
        return memory.entries(live_only=False)


def secrets(run: Run, round_: int) -> list[Entry]:
    return [one for one in entries(run, round_) if SECRET in one.content.model_dump_json()]


def telling_files(run: Run) -> list[Path]:
    files = [path for folder in (run.paths.run, run.paths.versions) for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if SECRET.encode() in path.read_bytes()]


def test_behind_a_rollback_to_a_round_without_it_nothing_learns_it_again(project: Path) -> None:
    run = lineage.open_run(project, NAME)
    play(run, 2)
    learnt = secrets(run, 2)
    for log in (run.paths.step(2, "wave-00").with_suffix(".err"), run.paths.step(2, "distil") / "work" / "rank-0.err"):
        write_text(log, f"ValueError: {SECRET}\n")
    assert learnt and telling_files(run)
    for one in learnt:
        forget.forget(project, NAME, one.entry_id, "asked")
    assert telling_files(run) == []
    back = lineage.branch(project, NAME, 1)
    play(back, 2)
    states = {one.entry_id: one.status for one in entries(back, 2)}
    assert all(states[one.entry_id] == "erased" for one in learnt), "it was learnt again"
    assert secrets(back, 2) == [] and telling_files(back) == []
    with Memory.open(back.paths.live(2), back.params.memory, read_only=True) as memory:
        rows = [row for row in memory.ledger.rows(2) if row.group == "maintain"]
        assert rows and all(call.prompt_token_ids for row in rows for call in row.calls), "what told nothing stays"
    for job in (*plan.shard_jobs(back, 2, 0), plan.barrier_job(back, 2, 0)):
        (job.out_path() / "result.json").unlink()
        step.run(job)
    assert telling_files(back) == [], "a resumed round plays no committed wave again"


def test_what_is_imported_again_is_a_tombstone(project: Path) -> None:
    run = lineage.open_run(project, NAME)
    proposal = Proposal(domain="sql", scope="zora", content=TipContent(trigger="late", text=SECRET))
    edit = edits.Edit(kind="import", proposals=(proposal,), reason="f")
    edits.add(edits.file_of(run.paths.run, 2), edit)
    step.run(plan.begin_job(run, 2))
    [brought] = secrets(run, 2)
    done = forget.forget(project, NAME, brought.entry_id, "asked")
    assert done.first_round == 2, "no policy of round 1 knows it"
    back = lineage.branch(project, NAME, 1)
    edits.add(edits.file_of(back.paths.run, 2), edit)
    assert step.run(plan.begin_job(back, 2)).metrics["n_added"] == 0
    assert {one.status for one in entries(back, 2) if one.entry_id == brought.entry_id} == {"erased"}
    n_segments = len(list((back.paths.live(2) / "ledger").glob("segment-*")))
    (plan.begin_job(back, 2).out_path() / "result.json").unlink()
    step.run(plan.begin_job(back, 2))  # as after a kill behind its commit
    assert len(list((back.paths.live(2) / "ledger").glob("segment-*"))) == n_segments


# ── a round under way ─────────────────────────────────────────────────────────────────────────


def test_a_round_whose_shards_had_ended_goes_on_after_a_request(project: Path) -> None:
    """The entry is of this round: no digest of the champion changes with it."""
    run = lineage.open_run(project, NAME)
    play(run, 2, waves=1)
    for job in plan.shard_jobs(run, 2, 1):
        step.run(job)
    forget.forget(project, NAME, secrets(run, 2)[0].entry_id, "asked")
    assert all(step.finished(job) is None for job in plan.shard_jobs(run, 2, 1)), "shards play beside each other again"
    play(run, 2)
    assert step.run(plan.snapshot_job(run, 2)).metrics["n_rollouts"] > 0


@pytest.mark.parametrize("torn", [False, True])
def test_a_micro_batch_that_is_lost_behind_its_shard_is_played_again(project: Path, torn: bool) -> None:
    run = lineage.open_run(project, NAME)
    step.run(plan.begin_job(run, 2))
    for job in plan.shard_jobs(run, 2, 0):
        step.run(job)
    first, *others = sorted((run.paths.step(2, "wave-00") / "microbatches").glob("mb-*.jsonl"))
    whole, before = first.read_bytes(), {path: path.stat().st_mtime_ns for path in others}
    if torn:
        first.write_bytes(whole[: len(whole) // 2])
    else:
        first.unlink()
    play(run, 2)
    lines = [one.splitlines()[:-1] for one in (first.read_bytes(), whole)]
    assert lines[0] == lines[1], "all but its seconds"
    assert before == {path: path.stat().st_mtime_ns for path in others}, "no other is played again"
