"""Words scored in numpy: to the last bit what FTS5's bm25() says, whatever was changed, retired or read anew."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from memory_cases import tip

from opd_evolver.memory import embedded, postings
from opd_evolver.memory.embed import HashEmbedder, words_of
from opd_evolver.memory.embedded import EmbeddedIndex
from opd_evolver.records import Entry

WORD = st.sampled_from(["late", "paid", "ltip", "a_b", "Éa", "ea", "漢字", "ﬀ", "zora", "x1", "§", "late paid"])
TEXT = st.lists(WORD, max_size=6).map(" ".join)
STEP = st.lists(st.tuples(st.integers(0, 9), TEXT, st.booleans()), min_size=1, max_size=8)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EmbeddedIndex:
    monkeypatch.setattr(embedded, "DIRECT_LIMIT", 0)
    return EmbeddedIndex(tmp_path / "index.sqlite", HashEmbedder(16))


def compare(index: EmbeddedIndex, query: str, scope: str | None, limit: int) -> None:
    words, filters = words_of(query), ("tip", "sql", scope)
    with index._database.reading() as connection:
        index._table.refresh(connection)
        places = index._table.places(*filters)
        found = index._lexical(connection, words, filters, places, limit)
        expected = np.zeros(len(places))
        for rowid, score in embedded._matches(connection, words, filters, limit):
            expected[np.searchsorted(places, index._table.place_of(rowid))] = score
    assert found.tobytes() == expected.tobytes(), (query, found, expected)


def changed(number: int, text: str, live: bool) -> Entry:
    entry = tip(f"k{number}", "4", scope=f"s{number % 2}")
    content = entry.content.model_copy(update={"text": text})
    return entry.model_copy(update={"content": content, "status": "live" if live else "retired"})


@pytest.mark.parametrize("most", [-1, 3, 1024], ids=["read anew", "now and then", "followed"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEP, min_size=1, max_size=4), query=TEXT, limit=st.integers(1, 12))
def test_scores_are_those_of_fts5(
    index: EmbeddedIndex,
    monkeypatch: pytest.MonkeyPatch,
    most: int,
    steps: list[list[tuple[int, str, bool]]],
    query: str,
    limit: int,
) -> None:
    monkeypatch.setattr(postings, "MOST_FOLLOWED", most)
    index.clear()
    for step in steps:
        index.upsert({one[0]: changed(*one) for one in step}.values())
        for scope in (None, "s1"):
            compare(index, query, scope, limit)


def test_many_matches_are_cut_at_the_same_row(index: EmbeddedIndex) -> None:
    index.upsert([tip("late" if n % 3 else "late paid", str(n), episode=str(n)) for n in range(1500)])
    for limit in (1, 7, 200, 2000):
        compare(index, "zora late paid", None, limit)
    index.upsert([changed(n, "late late", n % 2 == 0) for n in range(40)])
    compare(index, "late paid", None, 200)


def test_a_reader_may_not_write_and_scores_alike(tmp_path: Path, index: EmbeddedIndex) -> None:
    index.upsert([changed(n, "Éa late", True) for n in range(5)])
    reader = EmbeddedIndex(tmp_path / "index.sqlite", HashEmbedder(16), read_only=True)
    for query in ("éa", "late", "a_b"):
        compare(reader, query, None, 3)
        assert reader.search(query, level="tip", limit=9) == index.search(query, level="tip", limit=9)
