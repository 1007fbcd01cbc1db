"""Segments: schema versions and their migration, and what a segment does to the entries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from memory_cases import die, filled, in_child, row, tip, wave

from opd_evolver import durable
from opd_evolver.errors import SchemaError
from opd_evolver.memory.ledger import Ledger, fold_all
from opd_evolver.memory.segment import LedgerSegment, SegmentKey, decode, encode, encode_lines, fold, split_lines
from opd_evolver.records import MemoryOperation

# ── schema versions ───────────────────────────────────────────────────────────────────────────


def rewrite(folder: Path, change: Any) -> None:
    """Rewrites every segment's lines, with digests and chain in order, as another version would have."""
    previous = ""
    for path in sorted(folder.glob("segment-*")):
        lines, _ = split_lines(path.read_bytes(), path)
        lines = change(lines)
        data = encode_lines({**lines[0], "previous": previous}, lines[1:])
        previous = json.loads(data.splitlines()[-1])["digest"]
        path.write_bytes(data)


def to_version_0(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Version 0, for this test: `R` in place of `episode_return`."""
    header = {**lines[0], "schema_version": 0}
    body = []
    for line in lines[1:]:
        record = dict(line["record"])
        if line["kind"] == "row":
            record["R"] = record.pop("episode_return")
        body.append({**line, "record": record})
    return [header, *body]


def to_version_1(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    body = []
    for line in lines[1:]:
        record = dict(line["record"])
        if line["kind"] == "row":
            record["episode_return"] = record.pop("R")
        body.append({**line, "record": record})
    return [{**lines[0], "schema_version": 1}, *body]


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    filled(tmp_path).close()
    rewrite(tmp_path, lambda lines: [{**lines[0], "schema_version": 2}, *lines[1:]])
    with pytest.raises(SchemaError, match=r"schema 2.*pip install"):
        Ledger(tmp_path)
    with pytest.raises(SchemaError):
        Ledger(tmp_path, read_only=True).segments()
    assert not (tmp_path / "lock").exists()


def test_an_older_schema_is_migrated_after_a_backup(tmp_path: Path) -> None:
    folder = tmp_path / "ledger"
    ledger = filled(folder)
    digest, rows = ledger.digest(), ledger.rows()
    ledger.close()
    rewrite(folder, to_version_0)
    old = {path.name: path.read_bytes() for path in folder.glob("segment-*")}
    with pytest.raises(SchemaError, match="opd resume"):
        Ledger(folder, read_only=True).rows()
    with pytest.raises(SchemaError):
        Ledger(folder)  # no migration known: nothing is touched
    assert {path.name: path.read_bytes() for path in folder.glob("segment-*")} == old
    migrated = Ledger(folder, migrations={0: to_version_1})
    assert migrated.migrated and (migrated.digest(), migrated.rows()) == (digest, rows)
    backup = tmp_path / "ledger.before-schema-1"
    assert {path.name: path.read_bytes() for path in backup.glob("segment-*")} == old


def test_a_killed_migration_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "ledger"
    ledger = filled(folder)
    digest = ledger.digest()
    ledger.close()
    rewrite(folder, to_version_0)
    old = {path.name: path.read_bytes() for path in folder.glob("segment-*")}

    def migrate() -> None:
        write = durable.write_bytes

        def write_one(path: Path, data: bytes) -> None:
            write(path, data)
            if path.name == SegmentKey(1, 1).name:
                die()

        monkeypatch.setattr(durable, "write_bytes", write_one)
        Ledger(folder, migrations={0: to_version_1})

    assert in_child(migrate) == -9
    assert Ledger(folder, migrations={0: to_version_1}).digest() == digest
    assert {path.name: path.read_bytes() for path in (tmp_path / "ledger.before-schema-1").glob("segment-*")} == old


# ── what segments do to entries ───────────────────────────────────────────────────────────────


def test_usage_comes_from_the_rows_alone(tmp_path: Path) -> None:
    late = tip("late", "4")
    ledger = Ledger(tmp_path)
    ledger.append(LedgerSegment(lineage="x", round=1, wave=0, entries=(late,)))
    rows = [row(f"r{n}", wave=1, round=2, injected=[late.entry_id], success=n < 2) for n in range(3)]
    ledger.append(LedgerSegment(lineage="x", round=2, wave=1, rows=tuple(rows)))
    (state,) = fold_all(ledger).values()
    assert (state.usage_count, state.success_count, state.last_used_round) == (3, 2, 2)


def test_equal_knowledge_merges_and_a_retired_entry_can_live_again() -> None:
    first, again = tip("late", "4", episode="b", round=1), tip("late", "4", episode="a", round=3)
    assert first.entry_id == again.entry_id != tip("late", "5").entry_id
    state = fold({}, LedgerSegment(lineage="x", round=1, wave=0, entries=(first,)))
    delete = MemoryOperation(operation_id="op", kind="delete", round=2, retired=(first.entry_id,))
    state = fold(state, LedgerSegment(lineage="x", round=2, wave=0, operations=(delete,)))
    retired = state[first.entry_id]
    assert (retired.status, retired.retired_round, retired.retired_by) == ("retired", 2, "op")
    state = fold(state, LedgerSegment(lineage="x", round=3, wave=0, entries=(again,)))
    merged = state[first.entry_id]
    assert (merged.status, merged.created_round, merged.source_episodes) == ("live", 1, ("a", "b"))
    assert merged.retired_round is None and merged.retired_by == ""


def test_a_merge_into_one_of_the_merged_keeps_it() -> None:
    one, two = tip("late", "4"), tip("late", "5")
    state = fold({}, LedgerSegment(lineage="x", round=1, wave=0, entries=(one, two)))
    ids = (one.entry_id, two.entry_id)
    merge = MemoryOperation(operation_id="op", kind="merge", round=1, retired=ids, created=(one.entry_id,))
    state = fold(state, LedgerSegment(lineage="x", round=1, wave=0, part=1, entries=(one,), operations=(merge,)))
    assert [state[entry_id].status for entry_id in ids] == ["live", "retired"]


def test_bytes_are_canonical(tmp_path: Path) -> None:
    data = encode(wave(1), 0, "")
    assert encode(decode(data, tmp_path), 0, "") == data
