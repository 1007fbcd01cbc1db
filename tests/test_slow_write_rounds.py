"""Writing is learnt from rollouts of earlier rounds too, by what their entries came to since (`slow.write_rounds`)."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from attribution_cases import row
from slow_world import Played

from opd_evolver.errors import SetupError
from opd_evolver.memory.segment import LedgerSegment
from opd_evolver.memory.store import Memory, entry_of
from opd_evolver.params import Params, merge
from opd_evolver.records import LedgerRow, Proposal, TipContent
from opd_evolver.slow.leakage import audit
from opd_evolver.slow.views import Views, build
from opd_evolver.step import Job
from opd_evolver.steps import slow


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


@pytest.mark.parametrize(("sure", "n_helpful"), [(False, 1), (True, 0)])
def test_the_latest_rounds_are_counted_without_a_refused_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sure: bool, n_helpful: int
) -> None:
    """Round 2 was refused, so the ledger has 1, 3 and 4: of `write_rounds: 3` nothing but round 1 and 3 is earlier."""
    params = merge(Params(), {"slow.write_rounds": 3, "attribution.sure": sure}, "test")
    noted = entry_of(Proposal(domain="d", scope="s", content=TipContent(trigger="t", text="4")), 1)
    with Memory.open(tmp_path / "live", params.memory) as memory:
        # Won once with the entry and lost once without it: that has a sign, and is not sure.
        for round_, name, shown in ((1, "a", ""), (3, "b", ""), (4, "c", noted.entry_id)):
            won = row(name, "g", 1, shown, shown, round=round_, created=("x",))
            lost = row(f"{name}-", "g", 0, shown, round=round_)
            memory.commit(LedgerSegment(lineage="t", round=round_, wave=0, rows=(won, lost), entries=(noted,)))
    given: list[str] = []

    def build(current: list[LedgerRow], *_: object, earlier: list[LedgerRow]) -> Views:
        given.extend(one.rollout_id for one in earlier)
        return Views()

    monkeypatch.setattr(slow.views, "build", build)
    monkeypatch.setattr(slow.resources, "policy", lambda job: SimpleNamespace(encode=None))
    job = Job(
        step="examples",
        lineage="t",
        round=4,
        root=str(tmp_path),
        out="out",
        params=params.model_dump(mode="json"),
        inputs={"live": "live"},
    )
    found = slow.examples(job, tmp_path)
    assert given == ["a", "b"]
    assert (found.metrics["entries_with_evidence"], found.metrics["entries_helpful"]) == (1, n_helpful)


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
