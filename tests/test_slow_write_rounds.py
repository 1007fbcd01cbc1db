"""Writing is learnt from rollouts of earlier rounds too, by what their entries came to since (`slow.write_rounds`)."""

from __future__ import annotations

import pytest
from slow_world import Played

from opd_evolver.errors import SetupError
from opd_evolver.slow.leakage import audit
from opd_evolver.slow.views import Views, build


def test_of_earlier_rounds_writing_is_learnt_by_what_it_came_to_since(world: Played, views: Views) -> None:
    writing = [example for example in views.examples if example.ability == "write"]
    middle = max(row.wave for row in world.rows) // 2
    earlier = [row for row in world.rows if row.wave <= middle]
    later = [row for row in world.rows if row.wave > middle]
    given = (world.entries, world.attributions, world.local.encode, world.params)
    ours = {row.rollout_id for row in earlier}
    found = build(later, *given, earlier=earlier[::-1])
    old = [example for example in found.examples if example.rollout_id in ours]
    assert old == [example for example in writing if example.rollout_id in ours] != []
    assert [e for e in found.examples if e.rollout_id not in ours] == build(later, *given).examples
    report = audit(found.examples, world.rows)
    assert report.n_examples["write"] == len(writing)
    # What was rendered otherwise, or never tokenised here, cannot be shown again; the round goes on without it.
    other = [row.model_copy(update={"renderer": "terse-0"}) for row in earlier]
    text_only = build(later, *given, earlier=other)
    assert text_only.examples == build(later, *given).examples
    assert text_only.skipped["earlier rollout: text only, or of another renderer"] == len(earlier)


def test_a_fork_with_another_budget_goes_on_without_what_was_rendered_before(world: Played) -> None:
    given = (world.entries, world.attributions, world.local.encode, world.params)
    longer = [
        row.model_copy(
            update={
                "calls": tuple(c.model_copy(update={"prompt_token_ids": (*c.prompt_token_ids, 0)}) for c in row.calls)
            }
        )
        for row in world.rows
    ]
    found = build([], *given, earlier=longer)
    n_writing = sum(call.ability == "write" for row in world.rows for call in row.calls)
    assert found.examples == [] and found.skipped["earlier rollout: renders to other tokens now"] == n_writing > 0
    with pytest.raises(SetupError, match="renders to other tokens than were served"):
        build(longer, *given)
