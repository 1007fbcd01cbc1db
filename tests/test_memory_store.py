"""Ledger and index as one: crashes between them, several processes, retrieval, operations."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from memory_cases import FULL_LEVELS, die, in_child, row, tip, wave

from opd_evolver.errors import CorruptionError, SetupError
from opd_evolver.memory import views
from opd_evolver.memory.embedded import EmbeddedIndex
from opd_evolver.memory.ledger import Ledger, fold_all
from opd_evolver.memory.segment import LedgerSegment
from opd_evolver.memory.store import Memory, entry_of, reindex
from opd_evolver.params import MemoryParams
from opd_evolver.records import Proposal, TipContent

N_WAVES = 4


def fill(folder: Path, n: int = N_WAVES) -> tuple[str, str]:
    with Memory.open(folder) as memory:
        for number in range(n):
            memory.commit(wave(number))
        return memory.digest(), memory.ledger.digest()


def check_in_step(memory: Memory) -> None:
    assert {entry.entry_id: entry for entry in memory.entries(live_only=False)} == fold_all(memory.ledger)


def test_open_commit_and_counts(tmp_path: Path) -> None:
    with Memory.open(tmp_path / "live") as memory:
        touched = memory.commit(wave(0))
        assert len(touched) == 4 and memory.counts_by_level() == {"trajectory": 0, "tip": 4, "skill": 0, "tool": 0}
        memory.commit(wave(1))
        used = [entry for entry in memory.entries() if entry.usage_count]
        assert sorted((entry.usage_count, entry.success_count, entry.last_used_round) for entry in used) == [
            (1, 0, 1),
            (1, 1, 1),
        ]
        check_in_step(memory)


def test_committing_twice_counts_once(tmp_path: Path) -> None:
    reference = fill(tmp_path / "a")
    with Memory.open(tmp_path / "b") as memory:
        for number in range(N_WAVES):
            memory.commit(wave(number))
            assert memory.commit(wave(number)) == tuple(
                memory.get([one.entry_id for one in memory.commit(wave(number))])
            )
        assert (memory.digest(), memory.ledger.digest()) == reference


def test_a_row_cannot_use_what_nobody_knows(tmp_path: Path) -> None:
    with Memory.open(tmp_path) as memory, pytest.raises(SetupError, match="uses entry nobody"):
        memory.commit(LedgerSegment(lineage="x", round=1, wave=0, rows=(row("r", injected=["nobody"]),)))


# ── crashes ───────────────────────────────────────────────────────────────────────────────────

KILLS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "before the ledger": lambda patch: patch.setattr(Ledger, "append", die),
    "inside the ledger's write": lambda patch: patch.setattr(os, "replace", die),
    "before the index": lambda patch: patch.setattr(EmbeddedIndex, "upsert", die),
    "inside the index's write": lambda patch: patch.setattr("opd_evolver.memory.embedded._put", die),
    "between index and mark": lambda patch: patch.setattr(EmbeddedIndex, "mark_applied", die),
}


@pytest.mark.parametrize("moment", KILLS)
def test_killed_between_ledger_and_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    reference = fill(tmp_path / "reference")
    fill(tmp_path / "live", 2)

    def commit() -> None:
        with Memory.open(tmp_path / "live") as memory:
            KILLS[moment](monkeypatch)
            memory.commit(wave(2))

    assert in_child(commit) == -signal.SIGKILL
    with Memory.open(tmp_path / "live") as memory:
        check_in_step(memory)
        for number in (2, 3):
            memory.commit(wave(number))
        check_in_step(memory)
        assert (memory.digest(), memory.ledger.digest()) == reference


def test_killed_at_random_moments(tmp_path: Path) -> None:
    n = 40
    reference = fill(tmp_path / "reference", n)
    rng = random.Random(3)

    def work() -> None:
        with Memory.open(tmp_path / "live") as memory:
            for number in range(len(memory.ledger.segment_keys()), n):
                memory.commit(wave(number))

    for _ in range(6):
        pid = os.fork()
        if pid == 0:
            work()
            os._exit(0)
        time.sleep(rng.uniform(0.02, 0.2))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        with Memory.open(tmp_path / "live") as memory:
            check_in_step(memory)
    work()
    with Memory.open(tmp_path / "live") as memory:
        assert (memory.digest(), memory.ledger.digest()) == reference


def test_a_full_disk_under_the_index_loses_nothing(tmp_path: Path) -> None:
    """The ledger has the wave, the index cannot grow: the commit fails, the next open replays it."""
    reference = fill(tmp_path / "reference", 2)
    fill(tmp_path / "live", 1)

    def commit() -> None:
        import resource

        with Memory.open(tmp_path / "live") as memory:
            resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
            with pytest.raises(SetupError, match=r"no space.*opd resume"):
                memory.commit(wave(1))
            assert len(memory.ledger.segment_keys()) == 2

    assert in_child(commit) == 0
    with Memory.open(tmp_path / "live") as memory:
        assert (memory.digest(), memory.ledger.digest()) == reference


def test_an_index_that_failed_catches_up_in_the_same_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = fill(tmp_path / "reference", 3)
    with Memory.open(tmp_path / "live") as memory:
        memory.commit(wave(0))
        with monkeypatch.context() as patch:
            patch.setattr(EmbeddedIndex, "mark_applied", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                memory.commit(wave(1))
        memory.commit(wave(2))
        assert (memory.digest(), memory.ledger.digest()) == reference


def test_a_lost_or_corrupt_index_is_rebuilt(tmp_path: Path) -> None:
    reference = fill(tmp_path)
    (tmp_path / "index.sqlite").unlink()
    with Memory.open(tmp_path) as memory:
        assert memory.digest() == reference[0]
    (tmp_path / "index.sqlite").write_bytes(b"spoilt" * 1000)
    with pytest.raises(CorruptionError, match="opd memory reindex"):
        Memory.open(tmp_path)
    assert reindex(tmp_path) == 16
    with Memory.open(tmp_path) as memory:
        assert memory.digest() == reference[0]


def test_an_index_ahead_of_its_ledger_is_not_trusted(tmp_path: Path) -> None:
    fill(tmp_path)
    max((tmp_path / "ledger").glob("segment-*")).unlink()
    with pytest.raises(CorruptionError, match="which the ledger lacks"):
        Memory.open(tmp_path)
    Memory.open(tmp_path / "other").close()  # and the lock was given back
    assert not (tmp_path / "ledger" / "lock").exists()


# ── retrieval ─────────────────────────────────────────────────────────────────────────────────


def test_retrieve_merges_levels_and_keeps_the_limit(tmp_path: Path) -> None:
    entries = [entry_of(Proposal(domain="sql", scope="zora", content=content), 1) for content in FULL_LEVELS]
    entries += [tip(f"k{n}", "1") for n in range(12)] + [tip("late", "4", scope="milo")]
    with Memory.open(tmp_path, MemoryParams(candidates=6)) as memory:
        memory.commit(LedgerSegment(lineage="x", round=1, wave=0, entries=tuple(entries)))
        found = memory.retrieve("zora count late", "sql", "zora")
        assert len(found) == 6 and {entry.level for entry, _ in found} == {"trajectory", "tip", "skill", "tool"}
        assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)
        assert {entry.scope for entry, _ in found} == {"zora"}
        assert found == memory.retrieve("zora count late", "sql", "zora")
        wide = memory.retrieve("milo late", "sql", "zora", limit=20, scope_filter=False)
        assert "milo" in {entry.scope for entry, _ in wide} and len(wide) == 17
        assert memory.retrieve("zora", "apps", "zora") == [] == memory.retrieve("zora", "sql", "zora", limit=0)


def test_alpha_decides_between_dense_and_lexical(tmp_path: Path) -> None:
    exact, near = tip("late", "4"), tip("lately latest lateral", "4")
    with Memory.open(tmp_path) as memory:
        memory.commit(LedgerSegment(lineage="x", round=1, wave=0, entries=(exact, near)))
        lexical = {entry.entry_id: score for entry, score in memory.retrieve("late", "sql", "zora", alpha=0.0)}
        assert lexical == {exact.entry_id: 1.0, near.entry_id: 0.0}


def test_retire_is_a_ledger_operation(tmp_path: Path) -> None:
    with Memory.open(tmp_path) as memory:
        memory.commit(wave(0))
        (victim,) = memory.get([tip("key0x3", "3").entry_id])  # the next wave does not find it again
        operation = memory.retire([victim.entry_id], by="cli", round=1)
        assert memory.counts_by_level()["tip"] == 3
        assert memory.get([victim.entry_id])[0].retired_by == operation.operation_id
        with pytest.raises(SetupError, match="cannot retire"):
            memory.retire([victim.entry_id], by="cli", round=1)
        memory.commit(wave(1))
        check_in_step(memory)
    reindex(tmp_path)
    with Memory.open(tmp_path) as memory:
        assert memory.get([victim.entry_id])[0].status == "retired"


def test_entry_of_is_the_same_for_equal_content_only() -> None:
    base = Proposal(
        domain="sql", scope="zora", content=TipContent(text="4", trigger="late"), source_episodes=("b", "a")
    )
    entry = entry_of(base, 2)
    assert entry.source_episodes == ("a", "b") and entry.created_round == 2
    for other in ({"scope": "milo"}, {"domain": "apps"}, {"content": TipContent(text="5", trigger="late")}):
        assert entry_of(base.model_copy(update=other), 2).entry_id != entry.entry_id
    odd = base.model_copy(update={"scope": "a\ud800", "content": TipContent(text="\udfff", trigger="x")})
    assert entry_of(odd, 1).scope == "a?"


def test_views(tmp_path: Path) -> None:
    with Memory.open(tmp_path) as memory:
        memory.commit(wave(0))
        memory.commit(wave(1))
        entry = next(one for one in memory.entries() if one.success_count)
        memory.retire([entry.entry_id], by="cli", round=1)
        told = views.log(memory)
        assert [(one["wave"], one["part"], one["written"], one["retired"]) for one in told] == [
            (0, 0, 4, 0),
            (1, 0, 4, 0),
            (1, 1, 0, 1),
        ]
        shown = views.show(memory, entry.entry_id[:10])
        assert shown["status"] == "retired" and [use["success"] for use in shown["uses"]] == [True]
        assert entry.entry_id not in [one["id"] for one in views.search(memory, "key0x0")]
        assert views.search(memory, "zora key1x2", limit=1)[0]["text"] == "zora key1x2 r1 2"
        for wrong in ("", "zzzz"):
            with pytest.raises(SetupError, match="opd memory search"):
                views.show(memory, wrong)
