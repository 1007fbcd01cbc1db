"""Ten thousand random entries through render, snapshot, restore and each index: the same entries, texts and digests.

They are written embedded and restored into either store, so that the digests of both are compared as well.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from weaviate_server import serving

from opd_evolver.memory.embed import open_embedder
from opd_evolver.memory.levels import head, pieces, render
from opd_evolver.memory.replay import digest_entries
from opd_evolver.memory.segment import LedgerSegment
from opd_evolver.memory.snapshot import read_entries, restore, write_snapshot
from opd_evolver.memory.store import Memory, entry_of
from opd_evolver.params import MemoryParams
from opd_evolver.records import (
    Content,
    Entry,
    Proposal,
    SkillContent,
    TipContent,
    ToolContent,
    TrajectoryContent,
    TrajectoryStep,
)
from opd_evolver.settings import load_settings

pytestmark = pytest.mark.timeout(900)
N_EXAMPLES, N_ENTRIES = 10, 1000
# Texts are drawn, entries are built from them: hypothesis draws no thousand entries at once.
TEXTS = st.lists(st.text(max_size=40), min_size=16, max_size=24)
AS_SEEDED = settings(
    max_examples=N_EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],  # shrinking a thousand entries would take an hour; the seed says which they were
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module", params=["embedded", "weaviate"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MemoryParams]:
    if request.param == "embedded":
        yield MemoryParams()
        return
    with serving(tmp_path_factory.mktemp("weaviate")) as server, patch.dict(os.environ, server.settings):
        load_settings.cache_clear()
        yield MemoryParams(store="weaviate")
    load_settings.cache_clear()


def content(chance: random.Random, texts: list[str], number: int) -> Content:
    def some() -> str:
        return " ".join(chance.choices(texts, k=chance.randint(1, 3)))

    def several() -> tuple[str, ...]:
        return tuple(some() for _ in range(chance.randint(0, 3)))

    mine = f"{some()}{number}"  # so that no two of them are one entry
    kind = number % 4
    if kind == 0:
        return TipContent(trigger=mine, text=some())
    if kind == 1:
        return SkillContent(description=mine, technique=some(), preconditions=some(), steps=several())
    if kind == 2:
        return ToolContent(name=mine, language=some(), code=some(), input_description=some(), output_description=some())
    steps = tuple(
        TrajectoryStep(observation=some(), action=some(), result=some(), reward=chance.uniform(-1, 1))
        for _ in range(chance.randint(0, 3))
    )
    return TrajectoryContent(
        task=mine, steps=steps, outcome="partial", episode_return=chance.random(), learnings=several()
    )


def entries_of(texts: list[str], seed: int) -> dict[str, Entry]:
    chance = random.Random(seed)
    found = {}
    for number in range(N_ENTRIES):
        made = Proposal(
            domain=texts[0],
            scope=chance.choice(texts),
            content=content(chance, texts, number),
            source_episodes=tuple(chance.choices(texts, k=2)),
            parents=tuple(chance.choices(texts, k=chance.randint(0, 2))),
        )
        entry = entry_of(made, chance.randint(0, 9))
        found[entry.entry_id] = entry
    assert len(found) == N_ENTRIES
    return found


def check_render(entry: Entry) -> None:
    """Whole where it fits, and then its pieces can be read back; within the budget where it does not."""
    whole = render(entry, handle=7, token_budget=10**6)
    start = f"{head(entry)} h7 r{entry.created_round}"
    assert whole.startswith(start) and "\n" not in whole and "|" not in whole
    said = " ; ".join(pieces(entry.content))
    separator = " " if entry.level == "tip" else " : "
    assert whole.removeprefix(start) == (separator + said if pieces(entry.content) else "")
    short = render(entry, handle=7, token_budget=12)
    assert short == whole or ("…" in short and len(short.split()) <= 13)


@AS_SEEDED
@given(texts=TEXTS, seed=st.integers(0, 2**32))
def test_ten_thousand_entries_round_trip(
    store: MemoryParams, tmp_path_factory: pytest.TempPathFactory, texts: list[str], seed: int
) -> None:
    folder, entries = tmp_path_factory.mktemp("trip"), entries_of(texts, seed)
    expected = sorted(entries.values(), key=lambda one: one.entry_id)
    shown = [render(one, token_budget=40) for one in expected]
    for entry in expected:
        check_render(entry)
    with Memory.open(folder / "live") as memory:
        memory.commit(LedgerSegment(lineage="x", round=1, wave=0, entries=tuple(entries.values())))
        assert memory.entries() == expected
        digest = memory.digest()
        info = write_snapshot(memory, folder / "snapshot", 1, "x")
    assert digest == info.digest_entries == digest_entries(expected, open_embedder(store.embedder))
    assert read_entries(folder / "snapshot") == expected
    assert restore(folder / "snapshot", folder / "again", store) == info
    chance = random.Random(seed)
    with Memory.open(folder / "again", store) as memory:
        again = memory.entries()
        assert again == expected and memory.digest() == digest
        asked = chance.sample(sorted(entries), 50)
        assert memory.get(asked) == [entries[entry_id] for entry_id in asked]
        for entry in chance.sample(expected, 4):
            found = memory.retrieve(head(entry), entry.domain, entry.scope, limit=50)
            assert found and all(entries[one.entry_id] == one and one.scope == entry.scope for one, _ in found)
    assert [render(one, token_budget=40) for one in again] == shown
