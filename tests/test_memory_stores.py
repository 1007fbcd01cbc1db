"""One suite for every index: embedded, and Weaviate on a real server."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from memory_cases import FULL_LEVELS, die, filled, in_children, in_fresh_processes, tip, wave

from opd_evolver.errors import SetupError
from opd_evolver.memory.snapshot import restore, write_snapshot
from opd_evolver.memory.store import LEDGER_FOLDER, Memory, entry_of, reindex
from opd_evolver.params import MemoryParams
from opd_evolver.records import Proposal, SkillContent, TipContent
from opd_evolver.settings import load_settings

pytestmark = pytest.mark.timeout(600)
Opened = Callable[..., Memory]
Processes = Callable[[Sequence[Callable[[], None]]], list[int]]
TEXT = st.text(max_size=40)


@pytest.fixture(scope="module", params=["embedded", "weaviate"])
def store(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "embedded":
        yield request.param
        return
    found = request.getfixturevalue("weaviate")
    with patch.dict(os.environ, found.settings):
        load_settings.cache_clear()
        yield request.param
    load_settings.cache_clear()


@pytest.fixture
def params(store: str) -> MemoryParams:
    return MemoryParams(store=store)


@pytest.fixture
def in_processes(store: str) -> Processes:
    return in_fresh_processes if store == "weaviate" else in_children


@pytest.fixture
def memory(tmp_path: Path, params: MemoryParams) -> Iterator[Memory]:
    with Memory.open(tmp_path / "live", params) as opened:
        yield opened


def test_ranking_with_filters(memory: Memory) -> None:
    late, paid = tip("late", "4"), tip("paid", "7")
    other, apps = tip("late", "9", scope="milo"), tip("late", "ping", domain="apps")
    index = memory.index
    index.upsert([late, paid, other, apps])
    found = index.search("zora count late", level="tip", limit=5, domain="sql", scope="zora")
    assert [entry.entry_id for entry, _ in found] == [late.entry_id, paid.entry_id]
    assert found[0][1] > found[1][1]
    assert {entry.entry_id for entry, _ in index.search("late", level="tip", limit=9)} == {
        one.entry_id for one in (late, paid, other, apps)
    }
    assert index.search("late", level="skill", limit=5) == []
    assert index.search("late", level="tip", limit=0) == []
    assert index.search("late", level="tip", limit=5, domain="nowhere") == []


def test_limit_and_ties_by_id(memory: Memory) -> None:
    same = [tip("late", str(n), episode=str(n)) for n in range(20)]
    memory.index.upsert(same)
    found = memory.index.search("zora late", level="tip", limit=6, domain="sql", scope="zora")
    assert len(found) == 6
    assert [(-score, entry.entry_id) for entry, score in found] == sorted(
        (-score, entry.entry_id) for entry, score in found
    )


def test_retire_update_and_upsert_twice(memory: Memory) -> None:
    index, late = memory.index, tip("late", "4")
    index.upsert([late])
    index.upsert([late])
    gone = late.model_copy(update={"status": "retired", "retired_round": 2, "retired_by": "x"})
    index.upsert([gone])
    assert index.search("late", level="tip", limit=5) == []
    assert index.entries() == [] and index.entries(live_only=False) == [gone]
    assert index.get([late.entry_id, "unknown"]) == [gone]
    index.upsert([late.model_copy(update={"usage_count": 3})])
    [(back, _)] = index.search("late", level="tip", limit=5)
    assert back.usage_count == 3 and len(index.entries()) == 1


def test_an_empty_store(memory: Memory) -> None:
    assert memory.entries() == [] and memory.index.search("x", level="tip", limit=3) == []
    assert memory.index.get(["x"]) == [] and memory.index.applied() == {}
    assert memory.retrieve("x", domain="sql", scope="zora") == []


def test_every_level_keeps_all_its_fields(memory: Memory) -> None:
    entries = [entry_of(Proposal(domain="sql", scope="zora", content=content), 1) for content in FULL_LEVELS]
    memory.index.upsert(entries)
    assert memory.index.entries() == sorted(entries, key=lambda one: one.entry_id)
    for entry in entries:
        assert [one for one, _ in memory.index.search("zora", level=entry.level, limit=3)] == [entry]


@pytest.mark.parametrize(
    "text", ["", "\x00", "\u202e", "🧪 é ß ﬀ", '"); DROP', "{Get{x}}", "NEAR(a b)", "*", "a" * 5000]
)
def test_odd_text_is_data(memory: Memory, text: str) -> None:
    odd, late = tip(text, text, scope=text), tip("late", "4")
    memory.index.upsert([odd, late])
    assert memory.index.get([odd.entry_id]) == [odd]
    found = memory.index.search(text, level="tip", limit=5)
    assert {entry.entry_id for entry, _ in found} <= {odd.entry_id, late.entry_id}
    assert [entry for entry, _ in memory.index.search("late", level="tip", limit=5, scope=text)] == [odd]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(a=TEXT, b=TEXT, scope=TEXT, steps=st.lists(TEXT, max_size=3))
def test_any_text_comes_back_as_it_was(memory: Memory, a: str, b: str, scope: str, steps: list[str]) -> None:
    for content in (TipContent(text=a, trigger=b), SkillContent(description=a, technique=b, steps=tuple(steps))):
        entry = entry_of(Proposal(domain="sql", scope=scope, content=content), 1)
        memory.index.upsert([entry])
        assert memory.index.get([entry.entry_id]) == [entry]
        memory.index.search(a, level=entry.level, limit=3, scope=scope)


def test_memories_never_meet(tmp_path: Path, params: MemoryParams) -> None:
    with Memory.open(tmp_path / "a", params) as one, Memory.open(tmp_path / "b", params) as two:
        one.commit(wave(0))
        assert two.entries() == [] and two.index.applied() == {}
        assert two.index.search("key0x0", level="tip", limit=3) == []
        two.commit(wave(0, n=2))
        one.index.clear()
        assert one.entries() == [] and len(two.entries()) == 2


def test_a_reader_sees_what_was_committed_and_may_not_write(tmp_path: Path, params: MemoryParams) -> None:
    with Memory.open(tmp_path, params) as writer:
        writer.commit(wave(0))
        with Memory.open(tmp_path, params, read_only=True) as reader:
            assert reader.entries() == writer.entries()
            writer.commit(wave(1))
            assert reader.entries() == writer.entries() and len(reader.entries()) == 8
            with pytest.raises(SetupError):
                reader.index.upsert([tip("late", "4")])
    with pytest.raises(SetupError):
        Memory.open(tmp_path / "none", params, read_only=True)


def test_a_crash_between_ledger_and_index_is_replayed(
    tmp_path: Path, params: MemoryParams, in_processes: Processes
) -> None:
    with Memory.open(tmp_path, params) as memory:
        memory.commit(wave(0))

    def killed() -> None:
        with Memory.open(tmp_path, params) as memory, patch.object(type(memory.index), "upsert", die):
            memory.commit(wave(1))

    [status] = in_processes([killed])
    assert status < 0
    with pytest.raises(SetupError, match="opd resume"):
        Memory.open(tmp_path, params, read_only=True)
    with Memory.open(tmp_path, params) as memory:
        assert len(memory.entries()) == 8 and len(memory.index.applied()) == 2
        found = memory.digest()
    filled(tmp_path / "other" / LEDGER_FOLDER, 2).close()
    with Memory.open(tmp_path / "other") as embedded:
        assert embedded.digest() == found, "the digest is that of the embedded index"


def test_several_writers_one_after_another(tmp_path: Path, params: MemoryParams, in_processes: Processes) -> None:
    def commits(number: int) -> Callable[[], None]:
        def work() -> None:
            with Memory.open(tmp_path, params) as memory:
                memory.commit(wave(number))

        return work

    for number in range(4):
        assert in_processes([commits(number)]) == [0]
    with Memory.open(tmp_path, params) as memory:
        assert len(memory.index.applied()) == 4 and len(memory.entries()) == 16


def test_several_writers_at_once_commit_one_after_another(
    tmp_path: Path, params: MemoryParams, in_processes: Processes
) -> None:
    """Each waits for the ledger's lock and for its turn: nothing is lost, nothing is written twice."""

    def commits(number: int) -> Callable[[], None]:
        def work() -> None:
            refused = 0
            while True:
                try:
                    with Memory.open(tmp_path, params) as memory:
                        if len(memory.ledger.segment_keys()) == number:
                            return memory.commit(wave(number)) and None
                except SetupError as error:
                    refused += 1
                    assert "process" in str(error), error
                time.sleep(0.05)

        return work

    assert in_processes([commits(number) for number in range(4)]) == [0, 0, 0, 0]
    with Memory.open(tmp_path, params) as memory:
        assert len(memory.index.applied()) == 4 and len(memory.entries()) == 16
        found = memory.digest()
    filled(tmp_path / "other" / LEDGER_FOLDER, 4).close()
    with Memory.open(tmp_path / "other") as alone:
        assert alone.digest() == found


def test_snapshot_restore_and_reindex_keep_digests(tmp_path: Path, params: MemoryParams) -> None:
    with Memory.open(tmp_path / "live", params) as memory:
        for number in range(3):
            memory.commit(wave(number))
        info = write_snapshot(memory, tmp_path / "snapshot", 1, "run")
    assert restore(tmp_path / "snapshot", tmp_path / "again", params) == info
    assert reindex(tmp_path / "again", params) == info.n_entries
    with Memory.open(tmp_path / "again", params) as memory:
        assert memory.digest() == info.digest_entries


def test_an_index_moves_between_stores(tmp_path: Path, params: MemoryParams) -> None:
    with Memory.open(tmp_path, params) as memory:
        memory.commit(wave(0))
        before = (memory.digest(), len(memory.entries()))
    other = params.model_copy(update={"store": "embedded"})
    reindex(tmp_path, other)
    with Memory.open(tmp_path, other) as memory:
        assert (memory.digest(), len(memory.entries())) == before
    reindex(tmp_path, params)
    with Memory.open(tmp_path, params) as memory:
        assert (memory.digest(), len(memory.entries())) == before
