"""The end of a round: its summary (which makes it finished), its row in MLflow, its pointers in DVC, the report."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from opd_evolver import step
from opd_evolver.benchmark.measure import RoundMeasurement
from opd_evolver.benchmark.report import rounds_object, rounds_table
from opd_evolver.durable import read_json, write_text
from opd_evolver.errors import OpdError, OutageError, SetupError
from opd_evolver.lineage import Run
from opd_evolver.memory import stores
from opd_evolver.records import SCHEMA_VERSION, canonical_json
from opd_evolver.steps import plan
from opd_evolver.steps.benchmark import read_measurement

COLUMNS = ("alone", "with_memory", "retention")


def _done(job: step.Job) -> step.StepResult:
    found = step.finished(job)
    if found is None:
        raise ValueError(f"step {job.step} of round {job.round} has not finished")
    return found


def round_zero(run: Run) -> None:
    """Round 0 is finished when the base policy has been measured."""
    _done(plan.benchmark_job(run, 0, "", ""))
    tree = {
        "schema_version": SCHEMA_VERSION,
        "round": 0,
        "champion": 0,
        "measurement": measurement_of(run, 0).model_dump(mode="json"),
        "seconds": seconds_of(run, 0),
    }
    write_text(run.paths.summary(0), canonical_json(tree) + "\n")
    _track(run, 0)


def measurement_of(run: Run, round_: int) -> RoundMeasurement:
    """A round's measurement: from its summary once finished, from its step before."""
    if (summary := run.summary(round_)) is not None:
        return RoundMeasurement.model_validate(summary["measurement"])
    return read_measurement(run.paths.step(round_, "benchmark"))


def finish_round(run: Run, round_: int) -> None:
    """Write the summary, which is what makes a round finished; then track it and drop what only it needed."""
    snapshot = _done(plan.snapshot_job(run, round_))
    memory = snapshot.digests["entries"] + snapshot.digests["ledger"]
    examples = _done(plan.examples_job(run, round_, memory))
    distil = _done(plan.distil_job(run, round_, examples.digests["examples"]))
    measured = _done(plan.benchmark_job(run, round_, memory, distil.digests["weights"]))
    gate = _done(plan.gate_job(run, round_, measured.digests["benchmark"]))
    tree = {
        "schema_version": SCHEMA_VERSION,
        "round": round_,
        "champion": round_ if gate.metrics["promoted"] else run.held(round_),
        "gate": gate.metrics,
        "digests": {
            "entries": snapshot.digests["entries"],
            "ledger": snapshot.digests["ledger"],
            "examples": examples.digests["examples"],
            "weights": distil.digests["weights"],
        },
        "memories": snapshot.metrics["memories"],
        "maintenance": snapshot.metrics["maintenance"],
        "rejected": snapshot.metrics["rejected"],
        "fast": snapshot.metrics,
        "examples": examples.metrics,
        "distil": distil.metrics,
        "measurement": measurement_of(run, round_).model_dump(mode="json"),
        "seconds": seconds_of(run, round_),
        "tokens": int(snapshot.metrics["tokens"]) + measurement_of(run, round_).tokens,
    }
    write_text(run.paths.summary(round_), canonical_json(tree) + "\n")
    for old in run.paths.live(round_).parent.glob("*"):
        # Hidden ones are views that a command builds beside the run.
        if old != run.paths.live(round_) and not old.name.startswith(".view"):
            _remove(old)
    _track(run, round_)


def _remove(live: Path) -> None:
    """A live memory that nothing needs any more; where its server is down it stays, which harms nothing."""
    try:
        stores.remove(live)
    except OpdError as error:
        print(f"{live} is left behind: {error}", file=sys.stderr)


def seconds_of(run: Run, round_: int) -> float:
    """Time spent in the steps of a round; where some ran beside each other, that time once."""
    return round(spanned(json.loads(path.read_text()) for path in run.paths.step(round_, "").glob("**/result.json")), 1)


def spanned(results: Iterable[Mapping[str, Any]]) -> float:
    """Seconds that step results cover together. One that does not say when it ended counts whole."""
    covered, last = 0.0, 0.0
    for ended, seconds in sorted(
        ((float(one.get("ended", 0.0)), float(one["seconds"])) for one in results), key=lambda one: one[0] - one[1]
    ):
        if not ended:
            covered += seconds
            continue
        covered += max(0.0, ended - max(last, ended - seconds))
        last = max(last, ended)
    return covered


def _track(run: Run, round_: int) -> None:
    """Log the round now; where MLflow does not take it, `versions` does it at the end, or says why not."""
    from opd_evolver.steps import track

    try:
        track.round_(run, round_)
    except (OutageError, SetupError) as error:
        print(f"round {round_} is finished but not logged yet: {error}", file=sys.stderr)


def rounds_tree(run: Run) -> dict[str, Any]:
    """The object of `opd rounds --json`."""
    rounds = run.finished_rounds()
    summaries = [summary for r in rounds if (summary := run.summary(r)) is not None]
    shown = ("round", "gate", "digests", "memories", "maintenance", "rejected", "seconds", "tokens")
    # Rounds of earlier versions counted neither maintenance nor rejected entries.
    facts = [{key: one.get(key) for key in shown} for one in summaries]
    return rounds_object(
        name=run.identity.name,
        lineage=run.lineage,
        preset=run.params.preset,
        base=measurement_of(run, 0),
        measured=[measurement_of(run, r) for r in rounds],
        rounds=facts,
    )


def _report_folder(run: Run) -> Path:
    return run.root / "reports" / run.identity.name


def _metrics(run: Run, tree: dict[str, Any]) -> None:
    found: dict[str, Any] = {"base": {"alone": measurement_of(run, 0).columns.alone.mean}}
    for one in tree["rounds"]:
        found[f"round-{one['round']:03d}"] = {name: (one["columns"][name] or {}).get("mean") for name in COLUMNS}
    write_text(_report_folder(run) / "metrics.json", json.dumps(found, indent=2, sort_keys=True) + "\n")


def _curves(run: Run, tree: dict[str, Any]) -> Path:
    lines = [",".join(("round", *COLUMNS))]
    for one in tree["rounds"]:
        means = [(one["columns"][name] or {}).get("mean") for name in COLUMNS]
        lines.append(",".join("" if value is None else str(value) for value in (one["round"], *means)))
    path = _report_folder(run) / "rounds.csv"
    write_text(path, "\n".join(lines) + "\n")
    return path


def _table(run: Run, tree: dict[str, Any]) -> Path:
    timeless = {**tree, "rounds": [{**one, "seconds": None} for one in tree["rounds"]]}
    path = _report_folder(run) / "rounds.txt"
    write_text(path, rounds_table(timeless) + "\n")
    return path


def curves(run: Run) -> Path:
    """reports/<name>/rounds.csv: a row per round, for plots."""
    return _curves(run, rounds_tree(run))


def table(run: Run) -> Path:
    """reports/<name>/rounds.txt: the table, without times, so that the same rounds give the same bytes."""
    return _table(run, rounds_tree(run))


def reports(run: Run) -> None:
    """What DVC's stages put out, whichever entry point did the work; metrics.json has the means that DVC compares."""
    tree = rounds_tree(run)
    _metrics(run, tree)
    _curves(run, tree)
    _table(run, tree)


def round_line(run: Run, round_: int) -> str:
    """One line for the log when a round is finished."""
    summary = run.summary(round_)
    columns = measurement_of(run, round_).columns
    together = columns.with_memory.mean if columns.with_memory else None
    verdict = summary["gate"]["reason"] if summary else ""
    return f"round {round_}: alone {columns.alone.mean}, with memory {together}; {verdict}"


def versions(run: Run) -> None:
    """Reports, pointers of every finished round under DVC, and rounds that MLflow missed; again is a no-op.

    Raises:
        OutageError: MLflow does not answer, or DVC is busy; the rounds are safe on disk.
        SetupError: DVC or MLflow refuses.
    """
    reports(run)
    from opd_evolver.steps import track

    track.pointers(run)  # before MLflow, whose outage must not cost them
    track.missing(run)
    tree = {"schema_version": SCHEMA_VERSION, "rounds": len(run.finished_rounds())}
    write_text(_published(run), canonical_json(tree) + "\n")


def is_published(run: Run) -> bool:
    """Whether `versions` has come to its end for all the rounds that are finished now."""
    path = _published(run)
    return path.exists() and read_json(path).get("rounds") == len(run.finished_rounds())


def _published(run: Run) -> Path:
    return run.paths.run / "published.json"
