"""Columns: one policy, with or without a memory, on always the same held-out tasks.

Unchanged columns are reused by digest: the key covers the policy's weights, the memory, the tasks and
every parameter that decides an outcome, so a round measures only what is new in it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from opd_evolver.abilities import dialects
from opd_evolver.benchmark.protocols import (
    EMPTY,
    Bench,
    BenchmarkProtocol,
    Column,
    FrozenColumn,
    Measured,
    MemorySource,
    StreamingColumn,
    play_alone,
)
from opd_evolver.benchmark.statistics import SAMPLES, Estimate, Metric, Outcome, mean_interval, paired_difference
from opd_evolver.durable import write_text
from opd_evolver.errors import SetupError
from opd_evolver.params import Params
from opd_evolver.policy.protocol import Policy
from opd_evolver.records import SCHEMA_VERSION, LedgerRow, Record, Task, canonical_json, digest_of
from opd_evolver.rollout.runner import EnvironmentPool
from opd_evolver.rollout.settings import EpisodeSettings


@dataclass(frozen=True)
class PolicySource:
    """A policy by the digest of its weights; opened only when something must be measured."""

    digest: str
    open: Callable[[], Policy]


class ResultStore:
    """Measurements by key, one file each. A torn or foreign file counts as absent: it is measured again.

    Args:
        folder: where the files lie; None keeps nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def get(self, key: str) -> dict[str, Any] | None:
        """What was stored under `key`, or None."""
        if self._folder is None:
            return None
        try:
            tree = json.loads((self._folder / f"{key}.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        if not isinstance(tree, dict) or tree.get("key") != key or tree.get("schema_version") != SCHEMA_VERSION:
            return None
        value = tree.get("value")
        return value if isinstance(value, dict) and digest_of([canonical_json(value)]) == tree.get("digest") else None

    def put(self, key: str, value: Record) -> None:
        """Store durably."""
        if self._folder is None:
            return
        text = canonical_json(value)
        tree = {"key": key, "digest": digest_of([text]), "schema_version": SCHEMA_VERSION, "value": json.loads(text)}
        write_text(self._folder / f"{key}.json", canonical_json(tree) + "\n")


def tasks_digest(tasks: Sequence[Task]) -> str:
    """Digest of a task list, order included."""
    return digest_of([canonical_json(task) for task in tasks])


def deciding(params: Params) -> dict[str, Any]:
    """The parameters that decide an outcome: those of slow loop, gate and exploration do not."""
    settings, fast = EpisodeSettings.of(params, greedy=True), params.fast
    policy = {key: value for key, value in params.science()["policy"].items() if key != "path"}
    return {
        "settings": settings.model_dump(mode="json"),
        "policy": policy,
        "embedder": params.memory.embedder,
        "batch": params.benchmark.batch_rollouts,
        "maintain": [
            fast.maintain_every_tasks,
            fast.maintain_max_steps,
            *([n] if (n := fast.maintain_episodes) > 1 else ()),
        ],
        "renderer": dialects.of(params.policy.dialect).renderer,
    }


def outcome_of(task: Task, row: LedgerRow) -> Outcome:
    """What an episode came to."""
    return Outcome(
        task_id=task.task_id,
        family=task.family,
        domain=task.domain,
        success=row.success,
        episode_return=row.episode_return,
        steps=len(row.turns),
        tokens=row.n_prompt_tokens + row.n_reply_tokens,
        candidates=tuple(one.entry_id for one in row.candidates),
        selected=row.selected,
    )


def run_column(
    policy: PolicySource,
    memory: MemorySource | None,
    tasks: Sequence[Task],
    protocol: BenchmarkProtocol[Column],
    params: Params,
    environments: EnvironmentPool,
    store: ResultStore | None = None,
) -> Column:
    """Measure one column, greedily, or take it from `store` when nothing that decides it has changed.

    Args:
        policy: the policy and its weights' digest.
        memory: None for the policy alone.
        tasks: the held-out tasks, in order.
        protocol: frozen or streaming.
        params: budgets, batch size, retries.
        environments: lends engines.
        store: measurements so far.

    Raises:
        OutageError: an engine stayed down; no episode fails of it.
    """
    store = store or ResultStore(None)
    if memory is not None and memory.folder is None and protocol.name == "frozen":
        memory = None  # an empty memory that stays empty is no memory
    told = tasks_digest(tasks)
    how, with_what = (protocol.key(params), memory.digest) if memory else ("alone", EMPTY)
    parts: list[str] = [how, policy.digest, with_what, told]
    key = digest_of([str(SCHEMA_VERSION), *parts, canonical_json(deciding(params))])
    if (found := store.get(key)) is not None:
        try:
            return protocol.column(measured=Measured.model_validate(found))
        except ValidationError:
            pass  # another layout of the same schema version: measure again
    bench = Bench(policy.open(), environments, params)
    rows = play_alone(bench, tasks) if memory is None else protocol.play(bench, memory, tasks)
    by_task = {row.task_id: row for row in rows}
    measured = Measured(
        key=key,
        policy_digest=policy.digest,
        memory_digest=memory.digest if memory else None,
        tasks_digest=told,
        outcomes=tuple(outcome_of(task, by_task[task.task_id]) for task in tasks),
    )
    store.put(key, measured)
    return protocol.column(measured=measured)


def mean(column: FrozenColumn | StreamingColumn, metric: Metric = "success", *, samples: int = SAMPLES) -> Estimate:
    """Mean of a column with its clustered interval."""
    return mean_interval(column.measured.outcomes, metric, samples=samples)


def difference(a: Column, b: Column, metric: Metric = "success", *, samples: int = SAMPLES) -> Estimate:
    """a - b on the same tasks, under the same protocol.

    Raises:
        SetupError: different protocols, or different tasks.
    """
    if a.protocol != b.protocol:
        raise SetupError(
            f"a {a.protocol} column against a {b.protocol} one",
            "two columns of one protocol",
            "measure both with the same benchmark.protocol",
        )
    return paired_difference(a.measured.outcomes, b.measured.outcomes, metric, samples=samples)
