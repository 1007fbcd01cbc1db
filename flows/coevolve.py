"""Co-evolution: fast loop, slow loop, benchmark and gate, round after round.

`prefect deployment run coevolve/default`, `opd run` and `python -m flows coevolve` (what `dvc repro` and
`opd run` without a server call) all come here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.runtime import flow_run

from flows.benchmark import benchmark
from flows.fast_loop import fast_loop
from flows.slow_loop import slow_loop
from opd_evolver import lineage, writer
from opd_evolver.errors import GateRefusal, OpdError
from opd_evolver.memory.weaviate_server import under_way
from opd_evolver.steps import plan, prepare, progress, publish


@flow(name="coevolve", persist_result=False, log_prints=True)
def coevolve(
    name: str = "default",
    preset: str | None = None,
    overrides: dict[str, Any] | None = None,
    fork: bool = False,
    resume: bool = False,
) -> str:
    """Begin, resume or extend the run `name` and take it to its last round.

    Args:
        name: the run.
        preset: a preset shipped in the package; without it the project's params.yaml.
        overrides: dotted key → value, written resolved into the run.
        fork: open a new lineage when science parameters changed.
        resume: take the existing run to its end with the parameters it was begun with.
    """
    root = prepare.artifact_root()
    if resume:
        run = lineage.open_run(root, name)
    else:
        run = prepare.open_for_work(root, name, preset=preset, overrides=overrides or {}, fork=fork)
    if run.is_complete():
        print(f"run `{run.lineage}`: all {run.params.rounds} rounds are finished; nothing to do")
    else:
        with writer.writing(run, {"flow_run_id": flow_run.id}), _recorded(root, name):
            progress.clear_error(run)
            prepare.base(run)
            prepare.hosted(run)
            with under_way():
                _evolve(run)
    with _recorded(root, name):
        publish.versions(run)
    return run.lineage


@contextmanager
def _recorded(root: Path, name: str) -> Iterator[None]:
    """Keep what stops the run. What keeps a process from beginning is no word about it: another one may be at work."""
    try:
        yield
    except OpdError as error:
        progress.record_error(root, name, error)
        raise


def _evolve(run: lineage.Run) -> None:
    root, name = str(run.root), run.lineage
    if run.summary(0) is None:
        benchmark(root, name, 0)
        publish.round_zero(run)
    for round_ in range(len(run.finished_rounds()) + 1, run.params.rounds + 1):
        if plan.refusals(run, round_) >= run.params.gate.max_refusals:
            raise GateRefusal(
                f"the gate refused {run.params.gate.max_refusals} rounds in a row",
                "a round that is no worse than the champion",
                "see `opd rounds`; then change gate.* or slow.* with --fork",
            )
        memory = fast_loop(root, name, round_)
        digest = memory["entries"] + memory["ledger"]
        trained = slow_loop(root, name, round_, digest)
        benchmark(root, name, round_, digest, trained["weights"])
        publish.finish_round(run, round_)
        print(publish.round_line(run, round_))
