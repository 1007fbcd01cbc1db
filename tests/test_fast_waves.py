"""Waves, micro-batches and the one committer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rollout_world import Recorder, Toy, agent, small, task

from opd_evolver.errors import OutageError, SchemaError, SetupError
from opd_evolver.fast.committer import commit_wave, is_committed, memory_state, segment_of
from opd_evolver.fast.epoch import run_epoch, run_wave
from opd_evolver.fast.maintenance import MaintenanceSettings
from opd_evolver.fast.microbatch import (
    Inputs,
    MicrobatchResult,
    check_complete,
    file_name,
    key_of,
    read,
    run_microbatches,
)
from opd_evolver.fast.wave import Wave, cut_waves, plan_epoch, shard_indices
from opd_evolver.memory.store import Memory
from opd_evolver.records import GenerationRequest, Prompt, Reply, Task
from opd_evolver.rollout.runner import EnvironmentPool, Runner
from opd_evolver.rollout.settings import EpisodeSettings

PARAMS = small(fast__maintain_every_tasks=100)


def toys(n: int = 6) -> dict[str, list[Task]]:
    scopes = ("zora", "kilu", "vane")
    return {"toy": [task(number, scope=scopes[number % 3]) for number in range(n)]}


def writer(prompt: Prompt, request: GenerationRequest) -> str:
    """Always writes something, so that segments hold entries."""
    if prompt.ability == "write":
        told = " ".join(segment.text for segment in prompt.messages[0].segments)
        return f"tip late{request.seed % 10} {told.split(' do ')[1].split()[0]} | nonsense"
    return agent(prompt, request)


def waves_of(n: int = 6, **overrides: object) -> list[Wave]:
    return plan_epoch(small(fast__maintain_every_tasks=100, **overrides), 1, toys(n))


def runner_of(memory: Memory, policy: Recorder | None = None, pool: EnvironmentPool | None = None) -> Runner:
    lent = pool or EnvironmentPool(lambda domain: Toy())
    return Runner(policy or Recorder(writer), lent, memory, EpisodeSettings.of(PARAMS), 0, lambda seconds: None)


def live(folder: Path) -> Memory:
    return Memory.open(folder / "live", PARAMS.memory)


def segments(memory: Memory) -> list[bytes]:
    return [path.read_bytes() for path in sorted(memory.ledger.folder.glob("segment-*"))]


# ── the plan ──────────────────────────────────────────────────────────────────────────────────


def test_an_epoch_is_planned_in_fixed_shuffled_interleaved_order() -> None:
    both = toys() | {"apps": [task(number, domain="apps") for number in range(6)]}
    waves = plan_epoch(PARAMS, 3, both)
    assert [wave.n_tasks for wave in waves] == [6, 6]
    rollouts = [one for wave in waves for one in wave.rollouts]
    assert [one.task.domain for one in rollouts[::2]] == ["apps", "toy"] * 6
    assert rollouts[0].rollout_id == f"r003/w00/{rollouts[0].task.task_id}/k1"
    assert rollouts[1].rollout_id == f"r003/w00/{rollouts[0].task.task_id}/k2"
    assert rollouts[-1].rollout_id.startswith("r003/w01/")
    assert len({one.rollout_id for one in rollouts}) == 24
    assert [len(batch) for batch in waves[0].microbatches] == [5, 5, 2]
    assert waves == plan_epoch(PARAMS, 3, {domain: both[domain][::-1] for domain in reversed(both)})
    other = plan_epoch(PARAMS, 4, both)
    assert [one.task.task_id for wave in other for one in wave.rollouts] != [one.task.task_id for one in rollouts]


def test_two_tasks_with_one_id_are_refused() -> None:
    with pytest.raises(SetupError, match="toy-000"):
        cut_waves([task(0), task(0)], round=1, wave_tasks=1, rollouts_per_task=1, microbatch_rollouts=1)


@settings(max_examples=60, deadline=None)
@given(
    n_tasks=st.integers(0, 23), wave_tasks=st.integers(1, 9), per_task=st.integers(1, 4), batch=st.integers(1, 9),
    n_shards=st.integers(1, 5),
)  # fmt: skip
def test_shards_cover_every_micro_batch_once(
    n_tasks: int, wave_tasks: int, per_task: int, batch: int, n_shards: int
) -> None:
    tasks = [task(number) for number in range(n_tasks)]
    waves = cut_waves(tasks, round=1, wave_tasks=wave_tasks, rollouts_per_task=per_task, microbatch_rollouts=batch)
    played = [one.task.task_id for wave in waves for one in wave.rollouts]
    assert played == [one.task_id for one in tasks for _ in range(per_task)]
    for wave in waves:
        dealt = sorted(index for shard in range(n_shards) for index in shard_indices(wave, shard, n_shards))
        assert dealt == list(range(len(wave.microbatches)))


@settings(max_examples=60, deadline=None)
@given(n_tasks=st.integers(1, 30), wave_tasks=st.integers(1, 9), every=st.integers(1, 40), rounds=st.integers(1, 6))
def test_maintenance_comes_at_the_first_barrier_after_q_tasks(
    n_tasks: int, wave_tasks: int, every: int, rounds: int
) -> None:
    since = 0
    for round in range(1, rounds + 1):
        waves = cut_waves(
            [task(number) for number in range(n_tasks)],
            round=round,
            wave_tasks=wave_tasks,
            rollouts_per_task=1,
            microbatch_rollouts=4,
            maintain_every_tasks=every,
        )
        for wave in waves:
            since += wave.n_tasks
            assert wave.maintain_after == (since >= every)
            since = 0 if wave.maintain_after else since


def test_a_shard_that_is_not_there_is_refused() -> None:
    with pytest.raises(SetupError, match="shard 2 of 2"):
        shard_indices(waves_of()[0], 2, 2)


# ── micro-batches ─────────────────────────────────────────────────────────────────────────────


def test_a_valid_file_is_not_run_again(tmp_path: Path) -> None:
    [wave] = waves_of()
    with live(tmp_path) as memory:
        policy = Recorder(writer)
        first = run_microbatches(wave, [0, 1, 2], runner_of(memory, policy), memory_state="s", folder=tmp_path)
        n_calls = len(policy.batches)
        assert sorted(path.name for path in tmp_path.glob("mb-*")) == [file_name(index) for index in range(3)]
        again = run_microbatches(wave, [0, 1, 2], runner_of(memory, policy), memory_state="s", folder=tmp_path)
        assert len(policy.batches) == n_calls
        assert [one.episodes for one in again] == [
            tuple(e.model_copy(update={"seconds": round(e.seconds, 4)}) for e in one.episodes) for one in first
        ]
        run_microbatches(wave, [0], runner_of(memory, policy), memory_state="other", folder=tmp_path)
        assert len(policy.batches) > n_calls  # made from another memory: played again


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "binary", "other"])
def test_a_damaged_file_is_no_result(tmp_path: Path, damage: str) -> None:
    [wave] = waves_of()
    inputs = Inputs(EpisodeSettings.of(PARAMS), "scripted", "s")
    with live(tmp_path) as memory:
        run_microbatches(wave, [0, 1, 2], runner_of(memory), memory_state="s", folder=tmp_path)
    path = tmp_path / file_name(1)
    whole = path.read_bytes()
    path.write_bytes(
        {
            "cut": whole[: len(whole) // 2],
            "flip": whole.replace(b'"success":false', b'"success":true', 1).replace(
                b'"reward":0.0', b'"reward":1.0', 1
            ),
            "empty": b"",
            "binary": b"\xff\xfe\x00",
            "other": (tmp_path / file_name(0)).read_bytes(),
        }[damage]
    )
    assert read(path, key_of(wave, 1, inputs)) is None
    path.write_bytes(whole)
    assert read(path, key_of(wave, 1, inputs)) is not None


def test_a_newer_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / file_name(0)
    path.write_text(json.dumps({"schema_version": 99, "key": "", "digest": ""}) + "\n{}\n{}\n")
    with pytest.raises(SchemaError, match="schema 99"):
        read(path, "")


def test_an_outage_keeps_what_was_finished(tmp_path: Path) -> None:
    [wave] = waves_of()
    with live(tmp_path) as memory:
        outages = [0]

        class Storm(Recorder):
            def generate(self, requests: Sequence[GenerationRequest]) -> list[Reply]:
                outages[0] = 0 if len(self.batches) < 3 else 1
                return super().generate(requests)

        pool = EnvironmentPool(lambda domain: Toy(outages))
        with pytest.raises(OutageError):
            run_microbatches(wave, [0, 1, 2], runner_of(memory, Storm(writer), pool), memory_state="s", folder=tmp_path)
        assert [path.name for path in sorted(tmp_path.glob("mb-*"))] == [file_name(0)]
        assert not is_committed(memory, wave)


# ── the committer ─────────────────────────────────────────────────────────────────────────────


def test_a_wave_becomes_one_segment_in_task_order(tmp_path: Path) -> None:
    [wave] = waves_of()
    with live(tmp_path) as memory:
        results = run_microbatches(wave, [2, 0, 1], runner_of(memory), memory_state="s")
        report = commit_wave(memory, wave, results, lineage="x")
        [segment] = list(memory.ledger.read_all())
        assert [row.rollout_id for row in segment.rows] == [one.rollout_id for one in wave.rollouts]
        ids = {entry.entry_id for entry in memory.entries()}
        assert ids and all(set(row.created) <= ids and len(row.created) == 1 for row in segment.rows)
        made = {row.created[0]: set() for row in segment.rows}  # type: ignore[var-annotated]
        for row in segment.rows:
            made[row.created[0]].add(row.rollout_id)
        assert {entry.entry_id: set(entry.source_episodes) for entry in memory.entries()} == made
        assert (report.committed, report.n_rollouts, report.n_proposed, report.n_new) == (True, 12, 12, len(ids))
        assert report.rejected == {"unreadable": 12}
        assert set(memory.ledger.telemetry()) == {one.rollout_id for one in wave.rollouts}


def test_committing_twice_is_committing_once(tmp_path: Path) -> None:
    [wave] = waves_of()
    with live(tmp_path) as memory:
        results = run_microbatches(wave, [0, 1, 2], runner_of(memory), memory_state="s")
        commit_wave(memory, wave, results)
        before, digest = segments(memory), memory.digest()
        assert not commit_wave(memory, wave, results).committed
        assert (segments(memory), memory.digest()) == (before, digest)
        changed = run_microbatches(wave, [0, 1, 2], runner_of(memory, Recorder(agent)), memory_state="s")
        with pytest.raises(SetupError, match="other content"):
            commit_wave(memory, wave, changed)
        with pytest.raises(SetupError, match="already holds"):
            memory_state(memory, wave)


def test_an_incomplete_wave_is_not_committed(tmp_path: Path) -> None:
    [wave] = waves_of()
    with live(tmp_path) as memory:
        results = run_microbatches(wave, [0, 1, 2], runner_of(memory), memory_state="s")
        for wrong in (results[:-1], [*results, results[0]], []):
            with pytest.raises(SetupError, match="each once"):
                commit_wave(memory, wave, wrong)
        assert segments(memory) == []


def test_the_lineage_stands_in_no_digest(tmp_path: Path) -> None:
    [wave] = waves_of()
    digests = set()
    for lineage in ("demo", "demo~2"):
        with live(tmp_path / lineage) as memory:
            results = run_microbatches(wave, [0, 1, 2], runner_of(memory), memory_state=memory_state(memory, wave))
            commit_wave(memory, wave, results, lineage=lineage)
            digests.add((memory.digest(), memory.ledger.digest()))
            assert lineage not in str([entry.model_dump() for entry in memory.entries()])
    assert len(digests) == 1


def test_the_row_order_does_not_depend_on_the_order_of_results(tmp_path: Path) -> None:
    [wave] = waves_of()
    with live(tmp_path) as memory:
        results = run_microbatches(wave, [0, 1, 2], runner_of(memory), memory_state="s")
    one = segment_of(wave, check_complete(wave, results), "x")
    assert one == segment_of(
        wave, check_complete(wave, [MicrobatchResult(r.index, r.episodes) for r in results[::-1]]), "x"
    )


def test_an_epoch_goes_on_where_it_stopped(tmp_path: Path) -> None:
    waves = waves_of(8, fast__wave_tasks=3)
    settings_ = MaintenanceSettings.of(PARAMS)
    with live(tmp_path / "whole") as memory:
        run_epoch(memory, waves, runner_of(memory), settings_)
        whole = segments(memory)
    with live(tmp_path) as memory:
        run_wave(memory, waves[0], runner_of(memory), settings_, folder=tmp_path / "wave-00")
        state = memory_state(memory, waves[1])
        run_microbatches(waves[1], [0], runner_of(memory), memory_state=state, folder=tmp_path / "wave-01")
    with live(tmp_path) as memory:
        policy = Recorder(writer)
        reports = run_epoch(memory, waves, runner_of(memory, policy), settings_, folder=tmp_path)
        assert [report.commit.committed for report in reports] == [False, True, True]
        assert segments(memory) == whole
        done = {request.seed for request in policy.requests}
        assert len(done) == len(policy.requests)
        n_calls = len(policy.requests)
        assert all(
            not report.commit.committed for report in run_epoch(memory, waves, runner_of(memory, policy), settings_)
        )
        assert len(policy.requests) == n_calls
