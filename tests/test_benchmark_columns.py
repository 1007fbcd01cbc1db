"""Columns, protocols and the measurement of a round, with policies that really read their prompts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from opd_evolver.benchmark.columns import PolicySource, ResultStore, difference, mean, run_column
from opd_evolver.benchmark.gate import RETENTION_METRICS, decide
from opd_evolver.benchmark.measure import Benchmark, Columns, Contestant, RoundMeasurement, measure_base, measure_round
from opd_evolver.benchmark.protocols import FreshProtocol, FrozenProtocol, MemorySource, StreamingProtocol
from opd_evolver.benchmark.report import retained_json, rounds_object, rounds_table
from opd_evolver.environments import registry
from opd_evolver.environments.domain import TIPS_ONLY
from opd_evolver.errors import OutageError, SetupError
from opd_evolver.memory.segment import LedgerSegment
from opd_evolver.memory.snapshot import write_snapshot
from opd_evolver.memory.store import Memory, entry_of
from opd_evolver.params import EnvironmentParams, Params
from opd_evolver.policy.protocol import Policy
from opd_evolver.policy.scripted import ScriptedPolicy
from opd_evolver.records import Proposal, Task, TipContent
from opd_evolver.rollout.runner import EnvironmentPool
from tests.benchmark_policies import reader, stubborn

PARAMS = Params.model_validate(
    {
        "environments": {"levels": TIPS_ONLY},
        "benchmark": {
            "bootstrap_samples": 200,
            "test_tasks_per_domain": 24,
            "val_tasks_per_domain": 24,
            "probe_tasks_per_domain": 16,
            "batch_rollouts": 16,
        },
        "fast": {"maintain_max_steps": 0, "outage_retries": 0},
    }
)
ESTIMATE = {"mean", "low", "high", "n_tasks", "n_families", "per_domain"}


@pytest.fixture
def pool() -> Iterator[EnvironmentPool]:
    with EnvironmentPool(registry.loader(EnvironmentParams(levels=TIPS_ONLY))) as opened:
        yield opened


def facts_of(pool: EnvironmentPool, n: int = 24) -> dict[str, dict[tuple[str, str], str]]:
    found: dict[str, dict[tuple[str, str], str]] = {}
    for name in PARAMS.environments.domains:
        with pool.lend(name) as env:
            for task in env.tasks("deploy-test", n):
                facts = {(fact.scope, fact.key): fact.value for fact in env.facts(task)}  # type: ignore[attr-defined]
                found.setdefault(name, {}).update(facts)
    return found


def snapshot(folder: Path, facts: dict[str, dict[tuple[str, str], str]]) -> MemorySource:
    """A snapshot that holds these facts as tips of round 1."""
    entries = tuple(
        entry_of(Proposal(domain=domain, scope=scope, content=TipContent(trigger=key, text=value)), 1)
        for domain, told in facts.items()
        for (scope, key), value in told.items()
    )
    with Memory.open(folder / "live", PARAMS.memory) as memory:
        memory.commit(LedgerSegment(lineage="t", round=1, wave=0, entries=entries))
        info = write_snapshot(memory, folder / "memory", 1, "t")
    return MemorySource(folder / "memory", info.digest_entries + info.digest_ledger)


def source(policy: ScriptedPolicy) -> PolicySource:
    return PolicySource(policy.version, lambda: policy)


class Closed:
    """A policy source that must not be opened."""

    def __call__(self) -> Policy:
        raise AssertionError("measured again")


def tasks(pool: EnvironmentPool, n: int = 24) -> list[Task]:
    return Benchmark(PARAMS, pool, ResultStore(None)).tasks("deploy-test", n)


def test_memory_helps_a_reader_and_frozen_leaves_the_snapshot_alone(pool: EnvironmentPool, tmp_path: Path) -> None:
    memory = snapshot(tmp_path, facts_of(pool))
    before = {file.name: file.read_bytes() for file in sorted((tmp_path / "memory").iterdir())}
    held_out = tasks(pool)
    alone = run_column(source(reader()), None, held_out, FrozenProtocol(), PARAMS, pool)
    together = run_column(source(reader()), memory, held_out, FrozenProtocol(), PARAMS, pool)
    assert mean(together).mean == 1.0
    gain = difference(together, alone)
    assert gain.low is not None and gain.low > 0.4
    assert [one.task_id for one in alone.measured.outcomes] == [task.task_id for task in held_out]
    assert {file.name: file.read_bytes() for file in sorted((tmp_path / "memory").iterdir())} == before


def test_a_fresh_memory_is_filled_with_other_tasks_and_then_read(pool: EnvironmentPool, tmp_path: Path) -> None:
    """A reader that notes what it found knows much of it later; one that notes nothing gains nothing."""
    # This reader guesses by the text alone, so further rollouts of a task find nothing more.
    fast = PARAMS.fast.model_copy(update={"tasks_per_domain": 480, "rollouts_per_task": 1})
    params = PARAMS.model_copy(update={"fast": fast})
    bench = Benchmark(params, pool, ResultStore(tmp_path))
    measured = bench.tasks("novel-test", 48)
    alone = bench.column(Contestant(source(reader()), None), measured, with_memory=False)
    fresh = bench.fresh(source(reader()), measured)
    gain = difference(fresh, alone)  # type: ignore[type-var]
    assert gain.low is not None and gain.low > 0.2
    assert any(one.selected for one in fresh.measured.outcomes)
    forgetful = bench.fresh(source(stubborn({})), measured)
    assert not any(one.candidates for one in forgetful.measured.outcomes)
    closed = PolicySource(reader().version, Closed())
    assert bench.fresh(closed, measured) == fresh
    longer = params.model_copy(update={"fast": fast.model_copy(update={"rollouts_per_task": 2})})
    with pytest.raises(AssertionError, match="measured again"):
        Benchmark(longer, pool, ResultStore(tmp_path)).fresh(closed, measured)


def test_a_fresh_memory_never_saw_a_measured_task(pool: EnvironmentPool, monkeypatch: pytest.MonkeyPatch) -> None:
    filled: list[FreshProtocol] = []
    monkeypatch.setattr(FreshProtocol, "play", lambda self, bench, memory, tasks: filled.append(self) or [])
    bench = Benchmark(PARAMS, pool, ResultStore(None))
    measured = bench.tasks("novel-test", 24)
    with pytest.raises(KeyError):  # no rows: nothing was played
        bench.fresh(source(reader()), measured)
    [protocol] = filled
    for domain, tasks in protocol.filling.items():
        mine = [one for one in measured if one.domain == domain]
        assert len(tasks) == PARAMS.fast.tasks_per_domain
        assert {one.family for one in tasks} == {one.family for one in mine}
        assert not {one.text for one in tasks} & {one.text for one in mine}
        assert not {one.task_id for one in tasks} & {one.task_id for one in mine}


def test_streaming_learns_in_test_order_and_the_two_protocols_do_not_mix(pool: EnvironmentPool, tmp_path: Path) -> None:
    """From nothing, a reader that guesses right writes it down and knows it later; the frozen one never does."""
    held_out = tasks(pool, 60)
    empty = MemorySource.empty()
    frozen = run_column(source(reader()), empty, held_out, FrozenProtocol(), PARAMS, pool)
    streaming = run_column(source(reader()), empty, held_out, StreamingProtocol(), PARAMS, pool)
    maintained = PARAMS.model_copy(
        update={"fast": PARAMS.fast.model_copy(update={"maintain_max_steps": 2, "maintain_every_tasks": 3})}
    )
    kept = run_column(source(reader()), empty, held_out[:10], StreamingProtocol(), maintained, pool)
    assert [one.success for one in kept.measured.outcomes] == [one.success for one in streaming.measured.outcomes[:10]]
    again = run_column(source(reader()), empty, held_out[:10], StreamingProtocol(), PARAMS, pool)
    assert streaming.measured.outcomes[:10] == again.measured.outcomes
    grown = sum(one.success for one in streaming.measured.outcomes)
    assert grown > sum(one.success for one in frozen.measured.outcomes)
    with pytest.raises(SetupError, match="frozen column against a streaming"):
        difference(frozen, streaming)  # type: ignore[type-var]
    memory = snapshot(tmp_path, facts_of(pool))
    before = {file.name: file.read_bytes() for file in (tmp_path / "memory").iterdir()}
    known = run_column(source(reader()), memory, held_out[:6], StreamingProtocol(), PARAMS, pool)
    assert mean(known).mean == 1.0
    assert {file.name: file.read_bytes() for file in (tmp_path / "memory").iterdir()} == before


def test_unchanged_columns_are_reused_and_changed_ones_measured_again(pool: EnvironmentPool, tmp_path: Path) -> None:
    store = ResultStore(tmp_path / "columns")
    held_out = tasks(pool, 6)
    first = run_column(source(reader()), None, held_out, FrozenProtocol(), PARAMS, pool, store)
    closed = PolicySource("reader", Closed())
    assert run_column(closed, None, held_out, FrozenProtocol(), PARAMS, pool, store) == first
    # an empty memory that stays empty is no memory; slow-loop parameters decide no outcome
    assert run_column(closed, MemorySource.empty(), held_out, FrozenProtocol(), PARAMS, pool, store) == first
    slower = PARAMS.model_copy(update={"slow": PARAMS.slow.model_copy(update={"steps": 1})})
    assert run_column(closed, None, held_out, FrozenProtocol(), slower, pool, store) == first
    shorter = PARAMS.model_copy(update={"fast": PARAMS.fast.model_copy(update={"max_steps": 1})})
    for changed in (
        (held_out[1:], PARAMS, closed),
        (held_out, shorter, closed),
        (held_out, PARAMS, PolicySource("b", Closed())),
    ):
        with pytest.raises(AssertionError, match="measured again"):
            run_column(changed[2], None, changed[0], FrozenProtocol(), changed[1], pool, store)
    with pytest.raises(AssertionError, match="measured again"):
        run_column(closed, MemorySource.empty(), held_out, StreamingProtocol(), PARAMS, pool, store)


@pytest.mark.parametrize("harm", ["truncate", "edit", "newer"])
def test_a_torn_or_foreign_result_is_measured_again(pool: EnvironmentPool, tmp_path: Path, harm: str) -> None:
    store = ResultStore(tmp_path / "columns")
    held_out = tasks(pool, 4)
    first = run_column(source(reader()), None, held_out, FrozenProtocol(), PARAMS, pool, store)
    (file,) = (tmp_path / "columns").iterdir()
    text = file.read_text()
    file.write_text(
        {
            "truncate": text[: len(text) // 2],
            "edit": text.replace('"success":false', '"success":true'),
            "newer": text.replace('"schema_version":1', '"schema_version":2'),
        }[harm]
    )
    assert run_column(source(reader()), None, held_out, FrozenProtocol(), PARAMS, pool, store) == first
    assert file.read_text() == text


def test_an_outage_is_an_error_and_leaves_no_result(tmp_path: Path) -> None:
    class Down(registry.load("sql", TIPS_ONLY).__class__):  # type: ignore[misc]
        def step(self, action: str) -> object:
            raise OutageError("engine down")

    with EnvironmentPool(registry.loader(EnvironmentParams(levels=TIPS_ONLY))) as healthy:
        held_out = Benchmark(PARAMS, healthy, ResultStore(None)).tasks("deploy-test", 2)
    with EnvironmentPool(lambda name: Down()) as broken, pytest.raises(OutageError):
        run_column(source(reader()), None, held_out[:2], FrozenProtocol(), PARAMS, broken, ResultStore(tmp_path))
    assert list(tmp_path.iterdir()) == []


def whole_round(pool: EnvironmentPool, tmp_path: Path) -> tuple[RoundMeasurement, RoundMeasurement]:
    bench = Benchmark(PARAMS, pool, ResultStore(tmp_path / "columns"))
    base = source(reader("base"))
    facts = facts_of(pool)
    beliefs = {pair: value for told in facts.values() for pair, value in told.items()}
    distilled = source(reader("distilled", beliefs))
    found = measure_base(bench, base)
    new = Contestant(distilled, snapshot(tmp_path, facts))
    return found, measure_round(bench, base, new, Contestant(base, None))


def test_a_round_is_measured_reported_and_gated(pool: EnvironmentPool, tmp_path: Path) -> None:
    base, one = whole_round(pool, tmp_path)
    assert base.columns.with_memory is None and base.gate == {}
    for found in (one.base_memory_minus_base_alone, one.alone_minus_base_alone):
        assert found is not None and found.low is not None and found.low > 0.4
    assert decide(one.gate, PARAMS.gate).promoted
    assert {"success", "memory_use", "override", "select_f1", "write_exact"} == set(one.gate)
    assert RoundMeasurement.model_validate_json(one.model_dump_json()) == one
    facts = {
        "round": 1,
        "gate": decide(one.gate, PARAMS.gate).model_dump(mode="json"),
        "digests": {"entries": "a", "ledger": "b", "examples": "c", "weights": "d"},
        "memories": {"trajectory": 3, "tip": 144, "skill": 2, "tool": 1},
        "maintenance": {"merged": 4, "retired": 9},
        "seconds": 83.0,
        "tokens": one.tokens,
    }
    tree = rounds_object(name="default", lineage="default", preset="micro", base=base, measured=[one], rounds=[facts])
    json.dumps(tree, allow_nan=False)
    for columns in (tree["base"]["columns"], tree["rounds"][0]["columns"]):
        for name in ("alone", "with_memory", "retention"):
            assert set(columns[name]) == ESTIMATE, name
    for name in ("base_memory_minus_base_alone", "last_alone_minus_base_alone"):
        assert {"mean", "low", "high"} <= set(tree["differences"][name])
    assert tree["base"]["columns"]["with_memory"]["mean"] == 1.0
    told = {
        "round",
        "gate",
        "digests",
        "memories",
        "maintenance",
        "seconds",
        "tokens",
        "columns",
        "retained",
        "headroom",
    }
    assert told == set(tree["rounds"][0])
    table = rounds_table(tree).splitlines()
    assert table[2].startswith("base") and table[3].startswith("1 ") and "promoted" in table[3] and "1:23" in table[3]
    assert re.search(r"144/2/1/3 +4 +9 +promoted", table[3])
    assert tree["rounds"][0]["retained"]["memory_use"] == 1.0
    (line,) = [line for line in table if line.startswith("round 1 keeps of the base's: ")]
    assert re.findall(r"(\w+) \d", line.partition(": ")[2]) == list(RETENTION_METRICS)


def test_what_a_round_keeps_is_its_share_of_the_base(pool: EnvironmentPool, tmp_path: Path) -> None:
    base, one = whole_round(pool, tmp_path)
    now = one.columns.retention_metrics["memory_use"]
    before = {"memory_use": 0.8, "memory_use.tip": 0.8, "write_exact": 0.0, "override": None}
    after = {"memory_use": 0.6, "memory_use.tip": 0.6, "write_exact": 0.5, "override": 0.5, "select_f1": 0.5}

    def columns(means: Mapping[str, float | None]) -> Columns:
        metrics = {name: now.model_copy(update={"mean": mean}) for name, mean in means.items()}
        return base.columns.model_copy(update={"retention_metrics": metrics})

    assert retained_json(columns(before), columns(after)) == {"memory_use": pytest.approx(0.75)}
    assert retained_json(columns(before), columns({"memory_use": None})) == {}


def test_the_same_round_measured_twice_has_one_digest(pool: EnvironmentPool, tmp_path: Path) -> None:
    _, first = whole_round(pool, tmp_path / "a")
    _, second = whole_round(pool, tmp_path / "b")
    assert first.digest() == second.digest()


def test_a_run_without_rounds_still_reports(pool: EnvironmentPool) -> None:
    base = measure_base(Benchmark(PARAMS, pool, ResultStore(None)), source(reader("base")))
    tree = rounds_object(name="n", lineage="n", preset="micro", base=base, measured=[], rounds=[])
    assert tree["rounds"] == [] and tree["differences"]["last_alone_minus_base_alone"] is None
    assert "base" in rounds_table(tree)
