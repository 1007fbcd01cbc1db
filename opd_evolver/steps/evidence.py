"""What a finished run's columns came to, read from what its rounds measured; what is missing is measured now."""

from __future__ import annotations

from pathlib import Path

from opd_evolver.benchmark import rows
from opd_evolver.benchmark.columns import PolicySource, ResultStore
from opd_evolver.benchmark.measure import AnyColumn, Benchmark, Contestant
from opd_evolver.benchmark.protocols import MemorySource
from opd_evolver.benchmark.report import retention_pairs
from opd_evolver.benchmark.results import COLUMNS, SeedResult
from opd_evolver.benchmark.statistics import Estimate, units_of
from opd_evolver.environments import registry
from opd_evolver.lineage import Run
from opd_evolver.rollout.runner import EnvironmentPool
from opd_evolver.settings import load_settings
from opd_evolver.steps import plan, publish, snapshots


def collect(run: Run, last: int, *, novel: bool = True) -> SeedResult:
    """The columns of the base and of a round, on deploy-test and on families that were never deployed.

    Args:
        run: has finished that round, and perhaps further ones.
        last: the round.
        novel: also measure on families that were never deployed, where there are any.

    Raises:
        SetupError: its bytes are nowhere.
    """
    folder = snapshots.sound(run, last)
    digests = dict((run.summary(last) or {})["digests"])
    base_path, base_digest = plan.base_policy(run)
    base = source(run, run.root / base_path, base_digest)
    policy = source(run, folder / "policy", digests["weights"])
    memory = memory_of(run, last)
    n = run.params.benchmark.test_tasks_per_domain
    with EnvironmentPool(registry.loader(run.params.environments)) as pool:
        bench = Benchmark(run.params, pool, ResultStore(run.paths.run / "columns"))
        deployed = bench.tasks("deploy-test", n)
        columns: dict[str, AnyColumn | None] = {
            "base_alone": bench.column(Contestant(base, None), deployed, with_memory=False),
            "base_memory": bench.column(Contestant(base, memory), deployed, with_memory=True),
            "last_alone": bench.column(Contestant(policy, None), deployed, with_memory=False),
            "last_memory": bench.column(Contestant(policy, memory), deployed, with_memory=True),
        }
        if novel and (strange := bench.tasks("novel-test", n)):
            columns["novel_alone"] = bench.column(Contestant(policy, None), strange, with_memory=False)
            columns["novel_base_fresh"] = bench.fresh(base, strange)
            columns["novel_fresh"] = bench.fresh(policy, strange)
        outcomes = {name: column.measured.outcomes for name, column in columns.items() if column is not None}
        by_kind = rows.kinds(deployed, outcomes["base_memory"], run.params.memory.candidates)
    entries, values = rows.judged(folder / "memory", run.params)
    threshold = run.params.attribution.threshold
    measured = [publish.measurement_of(run, one) for one in range(last + 1)]
    return SeedResult(
        seed=run.params.seed,
        lineage=run.lineage,
        round=last,
        columns=dict.fromkeys(COLUMNS if novel else (), ()) | {name: units_of(one) for name, one in outcomes.items()},
        retention=retention_pairs(measured[0].columns, measured[-1].columns),
        curve=tuple((_mean(one.columns.alone), _mean(one.columns.with_memory)) for one in measured),
        digests={"base": base_digest, **digests},
        seconds=tuple(float((run.summary(one) or {})["seconds"]) for one in range(last + 1)),
        kinds=by_kind,
        selection=rows.selections(outcomes, deployed, entries, values, threshold),
        written=measured[-1].written,
    )


def _mean(found: Estimate | None) -> float | None:
    return found.mean if found else None


def memory_of(run: Run, round_: int) -> MemorySource:
    """The memory of a finished round, which `snapshots.sound` has seen."""
    digests = (run.summary(round_) or {})["digests"]
    folder = run.owner(round_).version(round_) / "memory"
    return MemorySource(folder, digests["entries"] + digests["ledger"], run.reembeds)


def source(run: Run, folder: Path, digest: str) -> PolicySource:
    """A policy of the run, opened where the site's settings say when it is first needed."""
    from opd_evolver.policy.registry import open_policy

    device = load_settings().device
    return PolicySource(digest, lambda: open_policy(run.params.policy, folder, device, version=digest[:16]))
