"""Everything a round's report and its gate need, measured once.

Reported on deploy-test and novel-test: policy alone and with memory, base and round, and retention.
For the gate alone on deploy-val and novel-val: new against champion.
Paper: the benchmark of a round. Differs: retention, the gate, and the base policy with the round's
memory (how much memory alone gives) are ours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import Field

from opd_evolver.benchmark import columns as col
from opd_evolver.benchmark import rows
from opd_evolver.benchmark.columns import PolicySource, ResultStore
from opd_evolver.benchmark.gate import RETENTION_METRICS, SUCCESS
from opd_evolver.benchmark.prober import can_probe
from opd_evolver.benchmark.probes import RETENTION_PROBES, ProbeReport, evaluate_probes
from opd_evolver.benchmark.protocols import (
    BenchmarkProtocol,
    Column,
    FreshProtocol,
    FrozenColumn,
    FrozenProtocol,
    MemorySource,
    StreamingColumn,
    StreamingProtocol,
)
from opd_evolver.benchmark.statistics import Estimate, ratio_difference
from opd_evolver.console import say
from opd_evolver.params import Params
from opd_evolver.records import SCHEMA_VERSION, Record, Split, Task, canonical_json, digest_of
from opd_evolver.rollout.runner import EnvironmentPool

AnyColumn = FrozenColumn | StreamingColumn
Part = Callable[[], object]
RETENTION = "memory_use"


class Columns(Record):
    """The columns of one policy; None: not measured (no memory yet, or a domain whose facts are unknown)."""

    alone: Estimate
    with_memory: Estimate | None
    retention: Estimate | None
    retention_metrics: dict[str, Estimate] = Field(default_factory=dict)
    steps_alone: Estimate
    steps_with_memory: Estimate | None = None


class RoundMeasurement(Record):
    """What one round's benchmark found.

    Attributes:
        protocol: frozen or streaming.
        columns: the round's policy; round 0: the base policy, without memory.
        base_with_memory: the base policy with this round's memory: policy frozen, memory evolved.
        base_memory_minus_base_alone, alone_minus_base_alone, memory_minus_base_alone: paired, on deploy-test.
        gate: new minus champion, paired, on deploy-val and novel-val; empty for round 0.
        headroom: by kind of task (`benchmark/rows.py`), the columns of the base and of the round.
        written: by round, what its entries have come to; key: the round.
        tokens: read and written by the reported columns.
    """

    schema_version: int = SCHEMA_VERSION
    protocol: str
    columns: Columns
    base_with_memory: Estimate | None = None
    base_memory_minus_base_alone: Estimate | None = None
    alone_minus_base_alone: Estimate | None = None
    memory_minus_base_alone: Estimate | None = None
    gate: dict[str, Estimate] = Field(default_factory=dict)
    headroom: dict[str, rows.Row] = Field(default_factory=dict)
    written: dict[int, rows.Written] = Field(default_factory=dict)
    tokens: int = 0

    def digest(self) -> str:
        """Digest of all that was found."""
        return digest_of([canonical_json(self)])


# So many times the tasks of a round are drawn to fill a fresh memory: those in the text of a measured task drop out.
SPARE = 3


@dataclass(frozen=True)
class Contestant:
    """A policy with its memory; None: no memory yet."""

    policy: PolicySource
    memory: MemorySource | None


class Benchmark:
    """Measures contestants on fixed tasks, reusing what is unchanged.

    Args:
        params: how many tasks, which protocol, how many bootstrap samples.
        environments: lends engines; kept open by the caller.
        store: measurements so far.
    """

    def __init__(self, params: Params, environments: EnvironmentPool, store: ResultStore) -> None:
        self.params, self.environments, self.store = params, environments, store
        self.samples = params.benchmark.bootstrap_samples

    def tasks(self, split: Split, n: int) -> list[Task]:
        """The first `n` tasks of every domain: always the same ones."""
        found: list[Task] = []
        for domain in self.params.environments.domains:
            with self.environments.lend(domain) as env:
                found += env.tasks(split, n)
        return found

    def column(self, who: Contestant, tasks: Sequence[Task], *, with_memory: bool) -> AnyColumn:
        """One column; `with_memory` False is the policy alone."""
        memory = (who.memory or MemorySource.empty()) if with_memory else None
        if self.params.benchmark.protocol == "frozen":
            return self._run(who.policy, memory, tasks, FrozenProtocol())
        return self._run(who.policy, memory, tasks, StreamingProtocol())

    def fresh(self, policy: PolicySource, tasks: Sequence[Task]) -> FrozenColumn | None:
        """A policy with a memory that it fills itself, from nothing, with other tasks of the same families.

        It has as many tasks and rollouts as a round gives, and none in the text of a measured one. None, and said why,
        where there are fewer such tasks: what a memory gives would be measured without one.
        """
        measured = {(task.domain, task.text) for task in tasks}
        n = self.params.fast.tasks_per_domain
        filling: dict[str, list[Task]] = {}
        for (domain, split), many in Counter((task.domain, task.split) for task in tasks).items():
            with self.environments.lend(domain) as env:
                further = env.tasks(split, many + SPARE * n)[many:]
            filling[domain] = [task for task in further if (domain, task.text) not in measured][:n]
            if len(filling[domain]) < n:
                fewer = f"{len(filling[domain])} of {n} further tasks of {split} ask what no measured one does"
                say(f"{domain}: a fresh memory is not measured: {fewer}")
                return None
        return self._run(policy, MemorySource.empty(), tasks, FreshProtocol(filling))

    def _run(
        self,
        policy: PolicySource,
        memory: MemorySource | None,
        tasks: Sequence[Task],
        protocol: BenchmarkProtocol[Column],
    ) -> Column:
        return col.run_column(policy, memory, tasks, protocol, self.params, self.environments, self.store)

    def mean(self, column: AnyColumn, *, steps: bool = False) -> Estimate:
        return col.mean(column, "steps_per_success" if steps else "success", samples=self.samples)

    def difference(self, a: AnyColumn, b: AnyColumn) -> Estimate:
        """a - b. Both are of this benchmark's one protocol."""
        return col.difference(a, b, samples=self.samples)  # type: ignore[type-var]

    def retention(self, policy: PolicySource, split: Split, drift_split: Split) -> ProbeReport | None:
        """The retention probes; None where no domain's facts are known."""
        n = self.params.benchmark.probe_tasks_per_domain
        domains = [name for name in self.params.environments.domains if can_probe(self.environments, name)]
        if not domains:
            return None
        parts = ["retention", policy.digest, split, drift_split, str(n), *domains, *RETENTION_PROBES]
        told = [col.tasks_digest(self.tasks(one, n)) for one in (split, drift_split)]
        key = digest_of(
            [str(SCHEMA_VERSION), *parts, *told, str(self.samples), canonical_json(col.deciding(self.params))]
        )
        if (found := self.store.get(key)) is not None:
            return ProbeReport.model_validate(found)
        report = evaluate_probes(
            policy.open(), self.environments, split, n, self.params, probes=RETENTION_PROBES, drift_split=drift_split
        )
        self.store.put(key, report)
        return report


def measure_base(bench: Benchmark, base: PolicySource) -> RoundMeasurement:
    """Round 0: the base policy alone, and its retention."""
    test = bench.tasks("deploy-test", bench.params.benchmark.test_tasks_per_domain)
    alone = bench.column(Contestant(base, None), test, with_memory=False)
    return RoundMeasurement(
        protocol=bench.params.benchmark.protocol,
        columns=_columns(bench, alone, None, bench.retention(base, "novel-test", "deploy-test")),
        tokens=_tokens(alone),
    )


def measure_round(bench: Benchmark, base: PolicySource, new: Contestant, champion: Contestant) -> RoundMeasurement:
    """A round's columns on the test splits, and its comparison with the champion on the validation splits.

    Args:
        bench: what measures.
        base: the policy the run began with.
        new: the round's policy and memory.
        champion: what the round started from.
    """
    test = bench.tasks("deploy-test", bench.params.benchmark.test_tasks_per_domain)
    alone = bench.column(new, test, with_memory=False)
    together = bench.column(new, test, with_memory=True)
    base_alone = bench.column(Contestant(base, None), test, with_memory=False)
    base_memory = bench.column(Contestant(base, new.memory), test, with_memory=True)
    columns = {"base_alone": base_alone, "base_memory": base_memory, "last_alone": alone, "last_memory": together}
    by_kind, written = _by_kind(bench, test, columns, new.memory)
    return RoundMeasurement(
        protocol=bench.params.benchmark.protocol,
        columns=_columns(bench, alone, together, bench.retention(new.policy, "novel-test", "deploy-test")),
        base_with_memory=bench.mean(base_memory),
        base_memory_minus_base_alone=bench.difference(base_memory, base_alone),
        alone_minus_base_alone=bench.difference(alone, base_alone),
        memory_minus_base_alone=bench.difference(together, base_alone),
        gate=_against_champion(bench, new, champion),
        headroom=by_kind,
        written=written,
        tokens=_tokens(alone) + _tokens(together),
    )


def parts(bench: Benchmark, base: PolicySource, new: Contestant | None, champion: Contestant) -> dict[str, Part]:
    """What a benchmark measures one after the other, by name: any part may be measured ahead, elsewhere.

    It lies in the store then, where `measure_base` and `measure_round` find it.

    Args:
        bench: its store is shared.
        base, champion: as in `measure_round`.
        new: None in round 0, which has the base alone.
    """

    def column(who: Contestant, split: Split, *, with_memory: bool = True) -> Part:
        asked = bench.params.benchmark
        n = asked.test_tasks_per_domain if split == "deploy-test" else asked.val_tasks_per_domain
        return lambda: bench.column(who, bench.tasks(split, n), with_memory=with_memory)

    who = new or Contestant(base, None)
    found = {
        "alone": column(who, "deploy-test", with_memory=False),
        "retention": lambda: bench.retention(who.policy, "novel-test", "deploy-test"),
    }
    if new is None:
        return found
    return found | {
        "with memory": column(new, "deploy-test"),
        "base with memory": column(Contestant(base, new.memory), "deploy-test"),
        "validation": column(new, "deploy-val"),
        "validation of the champion": column(champion, "deploy-val"),
        "retention for the gate": lambda: bench.retention(new.policy, "novel-val", "deploy-val"),
        "retention of the champion": lambda: bench.retention(champion.policy, "novel-val", "deploy-val"),
    }


def _columns(bench: Benchmark, alone: AnyColumn, together: AnyColumn | None, retention: ProbeReport | None) -> Columns:
    metrics = retention.metrics if retention else {}
    return Columns(
        alone=bench.mean(alone),
        with_memory=bench.mean(together) if together else None,
        retention=metrics.get(RETENTION),
        retention_metrics=metrics,
        steps_alone=bench.mean(alone, steps=True),
        steps_with_memory=bench.mean(together, steps=True) if together else None,
    )


def _by_kind(
    bench: Benchmark, tasks: Sequence[Task], columns: Mapping[str, AnyColumn], memory: MemorySource | None
) -> tuple[dict[str, rows.Row], dict[int, rows.Written]]:
    """Rows by kind, and what was written; nothing where the round has no memory yet."""
    if memory is None or memory.folder is None:
        return {}, {}
    params = bench.params
    entries, values = rows.judged(memory.folder, params)
    threshold = params.attribution.threshold
    outcomes = {name: column.measured.outcomes for name, column in columns.items()}
    by_kind = rows.kinds(tasks, outcomes["base_memory"], params.memory.candidates)
    selected = rows.selections(outcomes, tasks, entries, values, threshold)
    return rows.rows(outcomes, by_kind, selected, bench.samples), rows.written(entries, values, threshold)


def _against_champion(bench: Benchmark, new: Contestant, champion: Contestant) -> dict[str, Estimate]:
    tasks = bench.tasks("deploy-val", bench.params.benchmark.val_tasks_per_domain)
    ours = bench.column(new, tasks, with_memory=True)
    theirs = bench.column(champion, tasks, with_memory=True)
    found = {SUCCESS: bench.difference(ours, theirs)}
    now = bench.retention(new.policy, "novel-val", "deploy-val")
    before = bench.retention(champion.policy, "novel-val", "deploy-val")
    if now is not None and before is not None:
        for name in RETENTION_METRICS:
            if name in now.units and name in before.units:
                found[name] = ratio_difference(now.units[name], before.units[name], samples=bench.samples)
    return found


def _tokens(column: AnyColumn) -> int:
    return sum(one.tokens for one in column.measured.outcomes)
