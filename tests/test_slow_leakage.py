"""What the leakage audit catches; example sets on disk, their control arms and their draws."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from slow_world import Played

from opd_evolver.errors import CorruptionError, SchemaError, SetupError
from opd_evolver.records import CallRecord, Example
from opd_evolver.slow import examples as sets
from opd_evolver.slow.leakage import audit, form_fault, removed_run
from opd_evolver.slow.views import Outcome, Views


def call_of(world: Played, example: Example) -> CallRecord:
    row = next(row for row in world.rows if row.rollout_id == example.rollout_id)
    turn = int(example.example_id.rpartition("/")[2])
    return next(call for call in row.calls if (call.ability, call.turn) == (example.ability, turn))


def of(views: Views, ability: str) -> list[Example]:
    return [example for example in views.examples if example.ability == ability]


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


def toy(number: int, ability: str, rollout: int) -> Example:
    return Example(
        example_id=f"e{number}",
        ability=ability,  # type: ignore[arg-type]
        rollout_id=f"r{rollout}",
        group="g",
        student_ids=(1, 2),
        teacher_ids=(1, 100 + number, 2),
        hindsight_spans=((1, 2),),
        max_new_tokens=1,
    )


def test_shuffled_hindsight_is_anyones_of_the_same_ability_and_another_rollout() -> None:
    """The draw of old: the k-th of all those, told one by one."""
    random = np.random.default_rng(0)
    for size in (1, 2, 3, 30, 60):
        examples = [toy(n, "act" if random.random() < 0.7 else "write", int(random.integers(5))) for n in range(size)]
        for example, found in zip(examples, sets.arm(examples, "shuffled", 3), strict=True):
            others = [e for e in examples if e.ability == example.ability and e.rollout_id != example.rollout_id]
            drawn = sets.generator("shuffled", 3, example.example_id)
            donor = others[int(drawn.integers(len(others)))] if others else example
            assert found.teacher_ids == donor.teacher_ids


def test_many_examples_are_shuffled_in_seconds() -> None:
    examples = [toy(n, "act", n // 40) for n in range(20_000)]
    began = time.process_time()
    sets.arm(examples, "shuffled", 0)
    assert time.process_time() - began < 30.0


def test_a_deck_draws_every_example_once_a_pass_and_by_counters() -> None:
    deck = sets.Deck(10, 0, 1, "act")
    drawn = [place for step in range(5) for place in deck.draw(step, 4)]
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10))
    assert drawn[:10] != drawn[10:]
    assert sets.Deck(10, 0, 1, "act").draw(3, 4) == drawn[12:16]
    assert sets.Deck(3, 0, 1, "act").draw(0, 64) in ([0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0])
    assert sets.Deck(0, 0, 1, "act").draw(5, 4) == []
