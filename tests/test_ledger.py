"""The ledger: whole segments or none, one committer, digests that leave out what they should, schema versions."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from memory_cases import die, in_child, row, tip, wave

from opd_evolver import durable
from opd_evolver.errors import CorruptionError, SchemaError, SetupError
from opd_evolver.memory.ledger import Ledger, fold_all
from opd_evolver.memory.segment import LedgerSegment, SegmentKey, decode, encode, encode_lines, fold, split_lines
from opd_evolver.records import CallRecord, MemoryOperation


def filled(folder: Path, n: int = 3, lineage: str = "run") -> Ledger:
    ledger = Ledger(folder)
    for number in range(n):
        ledger.append(wave(number, lineage=lineage), {f"r{number}-alone": 0.5})
    return ledger


def test_segments_come_back_as_they_were(tmp_path: Path) -> None:
    ledger = filled(tmp_path / "ledger")
    again = Ledger(tmp_path / "ledger", read_only=True)
    assert [head.key for head in again.segments()] == [SegmentKey(1, n) for n in range(3)]
    assert [found.rows for found in again.read_all()] == [wave(n).rows for n in range(3)]
    assert {one.entry_id for one in again.read(SegmentKey(1, 1)).entries} == {one.entry_id for one in wave(1).entries}
    assert len(again.rows()) == 7 and again.rows(round=2) == []
    assert again.digest() == ledger.digest()
    assert again.telemetry() == {f"r{n}-alone": 0.5 for n in range(3)}


def test_digest_leaves_out_seconds_lineage_and_order_of_entries(tmp_path: Path) -> None:
    one, two = filled(tmp_path / "a"), Ledger(tmp_path / "b")
    for number in range(3):
        segment = wave(number, lineage="run~2")
        two.append(segment.model_copy(update={"entries": tuple(reversed(segment.entries))}))
    assert one.digest() == two.digest()
    two.append(wave(3))
    assert one.digest() != two.digest()


def test_the_same_wave_again_is_a_no_op_and_another_is_refused(tmp_path: Path) -> None:
    ledger = filled(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("segment-*")}
    ledger.append(wave(1))
    with pytest.raises(SetupError, match="other content"):
        ledger.append(wave(1, n=9))
    with pytest.raises(SetupError, match="rising order"):
        ledger.append(wave(2).model_copy(update={"round": 0}))
    assert {path.name: path.read_bytes() for path in tmp_path.glob("segment-*")} == before


@pytest.mark.parametrize("damage", ["cut", "half", "empty", "flipped", "missing"])
def test_damage_is_found(tmp_path: Path, damage: str) -> None:
    filled(tmp_path).close()
    path = tmp_path / SegmentKey(1, 1).name
    data = path.read_bytes()
    spoilt = {
        "cut": data[: data.rfind(b"\n", 0, -1) + 1],
        "half": data[: len(data) // 2],
        "empty": b"",
        "flipped": data.replace(b"key1x0", b"key1x9", 1),
    }
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(spoilt[damage])
    with pytest.raises(CorruptionError, match="opd memory rollback"):
        Ledger(tmp_path, read_only=True).segments()


def test_a_value_that_cannot_be_read_back_is_not_acknowledged(tmp_path: Path) -> None:
    call = CallRecord(
        ability="act",
        turn=0,
        prompt_token_ids=(1,),
        reply_token_ids=(2,),
        logprobs=(float("nan"),),
        reply_text="",
        finish="stop",
    )
    ledger = Ledger(tmp_path)
    with pytest.raises(SetupError, match="finite"):
        ledger.append(
            LedgerSegment(lineage="x", round=1, wave=0, rows=(row("r").model_copy(update={"calls": (call,)}),))
        )
    assert ledger.segments() == ()


def test_lone_surrogates_do_not_stop_a_run(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.append(LedgerSegment(lineage="x", round=1, wave=0, rows=(row("r\ud800"),)))
    assert ledger.rows()[0].rollout_id == "r?"


# ── one committer ─────────────────────────────────────────────────────────────────────────────


def test_a_second_committer_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    ledger = filled(tmp_path)
    with pytest.raises(SetupError, match=f"process {os.getpid()}"):
        Ledger(tmp_path)
    assert len(Ledger(tmp_path, read_only=True).segments()) == 3
    ledger.close()
    Ledger(tmp_path).close()


def test_readers_cannot_append(tmp_path: Path) -> None:
    filled(tmp_path).close()
    with pytest.raises(SetupError, match="reading"):
        Ledger(tmp_path, read_only=True).append(wave(3))
    with pytest.raises(SetupError, match="opd run"):
        Ledger(tmp_path / "none", read_only=True)


def test_a_dead_owners_lock_is_taken_over(tmp_path: Path) -> None:
    def owner() -> None:
        filled(tmp_path)
        die()

    assert in_child(owner) == -9
    assert (tmp_path / "lock").exists()
    Ledger(tmp_path).append(wave(3))


def test_a_reused_pid_is_not_the_owner(tmp_path: Path) -> None:
    ledger = filled(tmp_path)
    lock = json.loads((tmp_path / "lock").read_text())
    (tmp_path / "lock").write_text(json.dumps({**lock, "started": lock["started"] - 1000.0}))
    Ledger(tmp_path)
    ledger.close()  # no longer the owner: must not take the other one's lock away
    assert (tmp_path / "lock").exists()


def test_a_lock_from_another_machine_is_respected(tmp_path: Path) -> None:
    filled(tmp_path).close()
    (tmp_path / "lock").write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": 0.0}))
    with pytest.raises(SetupError, match=r"elsewhere.*remove"):
        Ledger(tmp_path)


def test_only_one_of_many_takes_over(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text(json.dumps({"host": os.uname().nodename, "pid": 2**22 + 1, "started": 0.0}))
    won: list[Ledger] = []
    lost: list[SetupError] = []

    def attempt() -> None:
        try:
            won.append(Ledger(tmp_path))
        except SetupError as error:
            lost.append(error)

    threads = [threading.Thread(target=attempt) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(lost)) == (1, 7)


# ── durability ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("moment", ["before rename", "after rename"])
def test_a_kill_leaves_the_segment_whole_or_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    filled(tmp_path).close()

    def commit() -> None:
        monkeypatch.setattr(os, "replace", die) if moment == "before rename" else monkeypatch.setattr(
            durable, "sync_folder", die
        )
        ledger = Ledger.__new__(Ledger)
        ledger.__dict__.update(Ledger(tmp_path, read_only=True).__dict__, _lock=object())
        ledger.append(wave(3))

    assert in_child(commit) == -9
    ledger = Ledger(tmp_path)
    assert len(ledger.segments()) == (3 if moment == "before rename" else 4)
    assert not list(tmp_path.glob(".segment*"))
    ledger.append(wave(3))
    assert ledger.digest() == filled(tmp_path / "reference", 4).digest()


def test_a_full_disk_leaves_the_old_state(tmp_path: Path) -> None:
    """RLIMIT_FSIZE stands in for a full disk: no privileges, and the same OSError path."""
    filled(tmp_path).close()
    expected = Ledger(tmp_path, read_only=True).digest()

    def commit() -> None:
        import resource

        ledger = Ledger(tmp_path)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        with pytest.raises(SetupError, match=r"no space.*opd resume"):
            ledger.append(wave(3, n=500))
        assert len(ledger.segments()) == 3

    assert in_child(commit) == 0
    assert Ledger(tmp_path).digest() == expected
    assert not list(tmp_path.glob(".segment*"))


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
