"""Hand a finished round to MLflow (comparison) and DVC (versions)."""

from __future__ import annotations

import json
from typing import Any

from opd_evolver import versioning
from opd_evolver.benchmark.measure import RoundMeasurement
from opd_evolver.benchmark.report import columns_json
from opd_evolver.lineage import Run, differences
from opd_evolver.params import flat, load
from opd_evolver.records import canonical_json, digest_of
from opd_evolver.settings import load_settings
from opd_evolver.steps import plan


def round_(run: Run, number: int) -> None:
    """Log a finished round to MLflow; the same round again changes nothing.

    Raises:
        OutageError: the tracking server does not answer; the round itself is safe on disk.
        SetupError: it refuses; the round is as safe.
    """
    from opd_evolver.tracking import RoundRecord, open_tracker

    summary = run.summary(number)
    if summary is None:
        raise ValueError(f"round {number} has not finished")
    measured = RoundMeasurement.model_validate(summary["measurement"])
    digests = summary.get("digests", {})
    tracker = open_tracker(run.root, load_settings().mlflow_tracking_uri)
    record = RoundRecord(
        name=run.identity.name,
        lineage=run.lineage,
        preset=run.params.preset,
        round=number,
        digest=digest_of([canonical_json([summary["measurement"], digests, summary.get("gate")])]),
        params={key: str(value) for key, value in flat(run.params.science()).items()},
        metrics=metrics_of(measured, summary),
        headline=headline_of(measured),
        tags=_tags(run, summary),
        files={"measurement.json": json.dumps(summary["measurement"], indent=2, sort_keys=True)},
        policy_digest=digests.get("weights"),
        policy_path=str((run.paths.version(number) / "policy").relative_to(run.root)) if digests else "",
        promoted=bool(summary.get("gate", {}).get("promoted")),
        superseded=plan.current(run).round != number,
    )
    tracker.log_round(record)


def missing(run: Run) -> None:
    """Log what MLflow did not take when it was due.

    Raises:
        OutageError: it still does not answer.
        SetupError: it refuses.
    """
    from opd_evolver.tracking import open_tracker

    known = open_tracker(run.root, load_settings().mlflow_tracking_uri).logged(run.lineage)
    for number in [0, *run.finished_rounds()]:
        if number not in known and run.owner(number).lineage == run.lineage:
            round_(run, number)


def metrics_of(measured: RoundMeasurement, summary: dict[str, Any]) -> dict[str, float]:
    """Every mean and bound of a round by name, the same names every round."""
    found = flat(columns_json(measured.columns))
    found |= flat({name: summary.get(name, {}) for name in ("memories", "maintenance", "distil")})
    rejected = summary.get("rejected") or {}
    found |= {"rejected/all": sum(rejected.values()), **{f"rejected/{name}": n for name, n in rejected.items()}}
    fast = summary.get("fast", {})
    found |= {"tokens": summary.get("tokens")}
    found |= {name: fast.get(name) for name in ("train_success", "tool_calls", "tools_shown_only")}
    return {
        key.replace("-", "_").replace(".", "/").replace(" ", "_"): float(value)
        for key, value in found.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def headline_of(measured: RoundMeasurement) -> dict[str, float]:
    """The curves of the parent run."""
    columns = measured.columns
    estimates = {"alone": columns.alone, "with_memory": columns.with_memory, "retention": columns.retention}
    return {name: found.mean for name, found in estimates.items() if found is not None and found.mean is not None}


def _tags(run: Run, summary: dict[str, Any]) -> dict[str, str]:
    digests = summary.get("digests", {})
    writer = run.paths.run / "writer.json"
    held = json.loads(writer.read_text()) if writer.exists() else {}
    tags = {
        "memory.digest": digests.get("entries", "empty"),
        "policy.digest": digests.get("weights", "base"),
        "flow_run_id": str(held.get("flow_run_id") or ""),
        "git.sha": versioning.git_sha(run.root),
    }
    return {key: value for key, value in tags.items() if value}


STAGES = ("coevolve", "benchmark", "report")


def pointers(run: Run) -> None:
    """`dvc add` every finished round's folders, pointer beside them; tell DVC that its stages are up to date.

    Outside a DVC project nothing happens. Only the run `default` is a stage's.
    """
    if not versioning.is_repo(run.root):
        return
    folders = [
        folder
        for number in run.finished_rounds()
        if run.owner(number).lineage == run.lineage
        for folder in (run.paths.version(number) / "memory", run.paths.version(number) / "policy")
        # What was pushed and freed has its pointer already.
        if folder.exists() or not versioning.pointer_of(folder).exists()
    ]
    versioning.add_pointers(run.root, folders)
    if run.lineage == "default" and _as_declared(run):
        versioning.commit(run.root, STAGES)


def _as_declared(run: Run) -> bool:
    """Whether the run has what params.yaml declares, all rounds included: only then are DVC's stages up to date."""
    path = run.root / "params.yaml"
    if not path.exists():
        return False
    declared = load(path)
    return not differences(run.params, declared) and run.params.rounds >= declared.rounds
