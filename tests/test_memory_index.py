"""The embedded index: ranking, filters, odd text, several processes, files that are not what they should be."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from memory_cases import FULL_LEVELS, tip

from opd_evolver.errors import CorruptionError, SchemaError, SetupError
from opd_evolver.memory import embedded
from opd_evolver.memory.embed import WORD, HashEmbedder, open_embedder, words_of
from opd_evolver.memory.embedded import EmbeddedIndex
from opd_evolver.memory.store import entry_of
from opd_evolver.records import Proposal, SkillContent, TipContent

TEXT = st.text(max_size=40)
ODD = [
    "",
    "\x00",
    "\u202e",
    "🧪 é ß ﬀ",
    '"); DROP TABLE entries; --',
    'late" OR text : "paid',
    "NEAR(a b)",
    "*",
    "a" * 5000,
]


@pytest.fixture
def index(tmp_path: Path) -> EmbeddedIndex:
    return EmbeddedIndex(tmp_path / "index.sqlite", HashEmbedder())


def test_embedder_is_stable_unit_and_named() -> None:
    vectors = HashEmbedder().embed(["zora late 4", "zora late 5", "unrelated words", "", "  "])
    assert vectors.dtype == np.float32 and vectors.shape == (5, 256)
    assert np.allclose(np.linalg.norm(vectors, axis=1), [1, 1, 1, 0, 0], atol=1e-6)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]
    assert np.array_equal(
        np.flatnonzero(HashEmbedder().embed(["a"])[0]), np.array([6, 129])
    )  # the same on every machine
    assert HashEmbedder().identity == "hash-256-v1"
    with pytest.raises(SetupError, match="hash-256"):
        open_embedder("hsh-256")


@given(text=st.text(st.characters(max_codepoint=160), max_size=60) | st.text(max_size=60))
def test_words_are_those_of_the_pattern(text: str) -> None:
    assert words_of(text) == WORD.findall(text.casefold())


def test_search_ranks_by_words_and_filters(index: EmbeddedIndex) -> None:
    late, paid = tip("late", "4"), tip("paid", "7")
    other, apps = tip("late", "9", scope="milo"), tip("late", "ping", domain="apps")
    index.upsert([late, paid, other, apps])
    found = index.search("zora count late", level="tip", limit=5, domain="sql", scope="zora")
    assert [entry.entry_id for entry, _ in found] == [late.entry_id, paid.entry_id]
    assert found[0][1] > found[1][1]
    assert {entry.entry_id for entry, _ in index.search("late", level="tip", limit=9)} == {
        one.entry_id for one in (late, paid, other, apps)
    }
    assert index.search("late", level="skill", limit=5) == []
    assert index.search("late", level="tip", limit=0) == []


def test_retired_entries_leave_search_but_stay(index: EmbeddedIndex) -> None:
    late = tip("late", "4")
    index.upsert([late])
    gone = late.model_copy(update={"status": "retired", "retired_round": 2, "retired_by": "x"})
    index.upsert([gone])
    assert index.search("late", level="tip", limit=5) == []
    assert index.entries() == [] and index.entries(live_only=False) == [gone]
    assert index.get([late.entry_id, "unknown"]) == [gone]
    index.upsert([late])
    assert [entry for entry, _ in index.search("late", level="tip", limit=5)] == [late]


def test_upserting_twice_is_upserting_once(index: EmbeddedIndex) -> None:
    entries = [tip(f"k{n}", str(n)) for n in range(20)]
    index.upsert(entries)
    first = index.search("k3", level="tip", limit=20)
    index.upsert(reversed(entries))
    assert index.search("k3", level="tip", limit=20) == first
    assert len(index.entries()) == 20


@pytest.mark.parametrize("direct_limit", [0, 512])
def test_ranking_does_not_depend_on_insertion_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, direct_limit: int
) -> None:
    monkeypatch.setattr(embedded, "DIRECT_LIMIT", direct_limit)
    entries = [tip(f"late k{n % 7}", str(n % 3), scope=f"s{n % 5}", episode=str(n)) for n in range(105)]
    one = EmbeddedIndex(tmp_path / "a.sqlite", HashEmbedder())
    two = EmbeddedIndex(tmp_path / "b.sqlite", HashEmbedder())
    one.upsert(entries)
    for entry in reversed(entries):
        two.upsert([entry])
    for scope in (None, "s3"):
        expected = one.search("late k3 s3", level="tip", limit=9, domain="sql", scope=scope)
        assert two.search("late k3 s3", level="tip", limit=9, domain="sql", scope=scope) == expected
        assert expected[0][0].scope == "s3"
        scores = [(-score, entry.entry_id) for entry, score in expected]
        assert scores == sorted(scores)


def test_matrix_follows_updates_of_other_connections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "DIRECT_LIMIT", 0)
    writer = EmbeddedIndex(tmp_path / "i.sqlite", HashEmbedder())
    writer.upsert([tip(f"k{n}", "1") for n in range(1100)])
    reader = EmbeddedIndex(tmp_path / "i.sqlite", HashEmbedder(), read_only=True)
    late = tip("late", "4")
    assert late not in [entry for entry, _ in reader.search("zora late", level="tip", limit=3)]
    writer.upsert([late])
    assert reader.search("zora late", level="tip", limit=3)[0][0] == late
    writer.upsert([late.model_copy(update={"status": "retired"})])
    assert late.entry_id not in [entry.entry_id for entry, _ in reader.search("zora late", level="tip", limit=3)]
    with pytest.raises(SetupError, match="chmod"):
        reader.upsert([late])


def test_scope_filter_uses_the_index_and_not_a_scan(index: EmbeddedIndex) -> None:
    index.upsert([tip(f"k{n}", "1", scope=f"s{n % 50}") for n in range(1500)])
    seen: list[str] = []
    index._database.connection.set_trace_callback(seen.append)
    found = index.search("k7", level="tip", limit=8, domain="sql", scope="s7")
    assert len(found) == 8 and {entry.scope for entry, _ in found} == {"s7"}
    assert index._table._n == 0  # the matrix of all entries was never loaded
    (query,) = [one for one in seen if one.startswith("SELECT entry_id, text")]
    plan = " ".join(row[3] for row in index._database.connection.execute(f"EXPLAIN QUERY PLAN {query}"))
    assert "SEARCH entries USING INDEX by_scope (live=? AND level=? AND scope=? AND domain=?)" in plan


@pytest.mark.parametrize("direct_limit", [0, 512])
@pytest.mark.parametrize("text", ODD)
def test_odd_text_is_data(index: EmbeddedIndex, monkeypatch: pytest.MonkeyPatch, text: str, direct_limit: int) -> None:
    monkeypatch.setattr(embedded, "DIRECT_LIMIT", direct_limit)
    odd, late = tip(text, text, scope=text), tip("late", "4")
    index.upsert([odd, late])
    assert index.get([odd.entry_id]) == [odd]
    assert {entry.entry_id for entry, _ in index.search(text, level="tip", limit=5)} == {odd.entry_id, late.entry_id}
    assert [entry for entry, _ in index.search("late", level="tip", limit=5, scope=text)] == [odd]
    assert len(index.entries()) == 2


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(a=TEXT, b=TEXT, scope=TEXT, steps=st.lists(TEXT, max_size=3))
def test_any_text_comes_back_as_it_was(index: EmbeddedIndex, a: str, b: str, scope: str, steps: list[str]) -> None:
    contents = (TipContent(text=a, trigger=b), SkillContent(description=a, technique=b, steps=tuple(steps)))
    for content in contents:
        entry = entry_of(Proposal(domain="sql", scope=scope, content=content), 1)
        index.upsert([entry])
        assert index.get([entry.entry_id]) == [entry]
        index.search(a, level=entry.level, limit=3, scope=scope)


def test_every_level_is_found(index: EmbeddedIndex) -> None:
    entries = [entry_of(Proposal(domain="sql", scope="zora", content=content), 1) for content in FULL_LEVELS]
    index.upsert(entries)
    for entry in entries:
        assert index.search("zora", level=entry.level, limit=3) == [(entry, 1.0)]


def test_another_embedder_is_refused(tmp_path: Path, index: EmbeddedIndex) -> None:
    index.close()
    with pytest.raises(SetupError, match=r"hash-256-v1.*opd memory reembed"):
        EmbeddedIndex(tmp_path / "index.sqlite", HashEmbedder(64))


def test_a_newer_schema_is_refused_and_left_alone(tmp_path: Path, index: EmbeddedIndex) -> None:
    index.close()
    path = tmp_path / "index.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE meta SET value = '99' WHERE key = 'schema_version'")
    before = path.read_bytes()
    for read_only in (True, False):
        with pytest.raises(SchemaError, match="schema 99"):
            EmbeddedIndex(path, HashEmbedder(), read_only=read_only)
    assert path.read_bytes() == before


@pytest.mark.parametrize("damage", ["nonsense", "truncated", "middle"])
def test_a_corrupt_file_names_reindex(tmp_path: Path, index: EmbeddedIndex, damage: str) -> None:
    index.upsert([tip(f"k{n}", "1") for n in range(300)])
    index.close()
    path = tmp_path / "index.sqlite"
    data = path.read_bytes()
    spoilt = {
        "nonsense": b"this is no database at all, not in the least" * 200,
        "truncated": data[: len(data) // 2],
        "middle": data[: len(data) // 4] + b"\xff" * (len(data) // 2) + data[3 * len(data) // 4 :],
    }
    path.write_bytes(spoilt[damage])
    with pytest.raises(CorruptionError, match="opd memory reindex"):
        EmbeddedIndex(path, HashEmbedder())


def test_a_missing_file_is_not_made_by_a_reader(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="opd resume"):
        EmbeddedIndex(tmp_path / "none.sqlite", HashEmbedder(), read_only=True)
    assert not (tmp_path / "none.sqlite").exists()


def test_a_failed_write_changes_nothing(index: EmbeddedIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    late, put = tip("late", "4"), embedded._put
    index.upsert([late])

    def put_once(connection: sqlite3.Connection, *rest: Any) -> None:
        monkeypatch.setattr(embedded, "_put", lambda *_: 1 / 0)
        put(connection, *rest)

    monkeypatch.setattr(embedded, "_put", put_once)
    with pytest.raises(ZeroDivisionError):
        index.upsert([tip("aaa", "1"), tip("bbb", "1")])
    assert index.entries() == [late]
