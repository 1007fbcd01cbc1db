"""The walls that the fast loop must keep, on the real domains sql and apps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from rollout_world import Recorder, Stormy, agent, small

from opd_evolver.environments.registry import load
from opd_evolver.errors import OutageError
from opd_evolver.fast.committer import commit_wave, is_committed, memory_state
from opd_evolver.fast.epoch import run_epoch
from opd_evolver.fast.maintenance import MaintenanceSettings
from opd_evolver.fast.microbatch import file_name, run_microbatches
from opd_evolver.fast.wave import Wave, plan_epoch, shard_indices
from opd_evolver.memory.store import Memory
from opd_evolver.params import Params
from opd_evolver.records import Entry, GenerationRequest, Prompt, Task, canonical_json
from opd_evolver.rollout.runner import EnvironmentPool, Runner
from opd_evolver.rollout.settings import EpisodeSettings

N_TASKS = 14
PARAMS = small(
    fast__tasks_per_domain=N_TASKS, fast__wave_tasks=10, fast__rollouts_per_task=3, fast__microbatch_rollouts=8
)
DOMAINS = ("sql", "apps")


def keeper(prompt: Prompt, request: GenerationRequest) -> str:
    """The agent, which also merges and deletes at barriers."""
    if prompt.ability == "maintain":
        return ["delete h1", "lookup zora late", "nonsense", "finish"][request.seed % 4]
    return agent(prompt, request)


@cache
def tasks() -> dict[str, list[Task]]:
    """Tasks of the first two scopes of each domain, so that what was learnt is asked for again."""
    found = {}
    for domain in DOMAINS:
        env = load(domain)
        scopes = {one.scope for one in env.tasks("deploy-train", 2)}
        found[domain] = [one for one in env.tasks("deploy-train", 120) if one.scope in scopes][:N_TASKS]
        env.close()
    return found


class Outcome:
    """All that an epoch said and left behind."""

    def __init__(self, memory: Memory, policy: Recorder) -> None:
        self.segments = [path.read_bytes() for path in sorted(memory.ledger.folder.glob("segment-*"))]
        self.digests = (memory.digest(), memory.ledger.digest())
        self.rows = memory.ledger.rows()
        self.entries = memory.entries(live_only=False)
        self.batches = policy.batches
        self.replies = policy.replies


def epoch(
    folder: Path,
    by_domain: dict[str, list[Task]] | None = None,
    params: Params = PARAMS,
    n_shards: int = 1,
    files: Path | None = None,
) -> Outcome:
    policy = Recorder(keeper)
    waves = plan_epoch(params, 1, by_domain or tasks())
    with Memory.open(folder / "live", params.memory) as memory, EnvironmentPool(load) as pool:
        runner = Runner(policy, pool, memory, EpisodeSettings.of(params), 0)
        run_epoch(memory, waves, runner, MaintenanceSettings.of(params), folder=files, n_shards=n_shards)
        return Outcome(memory, policy)


@pytest.fixture(scope="module")
def default(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return epoch(tmp_path_factory.mktemp("default"))


def test_the_memory_grows_is_read_and_helps(default: Outcome) -> None:
    rollouts = [row for row in default.rows if row.turns and row.group != "maintain"]
    with_memory = [row for row in rollouts if row.injected]
    assert {row.wave for row in rollouts} == {0, 1, 2} and all(row.wave > 0 for row in with_memory)
    assert with_memory and default.entries
    helped = sum(row.episode_return for row in with_memory) / len(with_memory)
    alone = [row.episode_return for row in rollouts if not row.candidates]
    assert helped > sum(alone) / len(alone)
    assert any(row.group == "maintain" for row in default.rows)


# ── wall 2: episodes are generators ───────────────────────────────────────────────────────────


def test_an_episode_knows_no_policy() -> None:
    import opd_evolver.rollout.episode as module

    source = Path(str(module.__file__)).read_text()
    assert "policy.protocol" not in source and ".generate(" not in source


# ── wall 4: waves, shards, the one committer ──────────────────────────────────────────────────


@pytest.mark.parametrize("n_shards", [2, 3])
def test_the_number_of_shards_changes_no_byte(default: Outcome, tmp_path: Path, n_shards: int) -> None:
    other = epoch(tmp_path, n_shards=n_shards, files=tmp_path / "mb")
    assert other.segments == default.segments and other.digests == default.digests


@pytest.mark.parametrize("n_workers", [1, 2, 3])
def test_workers_that_share_nothing_but_files_change_no_byte(default: Outcome, tmp_path: Path, n_workers: int) -> None:
    """Each worker opens the memory for reading, has a policy of its own, and comes in any order."""
    waves = plan_epoch(PARAMS, 1, tasks())
    settings = EpisodeSettings.of(PARAMS)
    Memory.open(tmp_path / "live", PARAMS.memory).close()
    for wave in waves:
        folder = tmp_path / f"wave-{wave.index}"
        for worker in reversed(range(n_workers)):
            with Memory.open(tmp_path / "live", PARAMS.memory, read_only=True) as view, EnvironmentPool(load) as pool:
                state = memory_state(view, wave)
                runner = Runner(Recorder(keeper), pool, view, settings, 0)
                indices = shard_indices(wave, worker, n_workers)
                run_microbatches(wave, indices, runner, memory_state=state, folder=folder)
        with Memory.open(tmp_path / "live", PARAMS.memory) as memory, EnvironmentPool(load) as pool:
            unasked = Recorder(keeper)
            barrier = Runner(unasked, pool, memory, settings, 0)
            state = memory_state(memory, wave)
            everything = range(len(wave.microbatches))
            results = run_microbatches(wave, everything, barrier, memory_state=state, folder=folder)
            assert not unasked.batches
            commit_wave(memory, wave, results)
            _maintain_only(memory, wave)
    with Memory.open(tmp_path / "live", PARAMS.memory) as memory:
        got = Outcome(memory, Recorder(keeper))
    assert got.segments == default.segments and got.digests == default.digests


def _maintain_only(memory: Memory, wave: Wave) -> None:
    with EnvironmentPool(load) as pool:
        runner = Runner(Recorder(keeper), pool, memory, EpisodeSettings.of(PARAMS), 0)
        assert is_committed(memory, wave)
        run_epoch(memory, [wave], runner, MaintenanceSettings.of(PARAMS))


@pytest.mark.parametrize("lost", [(0,), (1, 2), (0, 1, 2)])
def test_lost_micro_batches_are_run_again_and_change_no_byte(
    default: Outcome, tmp_path: Path, lost: Sequence[int]
) -> None:
    waves = plan_epoch(PARAMS, 1, tasks())
    settings = EpisodeSettings.of(PARAMS)
    files = tmp_path / "mb"
    before = Recorder(keeper)
    with Memory.open(tmp_path / "live", PARAMS.memory) as memory, EnvironmentPool(load) as pool:
        runner = Runner(before, pool, memory, settings, 0)
        state = memory_state(memory, waves[0])
        everything = range(len(waves[0].microbatches))
        run_microbatches(waves[0], everything, runner, memory_state=state, folder=files / "wave-00")
    for number, index in enumerate(lost):
        path = files / "wave-00" / file_name(index)
        if number % 2:
            path.write_bytes(path.read_bytes()[:-200])
        else:
            path.unlink()
    resumed = epoch(tmp_path, files=files)
    assert resumed.segments == default.segments
    # What was kept was not asked for again: the requests of both runs differ by the lost micro-batches alone.
    n_lost = sum(len(rows_of(default, waves[0], index)) for index in lost)
    assert len(before.requests) + sum(map(len, resumed.batches)) == sum(map(len, default.batches)) + n_lost


def rows_of(done: Outcome, wave: Wave, index: int) -> list[object]:
    """Every generation of a micro-batch."""
    ids = {one.rollout_id for one in wave.microbatches[index]}
    return [call for row in done.rows if row.rollout_id in ids for call in row.calls]


def test_one_task_at_a_time_is_the_streaming_protocol(default: Outcome, tmp_path: Path) -> None:
    streaming = small(fast__wave_tasks=1, fast__rollouts_per_task=3, fast__maintain_every_tasks=5)
    done = epoch(tmp_path, params=streaming)
    rollouts = [row for row in done.rows if row.group != "maintain"]
    assert [row.wave for row in rollouts[::3]] == list(range(2 * N_TASKS))
    order = [row.task_id for row in default.rows if row.group != "maintain"]
    assert [row.task_id for row in rollouts] == order  # the same tasks in the same order as in wide waves
    known: set[str] = set()
    for at in range(0, len(rollouts), 3):
        for row in rollouts[at : at + 3]:
            assert {candidate.entry_id for candidate in row.candidates} <= known
        for row in rollouts[at : at + 3]:
            known.update(row.created)
    n_with_memory = sum(bool(row.candidates) for row in rollouts)
    assert n_with_memory > sum(bool(row.candidates) for row in default.rows if row.group != "maintain")


def test_what_a_wave_writes_is_not_seen_in_it(default: Outcome) -> None:
    written: dict[int, set[str]] = {}
    for row in default.rows:
        written.setdefault(row.wave, set()).update(row.created)
    first_wave = {entry_id: wave for wave in sorted(written, reverse=True) for entry_id in written[wave]}
    for row in default.rows:
        if row.group != "maintain":
            assert all(first_wave[candidate.entry_id] < row.wave for candidate in row.candidates)
    assert any(row.candidates for row in default.rows)


# ── wall 6: scope and family ──────────────────────────────────────────────────────────────────


def test_permuted_family_labels_leave_every_prompt_and_reply(default: Outcome, tmp_path: Path) -> None:
    plain = tasks()
    families = sorted({one.family for found in plain.values() for one in found})
    other = dict(zip(families, families[1:] + families[:1], strict=True))
    permuted = {
        d: [one.model_copy(update={"family": other[one.family]}) for one in found] for d, found in plain.items()
    }
    done = epoch(tmp_path, permuted)
    assert done.batches == default.batches and done.replies == default.replies
    assert [canonical_json(entry) for entry in done.entries] == [canonical_json(entry) for entry in default.entries]
    assert [row.model_copy(update={"group": ""}) for row in done.rows] == [
        row.model_copy(update={"group": ""}) for row in default.rows
    ]
    assert [row.group for row in done.rows] != [row.group for row in default.rows]


# ── gold and outages ──────────────────────────────────────────────────────────────────────────


class Listening:
    """A memory view that keeps what it was asked."""

    def __init__(self, memory: Memory) -> None:
        self.memory, self.asked = memory, []  # type: ignore[var-annotated]

    def retrieve(
        self, query: str, *, domain: str, scope: str, limit: int, alpha: float, scope_filter: bool
    ) -> Sequence[tuple[Entry, float]]:
        self.asked.append((query, domain, scope))
        return self.memory.retrieve(query, domain, scope, limit, alpha, scope_filter)


def test_gold_reaches_no_prompt_query_memory_or_ledger(tmp_path: Path) -> None:
    canary, latent = "canarygold", "canaryfamily"
    marked = {
        domain: [
            one.model_copy(
                update={"gold": {**one.gold, "canary": canary, canary: [canary]}, "family": f"{latent}{one.family}"}
            )
            for one in found
        ]
        for domain, found in tasks().items()
    }
    waves = plan_epoch(PARAMS, 1, marked)
    policy = Recorder(keeper)
    with Memory.open(tmp_path / "live", PARAMS.memory) as memory, EnvironmentPool(load) as pool:
        listening = Listening(memory)
        runner = Runner(policy, pool, listening, EpisodeSettings.of(PARAMS), 0)
        run_epoch(memory, waves, runner, MaintenanceSettings.of(PARAMS), folder=tmp_path / "mb")
        assert listening.asked and policy.requests
        known_to_agents = [canonical_json(request) for request in policy.requests] + [
            *map(str, listening.asked),
            *(canonical_json(entry) for entry in memory.entries(live_only=False)),
        ]
        rows = [canonical_json(row) for row in memory.ledger.rows()]
        without_group = [canonical_json(row.model_copy(update={"group": ""})) for row in memory.ledger.rows()]
    assert not any(canary in text or latent in text for text in known_to_agents)
    assert not any(canary in text for text in rows) and not any(latent in text for text in without_group)
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or canary.encode() not in path.read_bytes(), path


def test_outages_leave_no_trace_in_ledger_or_memory(default: Outcome, tmp_path: Path) -> None:
    waves = plan_epoch(PARAMS, 1, tasks())
    count, pauses = [0], []  # type: ignore[var-annotated]
    policy = Recorder(keeper)
    with (
        Memory.open(tmp_path / "live", PARAMS.memory) as memory,
        EnvironmentPool(lambda domain: Stormy(load(domain), 7, count)) as pool,
    ):
        runner = Runner(policy, pool, memory, EpisodeSettings.of(PARAMS), 3, pauses.append)
        run_epoch(memory, waves, runner, MaintenanceSettings.of(PARAMS))
        done = Outcome(memory, policy)
    assert pauses and done.segments == default.segments and done.batches == default.batches
    with Memory.open(tmp_path / "down", PARAMS.memory) as memory, EnvironmentPool(load) as healthy:
        down = replace(runner, memory=memory, environments=EnvironmentPool(lambda d: Stormy(load(d), 1, count)))
        with pytest.raises(OutageError, match="tried 4 times"):
            run_epoch(memory, waves, down, MaintenanceSettings.of(PARAMS))
        assert memory.ledger.rows() == [] and memory.entries() == []
        assert healthy is not None
