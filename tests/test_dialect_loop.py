"""A whole epoch in the instruct dialect: played, maintained, rendered again for student and teacher, audited."""

from __future__ import annotations

import pytest
from instruct_world import agent
from rollout_world import small, tip
from slow_world import Played, play

from opd_evolver.abilities import dialects
from opd_evolver.benchmark.columns import deciding
from opd_evolver.errors import SetupError
from opd_evolver.params import merge
from opd_evolver.records import MAINTAIN, canonical_json
from opd_evolver.rollout.settings import EpisodeSettings
from opd_evolver.slow.leakage import audit
from opd_evolver.slow.views import build

INSTRUCT = {"policy.dialect": "instruct"}
# A whole epoch of long prompts in the tokens of single bytes: half a minute, minutes where others work beside it.
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Played:
    return play(
        tmp_path_factory.mktemp("instruct"),
        agent,
        positions=8192,
        policy__dialect="instruct",
        policy__max_prompt_tokens=8000,
        fast__tasks_per_domain=24,
        memory__candidate_token_budget=80,
    )


def test_the_epoch_is_played_in_instruct(world: Played) -> None:
    rows = [row for row in world.rows if row.group != MAINTAIN]
    assert {row.renderer for row in world.rows} == {"instruct-1"}
    assert not any(row.select_fallback for row in rows) and any(row.injected for row in rows)
    assert all(turn.parsed for row in rows for turn in row.turns)
    informed = [row.success for row in rows if row.injected]
    guessing = [row.success for row in rows if not row.injected]
    assert sum(informed) / len(informed) > sum(guessing) / len(guessing) and len(world.entries) > 3
    kept = [turn for row in world.rows if row.group == MAINTAIN for turn in row.turns]
    assert {turn.parsed for turn in kept} == {True, False} and any("[m" in turn.result for turn in kept)


def test_views_go_through_the_dialect_and_pass_the_audit(world: Played) -> None:
    views = build(world.rows, world.entries, world.attributions, world.local.encode, world.params)
    assert {example.ability for example in views.examples} == {"select", "act", "write", "maintain"}
    report = audit(views.examples, world.rows, cut=views.cut)
    assert report.n_cut == 0 and all(n > 0 for n in report.n_hindsight_tokens.values())
    hints = [
        world.local.decode(example.teacher_ids[start:end])
        for example in views.examples
        for start, end in example.hindsight_spans
    ]
    assert all("Hindsight (known only afterwards)." in hint for hint in hints)
    students = [world.local.decode(example.student_ids) for example in views.examples]
    assert not any("Hindsight" in student or "(value " in student for student in students)


def test_the_other_dialect_is_refused(world: Played) -> None:
    other = merge(world.params, {"policy.dialect": "terse"}, "test")
    with pytest.raises(SetupError, match="renders to other tokens than were served"):
        build(world.rows, world.entries, world.attributions, world.local.encode, other)


def test_the_dialect_enters_every_key_and_terse_keeps_its_own() -> None:
    terse, other = small(), merge(small(), INSTRUCT, "test")
    assert terse.digest() != other.digest() and deciding(terse) != deciding(other)
    settings = EpisodeSettings.of(terse)
    assert "dialect" not in settings.model_dump() and "dialect" not in canonical_json(settings)
    assert canonical_json(EpisodeSettings.of(other)) != canonical_json(settings)
    for one in (settings, EpisodeSettings.of(other)):
        assert EpisodeSettings.model_validate_json(one.model_dump_json()) == one


def test_each_dialect_has_a_renderer_of_its_own() -> None:
    assert [dialects.of(name).renderer for name in ("terse", "instruct")] == ["terse-1", "instruct-1"]  # type: ignore[arg-type]


def test_what_was_learnt_again_tells_its_later_round() -> None:
    again = tip("late", "4").model_copy(update={"confirmed_round": 7})
    prompt = dialects.of("instruct").select.prompt("zora count late", [again], token_budget=99)
    assert "[m1] tip for zora, round 7\n" in prompt.messages[-1].segments[-1].text
