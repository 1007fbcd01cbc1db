"""A ledger segment: one committed wave, its byte form, and what it does to the entries.

Lines: a header, then rows, entries and operations, then an end line with the count and the digests.
`digest` covers the bytes before it; `content_digest` leaves out the lineage, so that a lineage that
repeats a round has that round's digests. Each header names the digest of the segment before.
Paper: the repository update of the fast loop. Differs: the authors rewrite a JSON store per entry.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from opd_evolver.errors import CorruptionError, SchemaError, SetupError
from opd_evolver.memory.tombstone import tombstone
from opd_evolver.records import (
    SCHEMA_VERSION,
    Entry,
    LedgerRow,
    MemoryOperation,
    Record,
    canonical_json,
    digest_of,
)

MEND = "restore the round before: `opd memory rollback`"
Lines = list[dict[str, Any]]
Migration = Callable[[Lines], Lines]
MIGRATIONS: dict[int, Migration] = {}
"""schema version → what brings a segment's lines to the next version. Version 1 is the first."""


class SegmentKey(NamedTuple):
    """A segment's place: part 0 is the wave itself, later parts are operations at its barrier."""

    round: int
    wave: int
    part: int = 0

    @property
    def name(self) -> str:
        return f"segment-{self.round:04d}-{self.wave:05d}-{self.part:02d}.jsonl"


class LedgerSegment(Record):
    """What one commit says: finished rollouts in task order, new entries, maintenance operations."""

    lineage: str
    round: int
    wave: int
    part: int = 0
    rows: tuple[LedgerRow, ...] = ()
    entries: tuple[Entry, ...] = ()
    operations: tuple[MemoryOperation, ...] = ()

    @property
    def key(self) -> SegmentKey:
        return SegmentKey(self.round, self.wave, self.part)


class SegmentHead(NamedTuple):
    """A verified segment file, not parsed into records."""

    key: SegmentKey
    sequence: int
    previous: str
    digest: str
    content_digest: str
    schema_version: int


def _encode_line(value: Mapping[str, Any]) -> bytes:
    try:
        return canonical_json(value).encode("utf-8", "replace") + b"\n"
    except ValueError as error:
        raise SetupError(
            f"a ledger line holds a number JSON cannot carry ({error})", "finite numbers", "mend what returned NaN"
        ) from None


def encode_lines(header: Mapping[str, Any], body: Iterable[Mapping[str, Any]]) -> bytes:
    """The byte form of a segment, end line included."""
    lines = [_encode_line(header), *(_encode_line(line) for line in body)]
    end = {
        "kind": "end",
        "n_lines": len(lines),
        "digest": digest_of(lines),
        "content_digest": content_digest(json.loads(line) for line in lines),
    }
    return b"".join((*lines, _encode_line(end)))


def content_digest(lines: Iterable[Mapping[str, Any]]) -> str:
    """What a segment says, without lineage and place in the chain."""

    def bare(line: Mapping[str, Any]) -> dict[str, Any]:
        kept = {key: value for key, value in line.items() if key not in ("lineage", "sequence", "previous")}
        if isinstance(kept.get("record"), dict):
            kept["record"] = {key: value for key, value in kept["record"].items() if key != "lineage"}
        return kept

    return digest_of(canonical_json(bare(line)) for line in lines)


def encode(segment: LedgerSegment, sequence: int, previous: str) -> bytes:
    """The byte form. Entries are merged by id and sorted, so their order of arrival leaves no trace."""
    header = {
        "kind": "segment",
        "schema_version": SCHEMA_VERSION,
        "lineage": segment.lineage,
        "round": segment.round,
        "wave": segment.wave,
        "part": segment.part,
        "sequence": sequence,
        "previous": previous,
    }
    merged: dict[str, Entry] = {}
    for entry in segment.entries:
        merged[entry.entry_id] = merge(merged.get(entry.entry_id), entry)
    body: list[tuple[str, Record]] = [("row", row) for row in segment.rows]
    body += [("entry", merged[entry_id]) for entry_id in sorted(merged)]
    body += [("operation", operation) for operation in segment.operations]
    lines = ({"kind": kind, "record": record.model_dump(mode="json")} for kind, record in body)
    return encode_lines(header, lines)


def head_of(data: bytes, where: Path) -> SegmentHead:
    """Checks a segment's bytes; reads only its first and its last line.

    Raises:
        CorruptionError: truncated or altered.
        SchemaError: written by a newer version.
    """
    raw = data.splitlines(keepends=True)
    try:
        header, end = json.loads(raw[0]), json.loads(raw[-1])
        head = SegmentHead(
            SegmentKey(header["round"], header["wave"], header["part"]),
            header["sequence"],
            header["previous"],
            end["digest"],
            end["content_digest"],
            int(header["schema_version"]),
        )
        whole = end["kind"] == "end" and end["n_lines"] == len(raw) - 1 and digest_of(raw[:-1]) == end["digest"]
    except (ValueError, KeyError, IndexError, TypeError):
        whole = False
    if not whole:
        raise CorruptionError(f"ledger segment {where} is truncated or altered", "its own digest at the end", MEND)
    if head.schema_version > SCHEMA_VERSION:
        raise SchemaError(
            f"ledger segment {where} has schema {head.schema_version}",
            f"schema {SCHEMA_VERSION} or older",
            "install the newer opd-evolver: pip install -U opd-evolver",
        )
    return head


def split_lines(data: bytes, where: Path) -> tuple[Lines, SegmentHead]:
    """A checked segment's lines, header first, end line left out; raises like `head_of`."""
    head = head_of(data, where)
    return [json.loads(line) for line in data.splitlines()[:-1]], head


def decode(data: bytes, where: Path) -> LedgerSegment:
    """A segment from its bytes.

    Raises:
        CorruptionError: truncated, altered or malformed.
        SchemaError: another schema version.
    """
    lines, head = split_lines(data, where)
    if head.schema_version != SCHEMA_VERSION:
        raise SchemaError(
            f"ledger segment {where} has schema {head.schema_version}",
            f"schema {SCHEMA_VERSION}",
            "open the ledger writable once, which migrates it: `opd resume`",
        )
    records: dict[str, list[Any]] = {"row": [], "entry": [], "operation": []}
    try:
        for line in lines[1:]:
            records[line["kind"]].append(line["record"])
        return LedgerSegment(
            lineage=lines[0]["lineage"],
            round=head.key.round,
            wave=head.key.wave,
            part=head.key.part,
            rows=tuple(LedgerRow.model_validate(record) for record in records["row"]),
            entries=tuple(Entry.model_validate(record) for record in records["entry"]),
            operations=tuple(MemoryOperation.model_validate(record) for record in records["operation"]),
        )
    except (ValidationError, KeyError) as error:
        raise CorruptionError(f"ledger segment {where} is malformed: {error}", "ledger records", MEND) from None


def migrate(data: bytes, where: Path, previous: str, migrations: Mapping[int, Migration]) -> bytes:
    """A segment's bytes in today's schema, chained to `previous`.

    Raises:
        SchemaError: no migration is known from its version.
    """
    lines, head = split_lines(data, where)
    for version in range(head.schema_version, SCHEMA_VERSION):
        if version not in migrations:
            raise SchemaError(
                f"ledger segment {where} has schema {head.schema_version}",
                f"a version that migrates to {SCHEMA_VERSION}",
                "open it once with the opd-evolver between the two versions",
            )
        lines = migrations[version](lines)
    header = {**lines[0], "schema_version": SCHEMA_VERSION, "previous": previous}
    return encode_lines(header, lines[1:])


# ── what a segment does to the entries ────────────────────────────────────────────────────────


def merge(known: Entry | None, new: Entry) -> Entry:
    """Equal knowledge becomes one entry: sources united, first and last round kept, a retired one lives again.

    What was forgotten stays forgotten, even when it is learnt again.
    """
    if known is None:
        return new
    united = known.model_copy(
        update={
            "source_episodes": tuple(sorted({*known.source_episodes, *new.source_episodes})),
            "parents": tuple(sorted({*known.parents, *new.parents})),
            "created_round": min(known.created_round, new.created_round),
            "confirmed_round": max(
                (one.confirmed_round for one in (known, new) if one.confirmed_round is not None), default=None
            ),
            "status": "live",
            "retired_round": None,
            "retired_by": "",
        }
    )
    return tombstone(united) if "erased" in (known.status, new.status) else united


def touched(segment: LedgerSegment) -> list[str]:
    """Ids whose state the segment may change, sorted."""
    ids = {entry.entry_id for entry in segment.entries}
    for row in segment.rows:
        ids.update(row.injected)
    for operation in segment.operations:
        ids.update(operation.retired)
        if operation.kind == "undo":
            ids.update(operation.created)
    return sorted(ids)


def fold(before: Mapping[str, Entry], segment: LedgerSegment) -> dict[str, Entry]:
    """The state of the touched entries after the segment, from their state before it.

    Usage counts come from the rows alone (an entry is used when it was injected), so that applying
    a ledger from its start always gives the same state, however often it was applied before.
    """
    after = {entry_id: before[entry_id] for entry_id in touched(segment) if entry_id in before}
    for row in segment.rows:
        for entry_id in dict.fromkeys(row.injected):
            if entry_id in after:
                entry = after[entry_id]
                after[entry_id] = entry.model_copy(
                    update={
                        "usage_count": entry.usage_count + 1,
                        "success_count": entry.success_count + int(row.success),
                        "last_used_round": max(row.round, entry.last_used_round or 0),
                    }
                )
    for entry in sorted(segment.entries, key=lambda one: one.entry_id):
        after[entry.entry_id] = merge(after.get(entry.entry_id), entry)
    for operation in segment.operations:
        _operate(after, operation)
    return after


def _operate(after: dict[str, Entry], operation: MemoryOperation) -> None:
    """Retires and brings back what the operation names; what was erased stays erased."""
    for entry_id in operation.retired:
        if entry_id in after and entry_id not in operation.created and after[entry_id].status == "live":
            retired = {"status": "retired", "retired_round": operation.round, "retired_by": operation.operation_id}
            after[entry_id] = after[entry_id].model_copy(update=retired)
    for entry_id in operation.created if operation.kind == "undo" else ():
        if entry_id in after and after[entry_id].status == "retired":
            back = {"status": "live", "retired_round": None, "retired_by": ""}
            after[entry_id] = after[entry_id].model_copy(update=back)
