"""Steps of the slow loop: attribution and example sets, data contracts, distillation."""

from __future__ import annotations

from pathlib import Path

from opd_evolver import contracts as data_contracts
from opd_evolver.durable import write_text
from opd_evolver.lineage import RunPaths
from opd_evolver.memory.attribution import attribute
from opd_evolver.memory.store import Memory
from opd_evolver.records import canonical_json, digest_of
from opd_evolver.settings import load_settings
from opd_evolver.slow import examples as example_sets
from opd_evolver.slow import leakage, views
from opd_evolver.step import Job, StepResult, result
from opd_evolver.steps import resources
from opd_evolver.steps.progress import report_job


def examples(job: Job, out: Path) -> StepResult:
    """V(m) over the whole ledger, then the example sets of this round's rollouts, audited for leaks."""
    params = job.typed_params()
    with Memory.open(job.path("live"), params.memory, read_only=True) as memory:
        entries = memory.entries(live_only=False)
        rows = memory.ledger.rows()
    attributions = attribute(rows, entries, params.attribution)
    lines = (canonical_json(attributions[entry_id]) for entry_id in sorted(attributions))
    write_text(out / "attributions.jsonl", "".join(f"{line}\n" for line in lines))
    current = [row for row in rows if row.round == job.round]
    made = views.build(current, entries, attributions, resources.policy(job).encode, params)
    audit = leakage.audit(made.examples, current, cut=made.cut)
    digest = example_sets.write_set(out, made.examples, made.outcomes)
    valued = [one for one in attributions.values() if one.value is not None]
    return result(
        job,
        digests={"examples": digest},
        metrics={
            "examples": {str(name): n for name, n in audit.n_examples.items()},
            "skipped": dict(made.skipped),
            "entries_with_evidence": len(valued),
            "entries_helpful": sum((one.value or 0.0) >= params.attribution.threshold for one in valued),
        },
    )


def contracts(job: Job, out: Path) -> StepResult:
    """Great Expectations over memory, ledger and examples; a failed one stops the round before training."""
    reports = (
        data_contracts.check_memory(job.path("memory")),
        data_contracts.check_ledger(job.path("memory"), job.round),
        data_contracts.check_examples(job.path("examples"), job.typed_params().slow.hindsight),
    )
    for report in reports:
        write_text(out / f"{report.name}.json", canonical_json(report) + "\n")
    data_contracts.enforce(*reports)
    return result(job, metrics={report.name: report.n_rows for report in reports})


def distil(job: Job, out: Path) -> StepResult:
    """The round's policy: on-policy self-distillation of the four views into the champion."""
    from opd_evolver.slow.train import distil as train

    report = train(
        job.path("policy"),
        job.path("base"),
        job.path("examples"),
        job.path("target"),
        out,
        job.typed_params(),
        job.round,
        lambda done, total: report_job(job, "distillation", done, total),
        device=load_settings().device,
        anchor_file=_anchors(job),
    )
    return result(job, digests={"weights": report.weights_digest}, metrics={**report.metrics, "note": report.note})


def _anchors(job: Job) -> Path:
    """Where the base policy's rehearsal episodes lie: played in the first round, the same for all."""
    key = digest_of([job.input_digests["base"], job.typed_params().digest()])[:16]
    return RunPaths(Path(job.root), job.lineage).run / "anchors" / f"{key}.jsonl"
