"""A fact that holds again after it was contradicted is the newest one; what nothing contradicts keeps its bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
from memory_cases import row, tip
from rollout_world import rollout

from opd_evolver.fast.committer import commit_wave
from opd_evolver.fast.microbatch import MicrobatchResult
from opd_evolver.fast.wave import Wave
from opd_evolver.memory import confirm, edits
from opd_evolver.memory.levels import render
from opd_evolver.memory.rivals import by_topic
from opd_evolver.memory.segment import SegmentKey, merge
from opd_evolver.memory.snapshot import restore, write_snapshot
from opd_evolver.memory.store import Memory
from opd_evolver.records import Entry, Episode, Proposal, TipContent, canonical_json

FOUR, SEVEN = tip("late", "4"), tip("late", "7")


def learn(memory: Memory, round_: int, *values: str, wave: int = 0, key: str = "late") -> None:
    """A wave of one rollout that writes these values of one fact."""
    played = rollout(1, round=round_, wave=wave, scope="zora", domain="sql")
    proposals = tuple(
        Proposal(
            domain="sql", scope="zora", content=TipContent(text=value, trigger=key), source_episodes=(f"r{round_}",)
        )
        for value in values
    )
    episode = Episode(row=row(played.rollout_id, wave=wave, round=round_), proposals=proposals)
    commit_wave(memory, Wave(round_, wave, 1, ((played,),)), [MicrobatchResult(0, (episode,))])


def held(memory: Memory, entry: Entry) -> Entry:
    return memory.get([entry.entry_id])[0]


def shown(memory: Memory, entry: Entry) -> str:
    return render(held(memory, entry), token_budget=32)


@pytest.fixture
def memory(tmp_path: Path) -> Memory:
    return Memory.open(tmp_path / "live")


def test_a_world_that_changes_back_makes_the_old_entry_the_newest(memory: Memory) -> None:
    learn(memory, 1, "4")
    learn(memory, 3, "7")
    learn(memory, 5, "4")
    assert (shown(memory, FOUR), shown(memory, SEVEN)) == ("zora late r5 4", "zora late r3 7")
    assert held(memory, FOUR).created_round == 1, "when it was first known is kept"
    [rivals] = by_topic(memory.entries()).values()
    assert [one.entry_id for one in rivals] == [SEVEN.entry_id, FOUR.entry_id], "older ones first"
    learn(memory, 6, "7")
    assert (shown(memory, FOUR), shown(memory, SEVEN)) == ("zora late r5 4", "zora late r6 7")


def test_what_nothing_contradicts_keeps_its_round_and_its_bytes(memory: Memory) -> None:
    learn(memory, 1, "4")
    learn(memory, 2, "9", key="paid")
    before = canonical_json(held(memory, FOUR))
    learn(memory, 3, "4")
    again = held(memory, FOUR)
    assert shown(memory, FOUR) == "zora late r1 4" and "confirmed_round" not in canonical_json(again)
    assert canonical_json(again.model_copy(update={"source_episodes": ("r1",)})) == before


def test_an_older_rival_does_not_count_and_a_retired_one_neither(memory: Memory) -> None:
    learn(memory, 1, "4")
    learn(memory, 2, "7")
    learn(memory, 3, "7")
    assert held(memory, SEVEN).confirmed_round is None
    memory.retire([SEVEN.entry_id], "test", 3)
    learn(memory, 4, "4")
    assert held(memory, FOUR).confirmed_round is None


def test_both_at_once_is_settled_by_the_next_one(memory: Memory) -> None:
    learn(memory, 1, "4", "7")
    learn(memory, 2, "7")
    assert (shown(memory, FOUR), shown(memory, SEVEN)) == ("zora late r1 4", "zora late r2 7")


def test_the_same_wave_again_is_a_no_op(memory: Memory) -> None:
    learn(memory, 1, "4")
    learn(memory, 2, "7")
    for _ in range(2):
        learn(memory, 3, "4")
    assert len(memory.ledger.segment_keys()) == 3 and held(memory, FOUR).confirmed_round == 3


def test_replay_snapshot_and_restore_tell_the_same(tmp_path: Path, memory: Memory) -> None:
    for round_, value in ((1, "4"), (2, "7"), (3, "4")):
        learn(memory, round_, value)
    info = write_snapshot(memory, tmp_path / "memory", 3, "run")
    memory.index.clear()
    memory.close()
    with Memory.open(tmp_path / "live") as again:
        assert again.digest() == info.digest_entries
    assert restore(tmp_path / "memory", tmp_path / "back") == info


def test_an_import_settles_a_contradiction_once(memory: Memory) -> None:
    learn(memory, 1, "4")
    learn(memory, 2, "7")
    proposal = Proposal(domain="sql", scope="zora", content=FOUR.content)
    for _ in range(2):
        edits.apply(memory, [edits.Edit(kind="import", proposals=(proposal,))], 3, "run")
    assert held(memory, FOUR).confirmed_round == 3 and len(memory.ledger.segment_keys()) == 3


def test_prompts_tell_of_an_entry_as_it_stood_at_their_wave(memory: Memory) -> None:
    for round_, wave, value in ((1, 0, "4"), (2, 0, "7"), (3, 0, "4"), (3, 1, "4"), (4, 0, "7")):
        learn(memory, round_, value, wave=wave)
    told = confirm.history(memory.ledger.read_all())
    waves = {(2, 0): None, (3, 0): None, (3, 1): 3, (4, 0): 3, (9, 0): 3}
    now = held(memory, FOUR)
    assert {key: confirm.as_read(now, told, SegmentKey(*key)).confirmed_round for key in waves} == waves
    assert confirm.as_read(tip("other", "1"), told, SegmentKey(9, 0)) == tip("other", "1")


def test_merging_keeps_the_newest_confirmation_whatever_the_order() -> None:
    old, new = (FOUR.model_copy(update={"confirmed_round": round_}) for round_ in (3, 5))
    assert merge(old, new).confirmed_round == merge(new, old).confirmed_round == 5
    assert merge(FOUR, old).confirmed_round == merge(old, FOUR).confirmed_round == 3
