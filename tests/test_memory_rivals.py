"""Notes on redundancy, contradiction and staleness, by hand."""

from __future__ import annotations

import pytest
from rollout_world import tip

from opd_evolver.memory.rivals import claim, duplicates, notes, supersedes, topic
from opd_evolver.records import Entry, SkillContent, TrajectoryContent, TrajectoryStep


def log(entry_id: str, *actions: str, opening: str = "", outcome: str = "success", round: int = 1) -> Entry:
    steps = tuple(
        TrajectoryStep(observation=opening if not place else "", action=action, result=f"ok {place}", reward=0.5)
        for place, action in enumerate(actions)
    )
    content = TrajectoryContent(task="zora tour t4", steps=steps, outcome=outcome, episode_return=1.0)  # type: ignore[arg-type]
    return Entry(entry_id=entry_id, domain="sql", scope="zora", content=content, created_round=round)


def told(*entries: Entry) -> list[tuple[str, ...]]:
    found = notes(entries)
    return [found.get(entry.entry_id, ()) for entry in entries]


def test_entries_about_different_things_have_no_notes() -> None:
    one = tip("late", "4")
    assert told(one, tip("paid", "4"), tip("late", "4", scope="kilu"), log("a", "x")) == [(), (), (), ()]
    assert told() == []


def test_contradiction_is_seen_from_both_sides_and_needs_no_use() -> None:
    assert told(tip("late", "4", round=1), tip("late", "7", round=2)) == [("clash",), ("clash",)]


def test_logs_of_the_same_actions_are_duplicates_however_the_world_worded_it() -> None:
    first, again = log("a", "x", "y"), log("b", "x", "y", opening="no 3", round=2)
    other = log("c", "y", "x", round=3)
    assert told(first, again) == [(), ("dup",)]
    assert duplicates([again, first]) == {"b"}
    assert told(first, again, other) == [("clash",), ("dup", "clash"), ("clash",)]
    assert claim(log("a", "x")) != claim(log("a", "x", outcome="partial"))


def test_an_order_is_a_claim() -> None:
    one, other = (
        Entry(
            entry_id=name,
            domain="sql",
            scope="zora",
            content=SkillContent(description="audit", steps=steps),
            created_round=1,
        )
        for name, steps in (("a", ("fee", "net")), ("b", ("net", "fee")))
    )
    assert topic(one) == topic(other) and told(one, other) == [("clash",), ("clash",)]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        # used 3 won 3: .80; used 2 won 2: .75; used 6 won 6: .875; unused: .50
        ((3, 3), (6, 6), True),
        ((3, 3), (2, 2), False),
        ((0, 0), (2, 1), True),
        ((0, 0), (1, 1), False),
    ],
)
def test_what_is_newer_used_and_as_useful_supersedes(
    old: tuple[int, int], new: tuple[int, int], expected: bool
) -> None:
    before = tip("late", "4", round=1, usage_count=old[0], success_count=old[1])
    after = tip("late", "7", round=2, usage_count=new[0], success_count=new[1])
    assert supersedes(after, before) is expected
    assert not supersedes(before, after)
    assert ("stale" in told(before, after)[0]) is expected


def test_what_loses_against_a_rival_is_poor_whichever_is_newer() -> None:
    good = tip("late", "4", round=1, usage_count=20, success_count=15)  # 16 / 22 = .727
    bad = tip("late", "7", round=2, usage_count=3, success_count=0)  # 1 / 5 = .2
    assert told(good, bad) == [("clash",), ("clash", "poor")]
    near = tip("late", "7", round=2, usage_count=3, success_count=2)  # 3 / 5 = .6
    assert told(good, near) == [("clash",), ("clash",)]
    unused = tip("late", "7", round=2)
    assert told(good, unused) == [("clash",), ("clash",)]
