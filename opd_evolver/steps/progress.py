"""Progress and errors of a run as files, readable with every service down."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

from opd_evolver.durable import write_text
from opd_evolver.errors import OpdError
from opd_evolver.lineage import Run, RunPaths, exists, open_run
from opd_evolver.records import SCHEMA_VERSION, canonical_json
from opd_evolver.step import Job


def report(run: Run, round_: int, phase: str, done: int, total: int) -> None:
    """One line in runs/<lineage>/progress.jsonl; displays tail it."""
    append(run.paths, round_, phase, done, total)


def report_job(job: Job, phase: str, done: int, total: int) -> None:
    """The same from inside a step."""
    append(RunPaths(Path(job.root), job.lineage), job.round, phase, done, total)


def append(paths: RunPaths, round_: int, phase: str, done: int, total: int) -> None:
    line = {"time": round(time.time(), 2), "round": round_, "phase": phase, "done": done, "total": total}
    paths.run.mkdir(parents=True, exist_ok=True)
    with paths.progress.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def error_path(root: Path, lineage: str) -> Path:
    return RunPaths(root, lineage).run / "error.json"


def record_error(root: Path, name: str, error: OpdError) -> None:
    """Keep what stopped the run, so that whoever started it can say so in one line."""
    lineage = open_run(root, name).lineage if exists(root, name) else name
    # Deep in the house nobody knows the run's name, which the command that mends it needs.
    message = re.sub(r"opd resume(?! [A-Za-z0-9])", f"opd resume {name}", str(error))
    tree = {
        "schema_version": SCHEMA_VERSION,
        "kind": type(error).__name__,
        "message": message,
        "exit_code": error.exit_code,
    }
    write_text(error_path(root, lineage), canonical_json(tree) + "\n")


def clear_error(run: Run) -> None:
    error_path(run.root, run.lineage).unlink(missing_ok=True)
