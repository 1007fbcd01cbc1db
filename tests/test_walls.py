"""Walls of architecture.md that no single room's tests guard. Which test guards which wall: docs/walls.md."""

from __future__ import annotations

import ast
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import finished_run
import pytest
from marked_world import CANARY, World
from memory_cases import filled, tip, wave
from rollout_world import agent, small

from opd_evolver import heads, lineage
from opd_evolver.benchmark.columns import PolicySource, ResultStore, run_column
from opd_evolver.benchmark.protocols import FrozenProtocol
from opd_evolver.contracts.engine import ContractReport
from opd_evolver.environments.registry import load
from opd_evolver.fast.epoch import run_epoch
from opd_evolver.fast.maintenance import MaintenanceSettings
from opd_evolver.fast.wave import plan_epoch
from opd_evolver.memory.attribution import attribute
from opd_evolver.memory.store import Memory
from opd_evolver.params import MemoryParams
from opd_evolver.policy.protocol import Policy, TokenPolicy
from opd_evolver.policy.scripted import ScriptedPolicy
from opd_evolver.records import SCHEMA_VERSION, SPLITS, Attribution, Entry, GenerationRequest, LedgerRow, Record, Reply
from opd_evolver.rollout.runner import EnvironmentPool, Runner
from opd_evolver.rollout.settings import EpisodeSettings
from opd_evolver.slow import views
from opd_evolver.slow.anchor import Anchor

PROJECT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


# ── 1. a step is a function of a job; children die with their parent ──────────────────────────


def test_a_child_dies_with_its_parent() -> None:
    code = (
        "import subprocess, sys, time\n"
        "child = 'import time; from opd_evolver.processes import die_with_parent; die_with_parent(); '"
        "'print(1, flush=True); time.sleep(600)'\n"
        "process = subprocess.Popen([sys.executable, '-c', child], stdout=subprocess.PIPE)\n"
        "process.stdout.readline()\n"
        "print(process.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=PROJECT, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    os.kill(pid, 0)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    for _ in range(200):
        if not _runs(pid):
            return
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("the child outlived its parent")


def _runs(pid: int) -> bool:
    """Whether a process is there and no zombie that nobody has reaped yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_no_flow_persists_a_result() -> None:
    """Prefect's results are pickles; paths and digests travel instead."""
    n_found = 0
    for path in (PROJECT / "flows").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("flow", "task"):
                told = {one.arg: ast.unparse(one.value) for one in node.keywords}
                assert told.get("persist_result") == "False", path
                n_found += 1
    assert n_found >= 5
    paths = [*(PROJECT / "flows").rglob("*.py"), *(PROJECT / "opd_evolver").rglob("*.py")]
    ours = [path for path in paths if path.parent.name != "seed"]  # which keeps the state of one training, no step's
    assert not [path for path in ours if re.search(r"^\s*(import|from) (pickle|cloudpickle)\b", path.read_text(), re.M)]


# ── 3. what a policy can do ───────────────────────────────────────────────────────────────────


class TextOnly:
    """An endpoint that answers with words: no token ids, no log-probabilities."""

    version = "endpoint"

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Reply]:
        return [Reply(text=agent(one.prompt, one), policy_version=self.version) for one in requests]


def played(folder: Path, policy: Policy) -> tuple[list[LedgerRow], list[Entry]]:
    """Rows and entries of an epoch on two databases, so that what was learnt is asked for again."""
    params = small(environments__domains=["sql"], fast__rollouts_per_task=4)
    tasks = load("sql").tasks("deploy-train", 120)
    scopes = {one.scope for one in tasks[:2]}
    waves = plan_epoch(params, 1, {"sql": [one for one in tasks if one.scope in scopes][:12]})
    with Memory.open(folder, params.memory) as memory, EnvironmentPool(load) as pool:
        run_epoch(
            memory, waves, Runner(policy, pool, memory, EpisodeSettings.of(params)), MaintenanceSettings.of(params)
        )
        return memory.ledger.rows(), memory.entries(live_only=False)


def test_a_text_only_endpoint_acts_and_writes_but_gives_no_trainable_rows(tmp_path: Path) -> None:
    params = small(environments__domains=["sql"])
    endpoint = TextOnly()
    assert isinstance(endpoint, Policy) and not isinstance(endpoint, TokenPolicy)
    rows, entries = played(tmp_path, endpoint)
    assert entries and any(row.success for row in rows)
    attributions = attribute(rows, entries, params.attribution)
    made = views.build(rows, entries, attributions, ScriptedPolicy().encode, params)
    assert made.examples == [] and made.skipped["text-only rollout"] == len(rows)


# ── 5. the ledger is the truth ────────────────────────────────────────────────────────────────


def test_digests_cover_entries_and_the_embedders_name_but_no_vector(tmp_path: Path) -> None:
    filled(tmp_path / "ledger").close()
    with Memory.open(tmp_path, MemoryParams()) as memory:
        digests = (memory.digest(), memory.ledger.digest())
        index: Any = memory.index
        index._database.connection.execute("UPDATE entries SET vector = zeroblob(length(vector))")
        assert (memory.digest(), memory.ledger.digest()) == digests
        memory.commit(wave(3))
        assert memory.digest() != digests[0] and memory.get([tip("key3x0", "0").entry_id])


# ── 6. scope is known, family is latent, gold is secret ───────────────────────────────────────


def test_gold_is_in_no_file_that_a_round_leaves(world: World) -> None:
    """Episodes, ledger, memory, examples, benchmark and records; not only what the fast loop holds in memory."""
    files = [path for path in world.root.rglob("*") if path.is_file()]
    kinds = {path.name for path in files}
    assert {"entries.jsonl", "ledger.jsonl", "examples.jsonl", "index.sqlite", "measurement.json"} <= kinds
    assert [str(path) for path in files if CANARY.encode() in path.read_bytes()] == []


def test_family_labels_change_no_outcome_of_a_benchmark(tmp_path: Path) -> None:
    params = small()
    plain = load("sql").tasks("deploy-test", 12)
    families = sorted({one.family for one in plain})
    other = dict(zip(families, families[1:] + families[:1], strict=True))
    permuted = [one.model_copy(update={"family": other[one.family]}) for one in plain]
    found = []
    for number, tasks in enumerate((plain, permuted)):
        source = PolicySource("p", lambda: ScriptedPolicy(agent))
        with EnvironmentPool(load) as pool:
            store = ResultStore(tmp_path / str(number))
            found.append(run_column(source, None, tasks, FrozenProtocol(), params, pool, store).measured.outcomes)
    assert [one.model_copy(update={"family": ""}) for one in found[0]] == [
        one.model_copy(update={"family": ""}) for one in found[1]
    ]
    assert found[0] != found[1]


# ── 7. six splits, each with its purpose ──────────────────────────────────────────────────────


def test_six_splits_share_no_task_and_novel_families_are_nowhere_else() -> None:
    assert SPLITS == ("seed", "deploy-train", "deploy-val", "deploy-test", "novel-val", "novel-test")
    for domain in ("sql", "apps"):
        tasks = {split: load(domain).tasks(split, 60) for split in SPLITS}
        ids = [one.task_id for found in tasks.values() for one in found]
        assert len(ids) == len(set(ids)) and all(one.split == split for split, found in tasks.items() for one in found)
        families = {split: {one.family for one in found} for split, found in tasks.items()}
        scopes = {split: {one.scope for one in found} for split, found in tasks.items()}
        deployed = families["deploy-train"]
        assert families["deploy-val"] <= deployed and families["deploy-test"] <= deployed
        for apart in (families, scopes):
            for split in ("seed", "novel-val", "novel-test"):
                others = set().union(*(apart[other] for other in SPLITS if other != split))
                assert not apart[split] & others, (domain, split)


def test_each_step_asks_for_its_own_splits_only(world: World) -> None:
    assert {name: splits for name, splits in world.asked.items() if splits} == {
        "fast_shard": {"deploy-train"},
        "barrier": {"deploy-train"},
        "benchmark": {"deploy-test", "deploy-val", "novel-test", "novel-val"},
    }


def test_what_is_reported_decides_nothing(world: World, tmp_path: Path) -> None:
    """Losing every task of the test splits changes what is reported and not what the gate sees."""
    lost = World(tmp_path, lost=("deploy-test", "novel-test"))
    assert lost.columns != world.columns and lost.columns["alone"]["mean"] == 0.0
    assert lost.gate == world.gate


# ── 8. schemas ────────────────────────────────────────────────────────────────────────────────

# Telemetry, displays and reports; a model's own files.
NOT_RECORDS = re.compile(r"progress\.jsonl|telemetry-.*\.json|/reports/|config\.json|tokenizer.*\.json")


def test_everything_that_a_round_leaves_carries_its_schema(world: World) -> None:
    bare = []
    for path in sorted([*world.root.rglob("*.json"), *world.root.rglob("*.jsonl")]):
        if NOT_RECORDS.search(str(path)):
            continue
        text = path.read_text()
        first = json.loads(text if path.suffix == ".json" else text.partition("\n")[0] or "{}")
        if text and "schema_version" not in first:
            bare.append(str(path.relative_to(world.root)))
    assert bare == []


@pytest.mark.parametrize(
    "kind", [views.Outcome, Anchor, Attribution, ContractReport, heads.Head], ids=lambda one: one.__name__
)
def test_each_line_and_report_carries_it(kind: type[Record]) -> None:
    """Those that a round leaves in lists, or leaves only where it is checked and trained."""
    assert kind.model_fields["schema_version"].default == SCHEMA_VERSION


def test_a_ledger_row_holds_what_later_methods_need(tmp_path: Path) -> None:
    rows = [row for row in played(tmp_path, ScriptedPolicy(agent))[0] if row.group != "maintain"]
    assert rows and all(row.schema_version and row.renderer and row.policy_version for row in rows)
    for call in (call for row in rows for call in row.calls):
        assert call.prompt_token_ids and len(call.reply_token_ids) == len(call.logprobs) > 0
    chosen = [row for row in rows if row.selected]
    assert chosen and all(set(row.propensities) == set(row.selected) for row in chosen)


# ── 11. the named digests ─────────────────────────────────────────────────────────────────────


def test_a_round_again_has_the_named_digests(world: World, tmp_path: Path) -> None:
    """On this machine, in another folder and under another name."""
    with patch.object(finished_run, "NAME", "other"):
        again = finished_run.build(tmp_path / "project", world.root.parent / "policy")
    first, second = world.run.summary(1), lineage.open_run(again.root, "other").summary(1)
    assert first is not None and second is not None and first["digests"] == second["digests"]
    assert set(first["digests"]) == {"entries", "ledger", "examples", "weights"}


# ── the page ──────────────────────────────────────────────────────────────────────────────────


def test_docs_walls_names_tests_that_exist() -> None:
    page = (PROJECT / "docs" / "walls.md").read_text()
    named = re.findall(r"`(test_\w+)\.py::(test_\w+)`", page)
    assert len(named) > 40
    for file, name in named:
        path = PROJECT / "tests" / f"{file}.py"
        assert path.exists() and f"def {name}(" in path.read_text(), f"{file}.py::{name}"
    assert [int(number) for number in re.findall(r"^## (\d+)\.", page, re.M)] == list(range(1, 12))
