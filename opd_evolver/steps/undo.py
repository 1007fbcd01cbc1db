"""Undo of one operation in a run: against the memory that the next round starts from, as an edit that waits for it."""

from __future__ import annotations

from opd_evolver.errors import SetupError
from opd_evolver.lineage import Run
from opd_evolver.memory import edits
from opd_evolver.memory.segment import LedgerSegment, fold
from opd_evolver.memory.snapshot import read_entries, segments_of, verify
from opd_evolver.memory.store import entry_of
from opd_evolver.memory.undo import Undone, find, inverse
from opd_evolver.steps import plan, snapshots


def operation(run: Run, operation_id: str, *, dry_run: bool = False) -> Undone:
    """Undoes an operation when the next round begins.

    Args:
        run: the current lineage.
        operation_id: an id, or enough of its start.
        dry_run: write nothing.

    Raises:
        SetupError: no such operation, one of a refused round, or nothing of it is left to undo.
        CorruptionError: the snapshot does not match its digests.
    """
    held, round_ = snapshots.held(run), plan.next_unbegun(run)
    folder = snapshots.folder_of(run, held)
    verify(folder)
    segments = list(segments_of(folder))
    entries = {entry.entry_id: entry for entry in read_entries(folder)}
    files = run.edit_files(held, round_).values()
    for edit in edits.read_all(files):  # what waits already has been applied by then
        segment = LedgerSegment(
            lineage=run.lineage,
            round=round_,
            wave=0,
            entries=tuple(entry_of(proposal, round_) for proposal in edit.proposals),
            operations=edit.operations,
        )
        segments.append(segment)
        entries.update(fold(entries, segment))
    _not_of_a_refused_round(run, operation_id, held, segments)
    done = inverse(segments, entries, operation_id, round_)
    if not dry_run:
        path = edits.file_of(run.paths.run, round_)
        edits.add(path, edits.Edit(kind="undo", operations=(done.inverse,), reason=done.of.operation_id))
    return done


def _not_of_a_refused_round(run: Run, operation_id: str, held: int, segments: list[LedgerSegment]) -> None:
    """An operation of a round that the gate refused is not in the memory that goes on: there is nothing to undo."""
    last = snapshots.last_finished(run)
    known = {one.operation_id for segment in segments for one in segment.operations}
    if last == held or any(one.startswith(operation_id) for one in known):
        return
    _, found = find(list(segments_of(snapshots.folder_of(run, last))), operation_id)
    raise SetupError(
        f"{found.kind} {found.operation_id} is of round {found.round}, which the gate refused",
        f"an operation of round {held}, whose memory the next round starts from",
        f"nothing needs to be done: opd resume {run.identity.name}",
    )
