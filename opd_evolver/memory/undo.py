"""Undoing one operation: what it retired lives again, what it made is retired, and the lineage of both stays.

An undo is an operation itself, so that it can be undone in turn. What others learnt is never taken away: an entry
that an episode wrote, too, stays although the operation made it as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from opd_evolver.errors import SetupError
from opd_evolver.memory.segment import LedgerSegment
from opd_evolver.records import Entry, MemoryOperation, uuid5_of

LOG = "`opd memory log` prints the ids of operations"


class Undone(NamedTuple):
    """What undoing comes to.

    Attributes:
        of: the operation that is undone.
        inverse: the operation that does it.
        kept: entries that it made or brought back, which stay: an episode wrote them, or they are retired already.
    """

    of: MemoryOperation
    inverse: MemoryOperation
    kept: tuple[str, ...]


def find(segments: Sequence[LedgerSegment], operation_id: str) -> tuple[int, MemoryOperation]:
    """The operation with this id, or with one that begins so, and the place of its segment.

    Raises:
        SetupError: none, or several.
    """
    found = [
        (place, operation)
        for place, segment in enumerate(segments)
        for operation in segment.operations
        if operation_id and operation.operation_id.startswith(operation_id)
    ]
    exact = [one for one in found if one[1].operation_id == operation_id]
    if len(exact or found) != 1:
        seen = f"{len(found)} operations begin with `{operation_id}`" if found else f"no operation `{operation_id}`"
        raise SetupError(seen, "one operation of the memory that the next round starts from", LOG)
    return (exact or found)[0]


def _made_by_others(
    segments: Sequence[LedgerSegment], entries: Mapping[str, Entry], place: int, operation: MemoryOperation
) -> set[str]:
    """Entries that an episode, an import or a merge that still holds wrote beside the operation."""
    written = {
        entry.entry_id
        for at, segment in enumerate(segments)
        # An undo made none of what it brought back: only what was written after it counts.
        if at > place or (at < place and operation.kind != "undo")
        for entry in segment.entries
    }
    for segment in segments:
        for other in segment.operations:
            holds = any(one in entries and entries[one].retired_by == other.operation_id for one in other.retired)
            if other.kind == "merge" and other.operation_id != operation.operation_id and holds:
                written.update(other.created)
    return written


def inverse(segments: Sequence[LedgerSegment], entries: Mapping[str, Entry], operation_id: str, round_: int) -> Undone:
    """What brings back the state before an operation, as far as it is still the operation's doing.

    Args:
        segments: the whole ledger, in order.
        entries: the state that the undo will meet, by id, retired ones included.
        operation_id: an id, or enough of its start.
        round_: the round that the undo enters.

    Raises:
        SetupError: no such operation, or nothing of it is left to undo.
    """
    place, operation = find(segments, operation_id)
    back = tuple(
        entry_id
        for entry_id in operation.retired
        if entry_id in entries and entries[entry_id].retired_by == operation.operation_id
    )
    live = {entry_id for entry_id, entry in entries.items() if entry.status == "live"}
    gone = tuple(one for one in operation.created if one in live - _made_by_others(segments, entries, place, operation))
    if not back and not gone:
        raise SetupError(
            f"nothing of {operation.kind} {operation.operation_id} is left to undo",
            "entries that are as it left them",
            "`opd memory why ID` tells what became of an entry",
        )
    before = sum(one.kind == "undo" for segment in segments for one in segment.operations)
    undone = MemoryOperation(
        operation_id=f"undo-{uuid5_of('undo', operation.operation_id, str(round_), str(before))[:12]}",
        kind="undo",
        round=round_,
        retired=gone,
        created=back,
    )
    return Undone(operation, undone, tuple(one for one in operation.created if one not in gone))
