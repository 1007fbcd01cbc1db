"""Steps of the benchmark: measure a round on held-out tasks, then let the gate decide."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from opd_evolver.benchmark.columns import PolicySource, ResultStore
from opd_evolver.benchmark.gate import decide
from opd_evolver.benchmark.measure import Benchmark, Contestant, RoundMeasurement, measure_base, measure_round, parts
from opd_evolver.benchmark.protocols import MemorySource
from opd_evolver.durable import write_text
from opd_evolver.environments import registry
from opd_evolver.records import canonical_json
from opd_evolver.rollout.runner import EnvironmentPool
from opd_evolver.step import Job, StepResult, result
from opd_evolver.steps import resources

MEASUREMENT = "measurement.json"


def _policy(job: Job, name: str) -> PolicySource:
    return PolicySource(job.input_digests[name], lambda: resources.policy(job, name))


def _memory(job: Job, name: str) -> MemorySource | None:
    if name not in job.inputs:
        return None
    return MemorySource(job.path(name), job.input_digests[name], tuple(job.options.get("reembeds", ())))


@contextmanager
def _bench(job: Job) -> Iterator[tuple[Benchmark, PolicySource, Contestant | None, Contestant]]:
    """What measures, the base policy, the round's contestant (none in round 0), the champion."""
    params, base = job.typed_params(), _policy(job, "base")
    new, champion = None, Contestant(base, None)
    if job.round > 0:
        new = Contestant(_policy(job, "policy"), _memory(job, "memory"))
        champion = Contestant(_policy(job, "champion_policy"), _memory(job, "champion_memory"))
    with EnvironmentPool(registry.loader(params.environments)) as pool:
        yield Benchmark(params, pool, ResultStore(job.path("columns"))), base, new, champion


def part(job: Job, out: Path) -> StepResult:
    """One part of what `benchmark` measures, ahead of it: it lies in the store of columns then."""
    with _bench(job) as (bench, base, new, champion):
        parts(bench, base, new, champion)[job.options["part"]]()
    return result(job)


def benchmark(job: Job, out: Path) -> StepResult:
    """Round 0: the base alone. Later: all columns on the test splits; new against champion on the validation ones."""
    with _bench(job) as (bench, base, new, champion):
        measured = measure_base(bench, base) if new is None else measure_round(bench, base, new, champion)
    write_text(out / MEASUREMENT, canonical_json(measured) + "\n")
    return result(job, digests={"benchmark": measured.digest()}, metrics={"tokens": measured.tokens})


def read_measurement(folder: Path) -> RoundMeasurement:
    """What a benchmark step found."""
    return RoundMeasurement.model_validate_json((folder / MEASUREMENT).read_text(encoding="utf-8"))


def gate(job: Job, out: Path) -> StepResult:
    """Promote, or keep the champion's policy and memory together."""
    measured = read_measurement(job.path("benchmark"))
    verdict = decide(measured.gate, job.typed_params().gate, int(job.options["refusals_before"]))
    return result(job, metrics=verdict.model_dump(mode="json"))
