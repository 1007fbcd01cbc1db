"""Steps of the benchmark: measure a round on held-out tasks, then let the gate decide."""

from __future__ import annotations

from pathlib import Path

from opd_evolver.benchmark.columns import PolicySource, ResultStore
from opd_evolver.benchmark.gate import decide
from opd_evolver.benchmark.measure import Benchmark, Contestant, RoundMeasurement, measure_base, measure_round
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


def benchmark(job: Job, out: Path) -> StepResult:
    """Round 0: the base alone. Later: all columns on the test splits; new against champion on the validation ones."""
    params = job.typed_params()
    with EnvironmentPool(registry.loader(params.environments)) as pool:
        bench = Benchmark(params, pool, ResultStore(job.path("columns")))
        if job.round == 0:
            measured = measure_base(bench, _policy(job, "base"))
        else:
            new = Contestant(_policy(job, "policy"), _memory(job, "memory"))
            champion = Contestant(_policy(job, "champion_policy"), _memory(job, "champion_memory"))
            measured = measure_round(bench, _policy(job, "base"), new, champion)
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
