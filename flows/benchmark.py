"""Benchmark and gate: held-out tasks × {policy alone, policy + memory}; promote, or keep the champion."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from prefect import flow

from flows.placement import run_step
from opd_evolver import lineage
from opd_evolver.errors import OpdError
from opd_evolver.steps import plan, prepare, progress, publish


@flow(name="benchmark", persist_result=False)
def benchmark(root: str, lineage_name: str, round_: int, memory_digest: str = "", policy_digest: str = "") -> None:
    """Measure a round (0: the base policy) and, from round 1 on, let the gate decide."""
    run = lineage.Run(Path(root), lineage.read_identity(Path(root), lineage_name))
    placement = run.params.flows.placement
    progress.report(run, round_, "benchmark", 0, 1)
    measured = run_step(plan.benchmark_job(run, round_, memory_digest, policy_digest), placement)
    if round_ > 0:
        run_step(plan.gate_job(run, round_, measured.digests["benchmark"]), placement)


def main() -> int:
    """`python -m flows.benchmark`: the columns of every finished round again from what was measured, as rounds.csv."""
    parser = argparse.ArgumentParser(prog="python -m flows.benchmark", description=main.__doc__)
    parser.add_argument("--name", default="default")
    given = parser.parse_args()
    try:
        print(publish.curves(lineage.open_run(prepare.artifact_root(), given.name)))
    except OpdError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
