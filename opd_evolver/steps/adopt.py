"""What two runs would make alike is made once: an ablation's arm takes over what the whole has played and measured."""

from __future__ import annotations

from pathlib import Path

from opd_evolver import lineage, writer
from opd_evolver.durable import write_bytes
from opd_evolver.lineage import Run
from opd_evolver.memory import edits
from opd_evolver.memory.snapshot import restore
from opd_evolver.steps import plan, prepare, snapshots
from opd_evolver.steps.fast import REJECTED

# Folders of a run whose files are named by what decides their content.
BY_CONTENT = ("columns", "anchors")


def adopt(run: Run, other: Run) -> bool:
    """Give an unbegun run the measurements of a finished one, and its first fast loop where both play the same.

    The fast loop knows nothing of the slow one before it: runs that differ in `slow` alone fill the same memory in
    round 1. Its snapshot becomes the run's live memory; each wave is committed there, so no step plays it again.

    Args:
        run: does nothing when it has begun.
        other: finished at least one round, under the same root.

    Returns:
        Whether the fast loop was taken over.

    Raises:
        CorruptionError, SetupError: the other's snapshot is damaged or its bytes are nowhere.
    """
    if run.summary(0) is not None or run.paths.live(1).exists():
        return False
    with writer.writing(run, {"action": "adopt"}):
        for name in BY_CONTENT:
            _copy_missing(other.paths.run / name, run.paths.run / name)
        if not _plays_alike(run, other):
            return False
        folder = snapshots.sound(other, 1) / "memory"
        for told in other.paths.step(1, "").glob(f"wave-*/barrier/{REJECTED}"):
            write_bytes(run.paths.run / told.relative_to(other.paths.run), told.read_bytes())
        restore(folder, run.paths.live(1), run.params.memory)
    return True


def _plays_alike(run: Run, other: Run) -> bool:
    # A hosted memory lives on a server that only a running flow may wait for.
    if run.params.memory.store != "embedded" or other.reembeds:
        return False
    if any(edits.file_of(one.paths.run, 1).exists() for one in (run, other)):
        return False
    if not all(one.startswith("slow.") for one in lineage.differences(run.params, other.params)):
        return False
    prepare.base(run)
    mine, theirs = ((plan.base_policy(one)[1], plan.under_base(one)) for one in (run, other))
    return mine == theirs


def _copy_missing(source: Path, target: Path) -> None:
    for file in sorted(source.glob("*")):
        if not (target / file.name).exists():
            write_bytes(target / file.name, file.read_bytes())
