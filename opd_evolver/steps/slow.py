"""Steps of the slow loop: attribution and example sets, data contracts, distillation."""

from __future__ import annotations

from pathlib import Path

from opd_evolver import contracts as data_contracts
from opd_evolver import tracking
from opd_evolver.abilities.dialect import verdict
from opd_evolver.console import say
from opd_evolver.contracts import docs
from opd_evolver.contracts import drift as drift_contract
from opd_evolver.contracts import examples as example_contract
from opd_evolver.contracts import ledger as ledger_contract
from opd_evolver.contracts import memory as memory_contract
from opd_evolver.durable import write_text
from opd_evolver.errors import OutageError, SetupError
from opd_evolver.lineage import RunPaths
from opd_evolver.memory import confirm
from opd_evolver.memory.attribution import attribute, latest_rounds, sure
from opd_evolver.memory.store import Memory
from opd_evolver.params import flat
from opd_evolver.records import canonical_json
from opd_evolver.settings import load_settings
from opd_evolver.slow import anchor, leakage, views
from opd_evolver.slow import examples as example_sets
from opd_evolver.step import Job, StepResult, result
from opd_evolver.steps import resources
from opd_evolver.steps.progress import report_job


def examples(job: Job, out: Path) -> StepResult:
    """V(m) over the whole ledger, then the example sets, audited for leaks.

    They are of this round's rollouts, and of what those of `slow.write_rounds` wrote.
    """
    params = job.typed_params()
    with Memory.open(job.path("live"), params.memory, read_only=True) as memory:
        entries = memory.entries(live_only=False)
        segments = list(memory.ledger.read_all())
    rows = [row for segment in segments for row in segment.rows]
    attributions = attribute(rows, entries, params.attribution)
    lines = (canonical_json(attributions[entry_id]) for entry_id in sorted(attributions))
    write_text(out / "attributions.jsonl", "".join(f"{line}\n" for line in lines))
    current = [row for row in rows if row.round == job.round]
    latest = latest_rounds(rows, params.slow.write_rounds)
    earlier = [row for row in rows if row.round in latest and row.round < job.round and row.created]
    encode = resources.policy(job).encode
    known = confirm.history(segments)
    made = views.build(current, entries, attributions, encode, params, known, earlier=earlier)
    audit = leakage.audit(made.examples, [*earlier, *current], cut=made.cut)
    digest = example_sets.write_set(out, made.examples, made.outcomes)
    valued = [one for one in attributions.values() if one.value is not None]
    told = sure(attributions) if params.attribution.sure else attributions
    return result(
        job,
        digests={"examples": digest},
        metrics={
            "examples": {str(name): n for name, n in audit.n_examples.items()},
            "skipped": dict(made.skipped),
            "entries_with_evidence": len(valued),
            "entries_helpful": sum(verdict(one, params.attribution.threshold) == "up" for one in told.values()),
        },
    )


def contracts(job: Job, out: Path) -> StepResult:
    """Great Expectations over memory, ledger, examples and drift; a failed one stops the round before training."""
    params, folder = job.typed_params(), job.path("memory")
    checked = [
        memory_contract.contract(folder),
        ledger_contract.contract(folder, job.round),
        example_contract.contract(job.path("examples"), params.slow.hindsight),
        *drift_contract.contracts(folder, job.round, params.contracts),
    ]
    reports = [contract.check() for contract in checked]
    for report in reports:
        write_text(out / f"{report.name}.json", canonical_json(report) + "\n")
        for warning in report.warnings:
            say(f"round {job.round}: {report.name} warns: {warning}")
    page = "" if all(report.passed for report in reports) else _data_docs(job, checked, out / "data_docs")
    data_contracts.enforce(*reports, docs=page)
    return result(
        job,
        metrics={
            **{report.name: report.n_rows for report in reports},
            "warnings": sum(len(report.warnings) for report in reports),
            "not_measured": [report.name for report in reports if not report.measured],
        },
    )


def _data_docs(job: Job, checked: list[data_contracts.Contract], folder: Path) -> str:
    """The page that shows what failed; MLflow gets it too, but its silence hides no failure."""
    page = docs.build(checked, folder)
    params = job.typed_params()
    record = tracking.RoundRecord(
        name=job.lineage.partition("~")[0],
        lineage=job.lineage,
        preset=params.preset,
        round=job.round,
        digest="",
        params={key: str(value) for key, value in flat(params.science()).items()},
    )
    try:
        tracker = tracking.open_tracker(Path(job.root), load_settings().mlflow_tracking_uri)
        tracker.log_folder(record, folder, f"contracts/round-{job.round:03d}")
    except (OutageError, SetupError) as error:
        say(f"MLflow has no copy of {page}: {error}")
    return str(page)


def distil(job: Job, out: Path) -> StepResult:
    """The round's policy: on-policy self-distillation of the four views into the champion."""
    from opd_evolver.slow import launch
    from opd_evolver.slow.train import Distillation

    what = Distillation(
        policy_path=job.path("policy"),
        base_path=job.path("base"),
        examples_folder=job.path("examples"),
        target=job.path("target"),
        work=out,
        params=job.typed_params(),
        round=job.round,
        device=load_settings().device,
        anchor_file=_anchors(job),
    )
    report = launch.distil(what, lambda done, total: report_job(job, "distillation", done, total))
    return result(job, digests={"weights": report.weights_digest}, metrics={**report.metrics, "note": report.note})


def _anchors(job: Job) -> Path:
    """Where the base policy's rehearsal episodes lie: played in the first round, the same for all."""
    key = anchor.key(job.input_digests["base"], job.typed_params())
    return RunPaths(Path(job.root), job.lineage).run / "anchors" / f"{key}.jsonl"
