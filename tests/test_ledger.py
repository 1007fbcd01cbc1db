"""The ledger: whole segments or none, one committer, digests that leave out what they should."""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path

import psutil
import pytest
from memory_cases import die, filled, in_child, row, wave

from opd_evolver import durable, processes
from opd_evolver.errors import CorruptionError, SetupError
from opd_evolver.memory.ledger import Ledger
from opd_evolver.memory.segment import LedgerSegment, SegmentKey
from opd_evolver.records import CallRecord


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


@pytest.mark.parametrize("birth", ["another boot 1", None])
def test_a_reused_pid_is_not_the_owner(tmp_path: Path, birth: str | None) -> None:
    """None: a lock of an earlier version, or of a system without /proc."""
    ledger = filled(tmp_path)
    lock = json.loads((tmp_path / "lock").read_text())
    (tmp_path / "lock").write_text(json.dumps({**lock, "started": lock["started"] - 1000.0, "birth": birth}))
    Ledger(tmp_path)
    ledger.close()  # no longer the owner: must not take the other one's lock away
    assert (tmp_path / "lock").exists()


def test_a_lock_of_an_earlier_version_is_respected(tmp_path: Path) -> None:
    ledger = filled(tmp_path)
    lock = json.loads((tmp_path / "lock").read_text())
    (tmp_path / "lock").write_text(json.dumps({key: lock[key] for key in ("host", "pid", "started", "key")}))
    with pytest.raises(SetupError, match=f"process {os.getpid()}"):
        Ledger(tmp_path)
    ledger.close()


@pytest.mark.skipif(sys.platform != "linux", reason="start times move with the clock on Linux")
@pytest.mark.parametrize("step_s", [2.0, -3600.0])
def test_who_lives_still_lives_when_the_clock_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step_s: float
) -> None:
    ledger, me = filled(tmp_path), processes.me()
    boot = psutil.boot_time()
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: boot + step_s)
    assert processes.started(me["pid"]) == pytest.approx(me["started"] + step_s)
    with pytest.raises(SetupError, match=f"process {os.getpid()}"):
        Ledger(tmp_path)
    assert processes.alive(me["pid"], me["started"], me["birth"])
    ledger.close()


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
