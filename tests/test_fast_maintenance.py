"""Maintenance at a barrier: lookup, merge, delete, finish; undoable, and proof against nonsense."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rollout_world import Recorder, Shelf, small, tip

from opd_evolver.errors import SetupError
from opd_evolver.fast.barrier import maintain_barrier
from opd_evolver.fast.committer import maintenance_due
from opd_evolver.fast.maintenance import Maintenance, MaintenanceSettings, maintenance
from opd_evolver.fast.redundancy import first_shown
from opd_evolver.fast.wave import Wave
from opd_evolver.memory.attribution import evidence
from opd_evolver.memory.rivals import usefulness
from opd_evolver.memory.segment import LedgerSegment
from opd_evolver.memory.store import Memory, entry_of
from opd_evolver.policy.scripted import ScriptedPolicy
from opd_evolver.records import MAINTAIN, Entry, GenerationRequest, Prompt, Proposal, TipContent
from opd_evolver.rollout.driver import drive

WAVE = Wave(round=2, index=1, n_tasks=40, microbatches=(), maintain_after=True)
SETTINGS = MaintenanceSettings.of(small(fast__maintain_max_steps=6))


def says(*replies: str) -> ScriptedPolicy:
    rest: Iterator[str] = iter(replies)
    return ScriptedPolicy(lambda prompt, request: next(rest, "finish"))


def fact(key: str, value: str, scope: str = "zora", domain: str = "sql") -> Entry:
    content = TipContent(trigger=key, text=value)
    return entry_of(Proposal(domain=domain, scope=scope, content=content, source_episodes=(f"e/{key}{value}",)), 1)


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Memory]:
    entries = (fact("late", "4"), fact("late", "7"), fact("paid", "1"), fact("refund", "otp", "kilu", "apps"))
    with Memory.open(tmp_path / "live") as opened:
        opened.commit(LedgerSegment(lineage="x", round=2, wave=1, entries=entries))
        yield opened


def shown_by(memory: Memory, policy: ScriptedPolicy) -> tuple[Maintenance, list[Entry]]:
    shown = first_shown(memory.entries(), SETTINGS.shown)
    [done] = maintain_barrier(memory, WAVE, policy, SETTINGS)
    return done, shown


def status(memory: Memory, entry: Entry) -> str:
    return memory.get([entry.entry_id])[0].status


def test_delete_retires_with_lineage(memory: Memory) -> None:
    done, shown = shown_by(memory, says("delete h1 h3"))
    assert [status(memory, entry) for entry in shown] == ["retired", "live", "retired", "live"]
    gone = memory.get([shown[0].entry_id])[0]
    assert (gone.retired_round, gone.retired_by) == (2, done.operations[0].operation_id)
    assert [len(segment.operations) for segment in memory.ledger.read_all()] == [0, 1]


def test_merge_makes_one_entry_with_its_parents_and_sources(memory: Memory) -> None:
    done, shown = shown_by(memory, says("merge h1 h2 : tip late 9", "finish"))
    [made] = done.created
    now = memory.get([made.entry_id])[0]
    assert (now.status, now.domain, now.scope) == ("live", shown[0].domain, shown[0].scope)
    assert set(now.parents) == {shown[0].entry_id, shown[1].entry_id}
    assert set(now.source_episodes) == {*shown[0].source_episodes, *shown[1].source_episodes}
    assert [status(memory, entry) for entry in shown[:2]] == ["retired", "retired"]
    assert done.row is not None and done.row.created == (made.entry_id,)


def test_merging_into_one_of_them_keeps_that_one(memory: Memory) -> None:
    shown = first_shown(memory.entries(), SETTINGS.shown)
    assert isinstance(shown[0].content, TipContent)
    kept = shown[0].content
    shown_by(memory, says(f"merge h1 h2 : tip {kept.trigger} {kept.text}"))
    now = memory.get([shown[0].entry_id])[0]
    assert (now.status, now.parents) == ("live", (shown[1].entry_id,))
    assert status(memory, shown[1]) == "retired"


def test_what_was_retired_cannot_be_used_again(memory: Memory) -> None:
    done, _ = shown_by(memory, says("delete h1", "delete h1", "merge h1 h2 : tip late 9", "delete h2"))
    assert done.row is not None
    assert [turn.result for turn in done.row.turns] == ["ok", "error", "error", "ok", "ok"]
    assert len(done.operations) == 2


def test_entries_of_two_scopes_do_not_merge(memory: Memory) -> None:
    shown = first_shown(memory.entries(), SETTINGS.shown)
    other = 1 + next(place for place, entry in enumerate(shown) if entry.scope == "kilu")
    same = 1 + next(place for place, entry in enumerate(shown) if entry.scope == "zora")
    before = memory.digest()
    done, _ = shown_by(memory, says(f"merge h{same} h{other} : tip late 9"))
    assert done.operations == () and memory.digest() == before


def test_nothing_is_merged_into_a_level_that_is_off(memory: Memory) -> None:
    tips = SETTINGS.model_copy(update={"levels": ("tip",)})
    before = memory.digest()
    policy = says("merge h1 h2 : tool late : select 4 ; select 7", "finish")
    [done] = maintain_barrier(memory, WAVE, policy, tips)
    assert done.row is not None and [turn.result for turn in done.row.turns] == ["error", "ok"]
    assert done.operations == () and memory.digest() == before and len(memory.entries()) == 4


def test_levels_come_from_the_parameters_and_stand_in_keys_only_where_some_are_off() -> None:
    assert "levels" not in SETTINGS.model_dump(mode="json")
    off = MaintenanceSettings.of(small(memory__levels=["tip", "tool"]))
    assert off.model_dump(mode="json")["levels"] == ["tip", "tool"]
    assert MaintenanceSettings.model_validate(off.model_dump()) == off


def test_lookup_gives_new_handles_that_work(tmp_path: Path) -> None:
    narrow = SETTINGS.model_copy(update={"shown": 1})
    entries = (fact("late", "4"), fact("paid", "1"))
    with Memory.open(tmp_path) as memory:
        memory.commit(LedgerSegment(lineage="x", round=2, wave=1, entries=entries))
        policy = Recorder(
            lambda p, r: ["lookup zora paid late", "delete h2", "lookup zora"][min(len(p.messages) // 2, 2)]
        )
        [done] = maintain_barrier(memory, WAVE, policy, narrow)
        assert done.row is not None
        assert done.row.turns[0].result.startswith("found zora ") and " h2 " in done.row.turns[0].result
        assert done.row.turns[2].result == "found none"
        assert len(done.row.turns) == narrow.max_steps and len(memory.entries()) == 1


def test_finish_ends_and_the_budget_truncates(memory: Memory) -> None:
    done, _ = shown_by(memory, says("finish"))
    assert done.row is not None and len(done.row.turns) == 1 and done.operations == ()


NONSENSE = [
    "",
    "delete",
    "delete h9",
    "delete h1 please",
    "merge h1 h2",
    "merge h1 : tip a 1",
    "h1",
    "tip late 4",
    "delete h1 h99",
]


def test_nonsense_costs_steps_and_changes_nothing(memory: Memory) -> None:
    before = memory.digest(), [entry.model_dump() for entry in memory.entries()]
    done, _ = shown_by(memory, says(*NONSENSE))
    assert (memory.digest(), [entry.model_dump() for entry in memory.entries()]) == before
    assert done.row is not None and len(done.row.turns) == SETTINGS.max_steps
    assert not any(turn.parsed for turn in done.row.turns)
    assert not maintenance_due(memory, WAVE)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.text(max_size=40), max_size=6))
def test_no_text_breaks_it(replies: list[str]) -> None:
    shelf = Shelf([tip("late", "4"), tip("late", "7"), tip("paid", "1")])
    [done] = drive(says(*replies), [lambda: maintenance(WAVE, shelf, SETTINGS)], 1)
    assert done.row is not None and 1 <= len(done.row.turns) <= SETTINGS.max_steps


def test_it_is_done_once(memory: Memory) -> None:
    shown_by(memory, says("delete h1"))
    assert maintain_barrier(memory, WAVE, says("delete h1"), SETTINGS) == []
    assert len(memory.entries()) == 3


class Killed(Exception):
    """The process is gone."""


def test_episodes_of_a_barrier_begin_with_other_entries_and_a_restart_goes_on(tmp_path: Path) -> None:
    """Three topics of two entries that say the same, and one that is in no doubt and never shown. Killed in the second
    episode, it is played again, and the first is not."""
    several = SETTINGS.model_copy(update={"shown": 2, "episodes": 4})
    twice = [fact(key, value) for key in ("late", "paid", "held") for value in ("4", "4 ")]
    entries = (*twice, fact("open", "4"))
    ends: dict[str, tuple[str, str]] = {}
    for name, killed in (("whole", False), ("killed", True)):
        with Memory.open(tmp_path / name) as memory:
            memory.commit(LedgerSegment(lineage="x", round=2, wave=1, entries=entries))
            calls = 0

            def respond(prompt: Prompt, request: GenerationRequest, killed: bool = killed) -> str:
                nonlocal calls
                calls += 1
                if killed and calls == 4:
                    raise Killed
                return "delete h1" if len(prompt.messages) == 1 else "finish"

            if killed:
                with pytest.raises(Killed):
                    maintain_barrier(memory, WAVE, ScriptedPolicy(respond), several)
                assert maintenance_due(memory, WAVE, 4) == [1, 2, 3]
            done = maintain_barrier(memory, WAVE, ScriptedPolicy(respond), several)
            rows = list(memory.ledger.rows())
            begun = [candidate.entry_id for row in rows for candidate in row.candidates]
            assert set(begun) == {entry.entry_id for entry in twice} and len(begun) == 6
            assert len(done) == (3 if killed else 4) and done[-1].row is None and len(memory.entries()) == 4
            ends[name] = memory.digest(), memory.ledger.digest()
    assert ends["whole"] == ends["killed"]


def test_it_is_not_done_when_not_due_and_needs_a_policy(memory: Memory) -> None:
    idle = Wave(round=2, index=1, n_tasks=40, microbatches=())
    assert maintain_barrier(memory, idle, None, SETTINGS) == []
    with pytest.raises(SetupError, match="maintenance is due"):
        maintain_barrier(memory, WAVE, None, SETTINGS)


def test_an_empty_memory_is_maintained_without_a_call(tmp_path: Path) -> None:
    def refuse(prompt: Prompt, request: GenerationRequest) -> str:
        raise AssertionError

    with Memory.open(tmp_path) as memory:
        [done] = maintain_barrier(memory, WAVE, ScriptedPolicy(refuse), SETTINGS)
        assert done == Maintenance() and not maintenance_due(memory, WAVE)


def test_its_row_is_logged_but_is_no_evidence(memory: Memory) -> None:
    done, shown = shown_by(memory, says("lookup zora", "finish"))
    [row] = memory.ledger.rows()
    assert row == done.row and row.group == MAINTAIN and row.selected == row.injected == ()
    assert [candidate.entry_id for candidate in row.candidates] == [entry.entry_id for entry in shown]
    assert [call.ability for call in row.calls] == ["maintain", "maintain"]
    assert not evidence([row], memory.entries(live_only=False)).chosen.any()
    assert [entry.usage_count for entry in memory.entries()] == [0] * 4


def test_the_same_seed_decides_the_same(tmp_path: Path) -> None:
    def by_seed(prompt: Prompt, request: GenerationRequest) -> str:
        return f"delete h{1 + request.seed % 3}"

    digests = set()
    for name in ("a", "b"):
        with Memory.open(tmp_path / name) as memory:
            entries = tuple(fact("late", str(value)) for value in range(6))
            memory.commit(LedgerSegment(lineage="x", round=2, wave=1, entries=entries))
            maintain_barrier(memory, WAVE, ScriptedPolicy(by_seed), SETTINGS)
            digests.add((memory.digest(), memory.ledger.digest()))
    assert len(digests) == 1


def order(entries: Sequence[Entry]) -> list[str]:
    return [
        f"{entry.content.trigger}{entry.content.text}" for entry in entries if isinstance(entry.content, TipContent)
    ]


def test_redundant_and_useless_entries_are_shown_first() -> None:
    entries = [
        tip("paid", "1", usage_count=9, success_count=9),
        tip("held", "2", scope="kilu", usage_count=9, success_count=0),
        tip("late", "4", round=2),
        tip("late", "7", round=1),
        tip("open", "3", scope="vane", usage_count=9, success_count=9),
    ]
    assert order(first_shown(entries, 8))[:2] == ["late7", "late4"]
    assert order(first_shown(entries, 8)) == order(first_shown(entries[::-1], 8))
    doubted = [*entries, tip("lost", "1", scope="vane"), tip("lost", "1", scope="vane", round=3)]
    assert order(first_shown(doubted, 2)) == ["lost1", "lost1"]  # one repeats the other
    seen = {entry.entry_id for entry in first_shown(entries, 2)}
    assert not seen & {entry.entry_id for entry in first_shown(entries, 8, seen)}
    alone = order(first_shown([entries[1], entries[4]], 8))
    assert alone == ["held2", "open3"] and usefulness(entries[1]) < usefulness(entries[4])
    assert len(first_shown(entries, 2)) == 2 and first_shown([], 3) == []
