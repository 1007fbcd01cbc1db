"""What a user changes in the memory between two rounds: imports, undone operations, retirements.

A finished round's memory is immutable, so an edit waits in `edits/round-NNN.jsonl` for the next round
that has not begun, whose `begin` step commits all of them as one ledger segment before the first wave.
The file's digest enters the round's step keys; a lineage without edits keeps the keys it had.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from opd_evolver import durable
from opd_evolver.errors import CorruptionError, SchemaError
from opd_evolver.memory.confirm import confirmed
from opd_evolver.memory.segment import LedgerSegment, SegmentKey, encode, head_of
from opd_evolver.memory.store import Memory, entry_of
from opd_evolver.records import SCHEMA_VERSION, MemoryOperation, Proposal, Record, canonical_json, digest_of


class Edit(Record):
    """One change by hand. Operations name entries of the memory that the round starts from.

    Attributes:
        kind: where it came from, for logs.
        proposals: entries to add.
        operations: merges, deletions or undone ones.
        reason: the user's words, or the file's name.
    """

    schema_version: int = SCHEMA_VERSION
    kind: Literal["import", "undo", "retire"]
    proposals: tuple[Proposal, ...] = ()
    operations: tuple[MemoryOperation, ...] = ()
    reason: str = ""


def file_of(run_folder: Path, round_: int) -> Path:
    """Where the edits that enter `round_` lie, below runs/<lineage>."""
    return run_folder / "edits" / f"round-{round_:03d}.jsonl"


def add(path: Path, edit: Edit) -> bool:
    """Appends an edit durably; the same edit again is a no-op. Returns whether it was new."""
    if edit in read(path):
        return False
    durable.append_line(path, canonical_json(edit))
    return True


def read(path: Path) -> list[Edit]:
    """The edits of a file, oldest first; none when it is absent. A torn last line was never acknowledged.

    Raises:
        CorruptionError: malformed; names the line.
        SchemaError: written by a newer version.
    """
    if not path.exists():
        return []
    *lines, _torn = path.read_text(encoding="utf-8").split("\n")
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            edit = Edit.model_validate_json(line)
        except ValidationError as error:
            raise CorruptionError(
                f"{path} line {number} is malformed: {error.errors()[0]['msg']}",
                "an edit",
                f"remove that line of {path}",
            ) from None
        if edit.schema_version > SCHEMA_VERSION:
            raise SchemaError(
                f"{path} line {number} has schema {edit.schema_version}",
                f"schema {SCHEMA_VERSION} or older",
                "upgrade: pip install -U opd-evolver",
            )
        found.append(edit)
    return found


def digest(path: Path) -> str | None:
    """Names the waiting edits in step keys; None when there are none."""
    found = read(path)
    return digest_of([canonical_json(edit) for edit in found]) if found else None


def apply(memory: Memory, edits: Sequence[Edit], round_: int, lineage: str) -> int:
    """Commits edits as one segment before the first wave of `round_`; returns the entries it added.

    It goes behind the last segment of the rounds before, and again is a no-op.

    Args:
        memory: the round's live memory, as restored.
        edits: in order; none writes nothing.
        round_: the round that begins.
        lineage: for the segment's header.

    Raises:
        SetupError: an operation names an entry that the memory does not know.
    """
    if not edits:
        return 0
    proposed = [entry_of(proposal, round_) for edit in edits for proposal in edit.proposals]
    entries = confirmed(memory, proposed, round_)
    known = {entry.entry_id for entry in memory.get(sorted({entry.entry_id for entry in entries}))}
    operations = tuple(operation for edit in edits for operation in edit.operations)

    def at(key: SegmentKey) -> LedgerSegment:
        return LedgerSegment(
            lineage=lineage,
            round=key.round,
            wave=key.wave,
            part=key.part,
            entries=entries,
            operations=operations,
        )

    heads = memory.ledger.segments()
    last = heads[-1] if heads else None
    if last and head_of(encode(at(last.key), 0, ""), Path(last.key.name)).content_digest == last.content_digest:
        return 0  # a begin step that was killed after its commit
    memory.commit(at(memory.ledger.next_operation_key(round_ - 1)))
    return len({entry.entry_id for entry in entries} - known)
