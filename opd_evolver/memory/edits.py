"""What a user changes in the memory between two rounds: imports, undone operations, retirements.

A finished round's memory is immutable, so an edit waits in `edits/round-NNN.jsonl` for the next round
that has not begun, whose `begin` step commits all of them as one ledger segment before the first wave.
Where the gate refuses that round, its edits enter the round behind it, too. Their digest enters the round's
step keys; a lineage without edits keeps the keys it had.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import ValidationError

from opd_evolver import console, durable
from opd_evolver.errors import CorruptionError, SchemaError
from opd_evolver.memory.confirm import confirmed
from opd_evolver.memory.segment import LedgerSegment, SegmentKey, encode, head_of
from opd_evolver.memory.snapshot import segments_of
from opd_evolver.memory.store import Memory, entry_of
from opd_evolver.records import SCHEMA_VERSION, Entry, MemoryOperation, Proposal, Record, canonical_json, digest_of


class Edit(Record):
    """One change by hand. Operations name entries of the memory that the round starts from.

    Attributes:
        kind: where it came from, for logs.
        proposals: entries to add.
        operations: merges, deletions or undone ones.
        reason: the user's words, the file's name, or the operation that is undone.
    """

    schema_version: int = SCHEMA_VERSION
    kind: Literal["import", "undo", "retire"]
    proposals: tuple[Proposal, ...] = ()
    operations: tuple[MemoryOperation, ...] = ()
    reason: str = ""


class Erasure(Record):
    """One line of runs/<name>/erasures.jsonl: what was asked for. It holds no text of the entry."""

    schema_version: int = SCHEMA_VERSION
    entry_id: str
    reason: str


Line = TypeVar("Line", Edit, Erasure)
ERASURES = "erasures.jsonl"


def file_of(run_folder: Path, round_: int) -> Path:
    """Where the edits that enter `round_` lie, below runs/<lineage>."""
    return run_folder / "edits" / f"round-{round_:03d}.jsonl"


def add(path: Path, edit: Edit) -> bool:
    """Appends an edit durably; the same edit again is a no-op. Returns whether it was new."""
    with _alone(path):
        if edit in read(path):
            return False
        durable.append_line(path, canonical_json(edit))
    return True


def rewrite(path: Path, change: Callable[[list[Edit]], list[Edit]]) -> None:
    """Replaces a file's edits by what `change` makes of them; a file that is left empty is removed.

    Raises:
        CorruptionError, SchemaError: as for `read`.
    """
    with _alone(path):
        found = read(path)
        kept = change(list(found))
        if kept == found:
            return
        if kept:
            durable.write_text(path, "".join(f"{canonical_json(edit)}\n" for edit in kept))
        else:
            path.unlink()
            durable.sync_folder(path.parent)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One command at a time: an edit that is added while the file is rewritten would be lost."""
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        yield


def read(path: Path) -> list[Edit]:
    """The edits of a file, oldest first; none when it is absent. A torn last line was never acknowledged.

    Raises:
        CorruptionError: malformed; names the line.
        SchemaError: written by a newer version.
    """
    return _read(path, Edit)


def read_all(paths: Iterable[Path]) -> list[Edit]:
    """As `read`, one file after the other."""
    return [edit for path in paths for edit in read(path)]


def forgotten(run_folder: Path) -> frozenset[str]:
    """Ids of the entries that were erased in a run, all its lineages alike, by its folder runs/<name>.

    Raises:
        CorruptionError, SchemaError: as for `read`.
    """
    return frozenset(one.entry_id for one in _read(run_folder / ERASURES, Erasure))


def _read(path: Path, of: type[Line]) -> list[Line]:
    if not path.exists():
        return []
    *lines, _torn = path.read_text(encoding="utf-8").split("\n")
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            one = of.model_validate_json(line)
        except ValidationError as error:
            raise CorruptionError(
                f"{path} line {number} is malformed: {error.errors()[0]['msg']}",
                f"an {of.__name__.lower()}",
                f"remove that line of {path}",
            ) from None
        if one.schema_version > SCHEMA_VERSION:
            raise SchemaError(
                f"{path} line {number} has schema {one.schema_version}",
                f"schema {SCHEMA_VERSION} or older",
                "upgrade: pip install -U opd-evolver",
            )
        found.append(one)
    return found


def digest(*paths: Path) -> str | None:
    """Names the waiting edits in step keys; None when there are none."""
    found = read_all(paths)
    return digest_of([canonical_json(edit) for edit in found]) if found else None


def sorted_out(
    files: Mapping[int, Path], kept: int, taken_back: int, memory: Path | None
) -> tuple[list[Edit], list[Edit]]:
    """Edits of one lineage that go along to another that is being opened, and those that stay behind.

    These are what entered a round that is taken back, and the undo of an operation that the memory does not have.

    Args:
        files: by round, those of the rounds behind the memory that the other lineage starts from.
        kept: its last round that is finished; edits for rounds up to this one it finds where they are.
        taken_back: the last round that it takes back.
        memory: the snapshot that it starts from, an empty memory where there is none; None where it has all
            operations that the edits can name.
    """
    known: set[str] = set()
    if memory is not None and memory.is_dir():
        known.update(one.operation_id for segment in segments_of(memory) for one in segment.operations)
    along: list[Edit] = []
    left: list[Edit] = []
    for round_, path in files.items():
        for edit in read(path):
            fits = round_ > taken_back and (memory is None or not edit.operations or edit.reason in known)
            if round_ <= kept or fits:
                known.update(one.operation_id for one in edit.operations)
            if round_ > kept:
                (along if fits else left).append(edit)
    return along, left


def say_left(left: Sequence[Edit], lineage: str, round_: int) -> None:
    """Tells what a lineage that goes on from `round_` does not have."""
    if left:
        told = ", ".join(f"{edit.kind} {edit.reason}" for edit in left)
        console.say(f"{lineage} goes on from round {round_} without: {told}; ask again for what is missed")


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
    proposed = [[entry_of(proposal, round_) for proposal in edit.proposals] for edit in edits]
    entries = confirmed(memory, [entry for of_edit in proposed for entry in of_edit], round_)
    known = {entry.entry_id for entry in memory.get(sorted({entry.entry_id for entry in entries}))}
    operations = _operations(edits, proposed, round_)

    def at(key: SegmentKey) -> LedgerSegment:
        return memory.without_forgotten(
            LedgerSegment(
                lineage=lineage,
                round=key.round,
                wave=key.wave,
                part=key.part,
                entries=entries,
                operations=operations,
            )
        )

    heads = memory.ledger.segments()
    last = heads[-1] if heads else None
    if last and head_of(encode(at(last.key), 0, ""), Path(last.key.name)).content_digest == last.content_digest:
        return 0  # a begin step that was killed after its commit
    memory.commit(at(memory.ledger.next_operation_key(round_ - 1)))
    return len({entry.entry_id for entry in entries} - known - memory.forgotten)


def _operations(edits: Sequence[Edit], proposed: Sequence[Sequence[Entry]], round_: int) -> tuple[MemoryOperation, ...]:
    """All operations, as of `round_`: a segment's come behind its entries, so none retires what a later edit brings."""
    found: list[MemoryOperation] = []
    later: set[str] = set()
    for edit, entries in zip(reversed(edits), reversed(proposed), strict=True):
        for one in reversed(edit.operations):
            retired = tuple(entry_id for entry_id in one.retired if entry_id not in later)
            found.append(one.model_copy(update={"round": round_, "retired": retired}))
        later.update(entry.entry_id for entry in entries)
    return tuple(reversed(found))
