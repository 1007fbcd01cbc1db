"""From a played round to examples: what student and teacher see, and what the audit catches."""

from __future__ import annotations

from pathlib import Path

import pytest
from slow_world import Played, play

from opd_evolver.errors import CorruptionError, SetupError
from opd_evolver.memory.segment import SegmentKey
from opd_evolver.params import SlowParams, merge
from opd_evolver.policy.local import LocalPolicy
from opd_evolver.records import CallRecord, Example
from opd_evolver.slow.batches import Mixture
from opd_evolver.slow.hindsight import Hindsight, act_hint, helpful, winners, won_turns
from opd_evolver.slow.leakage import audit, without
from opd_evolver.slow.views import Views, build


def text(world: Played, ids: tuple[int, ...]) -> str:
    return world.local.decode(ids)


def hint(world: Played, example: Example) -> str:
    return " ".join(text(world, example.teacher_ids[start:end]) for start, end in example.hindsight_spans).strip()


def call_of(world: Played, example: Example) -> CallRecord:
    row = next(row for row in world.rows if row.rollout_id == example.rollout_id)
    turn = int(example.example_id.rpartition("/")[2])
    return next(call for call in row.calls if (call.ability, call.turn) == (example.ability, turn))


def of(views: Views, ability: str) -> list[Example]:
    return [example for example in views.examples if example.ability == ability]


def test_an_entry_that_was_confirmed_later_is_rendered_as_it_was_served(world: Played, views: Views) -> None:
    chosen = next(row.injected[0] for row in world.rows if row.injected)
    later = [one.model_copy(update={"confirmed_round": 9}) if one.entry_id == chosen else one for one in world.entries]
    told = {chosen: [(SegmentKey(1, 99), 9)]}
    again = build(world.rows, later, world.attributions, world.local.encode, world.params, told)
    assert again.examples == views.examples
    with pytest.raises(SetupError, match="renders to other tokens"):
        build(world.rows, later, world.attributions, world.local.encode, world.params)


# ── the four views ────────────────────────────────────────────────────────────────────────────


def test_every_ability_has_examples_and_skips_are_explained(views: Views) -> None:
    assert {ability: len(of(views, ability)) > 0 for ability in ("select", "act", "write", "maintain")} == {
        "select": True,
        "act": True,
        "write": True,
        "maintain": True,
    }
    assert views.skipped["act: neither a helpful entry nor a successful trajectory"] > 0
    assert views.skipped["write: nothing written, or no evidence for it yet"] > 0


def test_students_of_select_and_write_see_the_served_prompt(world: Played, views: Views) -> None:
    for example in [*of(views, "select"), *of(views, "write"), *of(views, "maintain")]:
        assert example.student_ids == call_of(world, example).prompt_token_ids


def test_student_and_teacher_are_identical_outside_the_hindsight(views: Views) -> None:
    for example in views.examples:
        assert example.hindsight_spans
        assert without(example.teacher_ids, example.hindsight_spans) == example.student_ids


def test_the_acting_student_sees_no_memories_but_its_own_history(world: Played, views: Views) -> None:
    rows = {row.rollout_id: row for row in world.rows}
    later = [example for example in of(views, "act") if not example.example_id.endswith("/0")]
    assert later
    for example in of(views, "act"):
        assert " mem " not in text(world, example.student_ids)
    for example in later[:20]:
        row, turn = rows[example.rollout_id], int(example.example_id.rpartition("/")[2])
        served = next(call for call in row.calls if (call.ability, call.turn) == ("act", turn - 1)).reply_token_ids
        body = served[:-1]
        assert any(example.student_ids[at : at + len(body)] == body for at in range(len(example.student_ids)))


def test_act_hindsight_holds_helpful_entries_and_a_won_trajectory(world: Played, views: Views) -> None:
    known = Hindsight(
        {entry.entry_id: entry for entry in world.entries},
        world.attributions,
        world.local.encode,
        world.params,
        winners(world.rows),
    )
    both = 0
    for example in of(views, "act"):
        row = next(row for row in world.rows if row.rollout_id == example.rollout_id)
        good, won = helpful(row, known), won_turns(row, known)
        assert good or won
        assert all((world.attributions[entry.entry_id].value or 0) >= 0.01 for entry in good)
        said = hint(world, example)
        assert said.startswith("hint")
        for entry in good:
            assert f"{entry.scope} {entry.content.trigger}" in said  # type: ignore[union-attr]
        for reply, turn in won:
            assert f"{reply} got {turn.result}" in said
        both += bool(good and won)
    assert both


def test_tau_plus_is_another_rollout_of_the_same_task_where_there_is_one(world: Played) -> None:
    won = winners(world.rows)
    assert won
    for task, rows in won.items():
        assert all(row.success and row.task_id == task for row in rows)
        assert [len(row.turns) for row in rows] == sorted(len(row.turns) for row in rows)


def test_select_hindsight_marks_evidence_only_and_keeps_negatives(world: Played, views: Views) -> None:
    rows = {row.rollout_id: row for row in world.rows}
    for example in of(views, "select"):
        words = hint(world, example).split()[1:]
        for handle, mark in zip(words[::2], words[1::2], strict=True):
            entry_id = rows[example.rollout_id].candidates[int(handle[1:]) - 1].entry_id
            value = world.attributions[entry_id].value
            assert value is not None and abs(value) >= 0.01
            assert mark == ("up" if value > 0 else "down")


def test_only_sure_verdicts_are_told_where_that_is_asked(world: Played, views: Views) -> None:
    params = merge(world.params, {"attribution.sure": True}, "t")
    doubtful = {"low": -1.0, "high": 1.0}
    for bounds, n_told in (({}, len(of(views, "select"))), (doubtful, 0)):
        judged = {}
        for name, one in world.attributions.items():
            clear = {"low": 0.01, "high": 1.0} if (one.value or 0.0) > 0 else {"low": -1.0, "high": -0.01}
            judged[name] = one.model_copy(update=bounds or clear)
        made = build(world.rows, world.entries, judged, world.local.encode, params)
        assert len(of(made, "select")) == n_told


def test_write_hindsight_is_the_future_value_of_what_was_written(world: Played, views: Views) -> None:
    rows = {row.rollout_id: row for row in world.rows}
    entries = {entry.entry_id: entry for entry in world.entries}
    for example in of(views, "write"):
        said = hint(world, example)
        marked = [m for m in rows[example.rollout_id].created if abs(world.attributions[m].value or 0.0) >= 0.01]
        assert marked
        for entry_id in marked:
            content = entries[entry_id].content
            mark = "up" if (world.attributions[entry_id].value or 0.0) > 0 else "down"
            assert f"tip {content.trigger} {content.text} {mark}" in said  # type: ignore[union-attr]


def test_outcomes_belong_to_examples(world: Played, views: Views) -> None:
    known = {example.example_id: example for example in views.examples}
    assert len(views.outcomes) == len(views.examples) - len(of(views, "maintain"))
    for outcome in views.outcomes:
        assert outcome.reply_token_ids == call_of(world, known[outcome.example_id]).reply_token_ids


def test_row_order_and_family_labels_change_no_prompt(world: Played, views: Views) -> None:
    again = build(world.rows[::-1], world.entries[::-1], world.attributions, world.local.encode, world.params)
    assert again.examples == views.examples
    relabelled = [row.model_copy(update={"group": f"x{row.group}"}) for row in world.rows]
    other = build(relabelled, world.entries, world.attributions, world.local.encode, world.params)
    assert [(e.student_ids, e.teacher_ids) for e in other.examples] == [
        (e.student_ids, e.teacher_ids) for e in views.examples
    ]


def test_another_renderer_is_refused(world: Played) -> None:
    other = merge(world.params, {"memory.candidate_token_budget": 4}, "test")
    with pytest.raises(SetupError, match="renders to other tokens than were served"):
        build(world.rows, world.entries, world.attributions, world.local.encode, other)


def test_a_snapshot_of_another_round_is_refused(world: Played) -> None:
    with pytest.raises(CorruptionError, match="the snapshot does not hold"):
        build(world.rows, world.entries[1:], world.attributions, world.local.encode, world.params)


def test_text_only_rollouts_give_no_rows(world: Played) -> None:
    bare = [
        row.model_copy(update={"calls": tuple(c.model_copy(update={"prompt_token_ids": ()}) for c in row.calls)})
        for row in world.rows
    ]
    found = build(bare, world.entries, world.attributions, world.local.encode, world.params)
    assert (found.examples, found.skipped["text-only rollout"]) == ([], len(bare))


def test_over_long_prompts_keep_their_hindsight(tmp_path: Path) -> None:
    limit = 112
    tight = play(
        tmp_path,
        policy__max_prompt_tokens=limit,
        fast__tasks_per_domain=24,
        fast__maintain_every_tasks=1000,
        memory__candidates=2,
    )
    found = build(tight.rows, tight.entries, tight.attributions, tight.local.encode, tight.params)
    assert found.cut
    audit(found.examples, tight.rows, cut=found.cut)
    for example in found.examples:
        assert len(example.student_ids) <= limit
        assert hint(tight, example).startswith("hint")
        assert example.teacher_ids[-2:] == example.student_ids[-2:]


def test_hindsight_over_the_limit_loses_the_middle_of_the_trajectory(world: Played) -> None:
    def known(limit: int) -> Hindsight:
        local = LocalPolicy(world.local.model, world.local.tokenizer, "short", max_prompt_tokens=limit)
        entries = {entry.entry_id: entry for entry in world.entries}
        return Hindsight(entries, world.attributions, local.encode, world.params, winners(world.rows))

    row = max((row for row in world.rows if row.success), key=lambda row: len(row.turns))
    won = won_turns(row, known(768)) * 2
    whole, short = act_hint([], won, known(768)), act_hint([], won, known(100))
    assert not isinstance(whole, str) and not isinstance(short, str)
    assert short.text.count(" got ") < whole.text.count(" got ")
    assert short.text.split(" got ")[0] == whole.text.split(" got ")[0]
    assert act_hint(world.entries[:2], won, known(12)) == "act: hindsight over policy.max_prompt_tokens"
    assert "neither" in str(act_hint([], (), known(768)))


# ── acting with memory ────────────────────────────────────────────────────────────────────────


def test_some_act_examples_keep_what_was_served(world: Played, views: Views) -> None:
    params = merge(world.params, {"slow.act_with_memory": 0.5}, "test")
    both = build(world.rows, world.entries, world.attributions, world.local.encode, params)
    kept = [example for example in both.examples if example.with_memory]
    assert [example for example in both.examples if not example.with_memory] == views.examples
    remembered = {row.rollout_id for row in world.rows if row.injected}
    plain = [example for example in of(views, "act") if example.rollout_id in remembered]
    assert [one.example_id.removesuffix("/memory") for one in kept] == [one.example_id for one in plain] != []
    assert len({one.example_id for one in both.examples}) == len(both.examples)
    for one, without_it in zip(kept, plain, strict=True):
        assert one.student_ids == call_of(world, without_it).prompt_token_ids != without_it.student_ids
        assert hint(world, one) == hint(world, without_it)
    assert {one.example_id for one in both.outcomes} >= {one.example_id for one in kept}
    report = audit(both.examples, world.rows, cut=both.cut)
    assert report.n_examples["act"] == len(of(views, "act")) + len(kept)


def test_an_example_that_claims_its_memories_must_be_what_was_served(world: Played, views: Views) -> None:
    example = next(one for one in of(views, "act") if call_of(world, one).prompt_token_ids != one.student_ids)
    claims = example.model_copy(update={"example_id": f"{example.example_id}/memory", "with_memory": True})
    with pytest.raises(SetupError, match="the student's prompt is not the served one"):
        audit([claims], world.rows)


def test_a_step_takes_its_share_of_each_pile(views: Views) -> None:
    act = of(views, "act")[:6]
    kept = [one.model_copy(update={"example_id": f"{one.example_id}/memory", "with_memory": True}) for one in act]
    mixture = {"act": 4, "select": 1, "write": 0, "maintain": 0, "anchor": 0}
    slow = SlowParams(mixture=mixture, act_with_memory=0.5)
    drawn = Mixture([*act, *kept, *of(views, "select")], [], slow, 0, 1)
    for step in range(4):
        found = drawn.examples_at(step)
        assert [one.with_memory for one in found if one.ability == "act"].count(True) == 2
        assert sum(one.ability == "act" for one in found) == 4
    assert drawn.counts() == {"select": 1, "act": 2, "write": 0, "maintain": 0, "act with memory": 2, "anchor": 0}
    # A round in which nothing was injected has none: the places go to the others.
    assert Mixture(act, [], slow, 0, 1).counts()["act"] == 4
