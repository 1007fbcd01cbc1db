"""A memory that one process writes and others read: whole commits, no locks, a commit that is under way."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from memory_cases import die, in_child, in_children, wave

from opd_evolver.errors import SetupError
from opd_evolver.memory.embedded import EmbeddedIndex
from opd_evolver.memory.store import Memory


@pytest.fixture(autouse=True)
def filled(tmp_path: Path) -> None:
    """One wave is there."""
    with Memory.open(tmp_path) as memory:
        memory.commit(wave(0))


def test_readers_see_whole_commits_only(tmp_path: Path) -> None:
    def read() -> None:
        memory = Memory.open(tmp_path, read_only=True)
        last = 0
        while last < 4 * 12:
            found = len(memory.entries())
            assert found % 4 == 0 and found >= last, found
            memory.retrieve("zora key1x1", "sql", "zora")
            last = found

    def write() -> None:
        with Memory.open(tmp_path) as memory:
            for number in range(1, 12):
                memory.commit(wave(number))

    assert in_children([read, read, write]) == [0, 0, 0]


def test_a_reader_neither_locks_nor_writes(tmp_path: Path) -> None:
    with Memory.open(tmp_path, read_only=True) as reader, Memory.open(tmp_path) as writer:
        writer.commit(wave(1))
        assert len(reader.entries()) == 8
        with pytest.raises(SetupError, match="committer"):
            reader.commit(wave(2))


def test_a_reader_refuses_an_index_that_is_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def commit() -> None:
        with Memory.open(tmp_path) as memory:
            monkeypatch.setattr(EmbeddedIndex, "upsert", die)
            memory.commit(wave(1))

    in_child(commit)
    with pytest.raises(SetupError, match="opd resume"):
        Memory.open(tmp_path, read_only=True)


def test_a_reader_waits_for_a_commit_that_is_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, upsert = tmp_path / "begun", EmbeddedIndex.upsert

    def slow(*arguments: object, **more: object) -> object:
        begun.touch()
        time.sleep(1.0)
        return upsert(*arguments, **more)  # type: ignore[arg-type]

    def write() -> None:
        monkeypatch.setattr(EmbeddedIndex, "upsert", slow)
        with Memory.open(tmp_path) as memory:
            memory.commit(wave(1))

    def read() -> None:
        while not begun.exists():
            time.sleep(0.01)
        with Memory.open(tmp_path, read_only=True) as reader:
            assert len(reader.entries()) == 8

    assert in_children([write, read]) == [0, 0]
