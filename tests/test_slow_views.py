"""From a played round to examples: what student and teacher see, and what the audit catches."""

from __future__ import annotations

from pathlib import Path

import pytest
from slow_world import Played, play, played

from opd_evolver.errors import CorruptionError, SchemaError, SetupError
from opd_evolver.params import merge
from opd_evolver.policy.local import LocalPolicy
from opd_evolver.records import CallRecord, Example
from opd_evolver.slow import examples as sets
from opd_evolver.slow.hindsight import Hindsight, helpful, redundant, winners, won_turns
from opd_evolver.slow.leakage import audit, form_fault, removed_run, without
from opd_evolver.slow.views import Outcome, Views, act_hint, build


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Played:
    return played(tmp_path_factory.getbasetemp() / "slow-world")


@pytest.fixture(scope="module")
def views(world: Played) -> Views:
    return build(world.rows, world.entries, world.attributions, world.local.encode, world.params)


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
    other = merge(world.params, {"memory.entry_token_budget": 4}, "test")
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


def test_redundant_entries_are_those_that_repeat(world: Played) -> None:
    first = world.entries[0]
    twin = first.model_copy(update={"entry_id": "twin"})
    assert redundant([first, world.entries[1], twin]) == {"twin"}


# ── the audit ─────────────────────────────────────────────────────────────────────────────────


def test_the_audit_passes_and_counts(world: Played, views: Views) -> None:
    report = audit(views.examples, world.rows, cut=views.cut)
    assert sum(report.n_examples.values()) == len(views.examples)
    assert all(report.n_hindsight_tokens[ability] > 0 for ability in report.n_examples)


def planted(example: Example, at: int, ids: tuple[int, ...]) -> Example:
    """The same tokens put into both prompts: the forms agree, the student is not blind."""
    start = example.hindsight_spans[0][0]
    assert at < start
    shifted = tuple((a + len(ids), b + len(ids)) for a, b in example.hindsight_spans)
    return example.model_copy(
        update={
            "student_ids": (*example.student_ids[:at], *ids, *example.student_ids[at:]),
            "teacher_ids": (*example.teacher_ids[:at], *ids, *example.teacher_ids[at:]),
            "hindsight_spans": shifted,
        }
    )


@pytest.mark.parametrize("ability", ["select", "act", "write", "maintain"])
@pytest.mark.parametrize("leak", ["hint h1 up", "0.42", "gold", "got ok 12"])
def test_the_audit_catches_a_planted_leak(world: Played, views: Views, ability: str, leak: str) -> None:
    example = of(views, ability)[-1]
    with pytest.raises(SetupError, match="1 of 1 examples leak"):
        audit([planted(example, 2, world.local.encoder.tokenize(leak))], world.rows)


def test_the_audit_catches_the_memories_themselves(world: Played, views: Views) -> None:
    example = next(e for e in of(views, "act") if call_of(world, e).prompt_token_ids != e.student_ids)
    served = call_of(world, example).prompt_token_ids
    start = example.hindsight_spans[0][0]
    span = example.teacher_ids[start : example.hindsight_spans[0][1]]
    sees = example.model_copy(
        update={
            "student_ids": served,
            "teacher_ids": (*served[:1], *span, *served[1:]),
            "hindsight_spans": ((1, 1 + len(span)),),
        }
    )
    with pytest.raises(SetupError, match="less its memories"):
        audit([sees], world.rows)


def test_the_audit_catches_missing_and_misplaced_hindsight(world: Played, views: Views) -> None:
    example = views.examples[0]
    blind = example.model_copy(update={"teacher_ids": example.student_ids, "hindsight_spans": ()})
    assert form_fault(blind) == "no hindsight in the teacher's prompt"
    assert form_fault(blind, needs_hindsight=False) is None
    beyond = example.model_copy(update={"hindsight_spans": ((0, len(example.teacher_ids) + 1),)})
    assert "does not lie in" in (form_fault(beyond) or "")
    with pytest.raises(SetupError, match="no such call"):
        audit([example.model_copy(update={"example_id": "r/act/99"})], world.rows)
    with pytest.raises(SetupError, match="forbidden text"):
        audit([example], world.rows, forbidden=[example.student_ids[3:6]])


def test_removed_run() -> None:
    assert removed_run((1, 2, 3, 4), (1, 4))
    assert removed_run((1, 2, 3), (1, 2, 3))
    assert removed_run((1, 1, 1), (1, 1))
    assert not removed_run((1, 2, 3, 4), (1, 3))
    assert not removed_run((1, 2), (1, 2, 3))


# ── sets on disk, control arms, draws ─────────────────────────────────────────────────────────


def test_sets_are_written_and_read_back(tmp_path: Path, views: Views) -> None:
    digest = sets.write_set(tmp_path, views.examples, views.outcomes)
    assert sets.read_lines(tmp_path / sets.EXAMPLES, Example, digest) == views.examples
    assert sets.read_lines(tmp_path / sets.OUTCOMES, Outcome) == views.outcomes
    path = tmp_path / sets.EXAMPLES
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CorruptionError, match="not what was written"):
        sets.read_lines(path, Example)
    with pytest.raises(CorruptionError, match="cannot read"):
        sets.read_lines(tmp_path / "none.jsonl", Example)
    sets.write_lines(path, [views.examples[0].model_copy(update={"schema_version": 99})])
    with pytest.raises(SchemaError, match="schema 99"):
        sets.read_lines(path, Example)


def test_control_arms(views: Views) -> None:
    assert sets.arm(views.examples, "full", 0) == views.examples
    for example in sets.arm(views.examples, "empty", 0):
        assert (example.teacher_ids, example.hindsight_spans) == (example.student_ids, ())
    shuffled = sets.arm(views.examples, "shuffled", 0)
    assert shuffled == sets.arm(views.examples, "shuffled", 0) != views.examples
    hints = {e.teacher_ids[a:b] for e in views.examples for a, b in e.hindsight_spans}
    for example in shuffled:
        assert form_fault(example) is None
        assert {example.teacher_ids[a:b] for a, b in example.hindsight_spans} <= hints


def test_a_deck_draws_every_example_once_a_pass_and_by_counters() -> None:
    deck = sets.Deck(10, 0, 1, "act")
    drawn = [place for step in range(5) for place in deck.draw(step, 4)]
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10))
    assert drawn[:10] != drawn[10:]
    assert sets.Deck(10, 0, 1, "act").draw(3, 4) == drawn[12:16]
    assert sets.Deck(3, 0, 1, "act").draw(0, 64) in ([0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0])
    assert sets.Deck(0, 0, 1, "act").draw(5, 4) == []
