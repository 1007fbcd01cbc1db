"""Who writes to a run now: one process at a time, named by pid and birth, so that a dead one is taken over."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from opd_evolver.durable import write_text
from opd_evolver.errors import SetupError
from opd_evolver.lineage import Run, read_json
from opd_evolver.processes import lives, me
from opd_evolver.records import SCHEMA_VERSION, canonical_json


def holder(run: Run) -> dict[str, Any] | None:
    """Who holds the run: {pid, started, birth, flow_run_id, live}; None when it was released or never taken."""
    path = run.paths.run / "writer.json"
    if not path.exists():
        return None
    held = read_json(path)
    return {**held, "live": lives(held)}


@contextmanager
def writing(
    run: Run, note: Mapping[str, Any] | None = None, mend: str = "wait for it, or stop it; then: opd resume"
) -> Iterator[None]:
    """Hold the run for this process; a dead owner's hold is taken over.

    Args:
        run: whatever writes to it holds it.
        note: kept beside the owner, for others to see.
        mend: what the user is told to do about another owner.

    Raises:
        SetupError: another live process writes to this run.
    """
    path = run.paths.run / "writer.json"
    _take(run, path, note or {}, mend)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _take(run: Run, path: Path, note: Mapping[str, Any], mend: str) -> None:
    """Check and write in one go: of two processes that start at once, one is refused."""
    from filelock import FileLock

    with FileLock(path.with_suffix(".lock")):
        held = holder(run)
        if held is not None and held["live"] and held["pid"] != os.getpid():
            raise SetupError(
                f"run `{run.lineage}` is being written by process {held['pid']}",
                "one writer",
                mend,
            )
        write_text(path, canonical_json({"schema_version": SCHEMA_VERSION, **me(), **note}))
