"""An episode is a generator: read, select, act, write, and a full ledger row."""

from __future__ import annotations

import pytest
from rollout_world import Shelf, Toy, agent, rollout, small, tip

from opd_evolver.abilities.dialect import RENDERER
from opd_evolver.errors import SetupError
from opd_evolver.policy.scripted import ScriptedPolicy
from opd_evolver.records import Entry, Episode, GenerationRequest, Reply
from opd_evolver.rollout.episode import EpisodeRun, episode
from opd_evolver.rollout.seeds import call_seed, shuffled, uniform
from opd_evolver.rollout.settings import EpisodeSettings

QUIET = EpisodeSettings.of(small(fast__withhold_probability=0.0))


def finish(run: EpisodeRun, policy: ScriptedPolicy) -> tuple[Episode, list[GenerationRequest]]:
    asked: list[GenerationRequest] = []
    try:
        request = next(run)
        while True:
            asked.append(request)
            request = run.send(policy.generate([request])[0])
    except StopIteration as stop:
        return stop.value, asked


def play(
    reply: object = agent, entries: list[Entry] | None = None, settings: EpisodeSettings = QUIET, number: int = 1
) -> tuple[Episode, list[GenerationRequest]]:
    policy = ScriptedPolicy(reply)  # type: ignore[arg-type]
    return finish(episode(rollout(number), Toy(), Shelf(entries or []), settings), policy)


def test_a_generator_yields_requests_and_needs_no_policy() -> None:
    run = episode(rollout(), Toy(), Shelf([tip("late", "7")]), QUIET)
    first = next(run)
    assert (first.prompt.ability, first.seed) == ("select", call_seed(0, 1, rollout().rollout_id, "select", 0))
    second = run.send(Reply(text="zora late h1", policy_version="p"))
    assert second.prompt.ability == "act"
    run.close()


def test_the_row_is_full() -> None:
    done, asked = play(entries=[tip("paid", "3"), tip("late", "7")])
    row = done.row
    assert [candidate.handle for candidate in row.candidates] == [1, 2]
    assert row.selected == row.injected == ("toy-zora-late-7",)
    assert row.propensities == {"toy-zora-late-7": 1.0}
    assert (row.success, row.episode_return, row.select_fallback, row.withheld) == (True, 1.0, False, ())
    assert (row.group, row.scope, row.domain, row.renderer) == ("f1", "zora", "toy", RENDERER)
    assert row.policy_version == "scripted"
    assert [call.ability for call in row.calls] == ["select", "act", "write"]
    assert [request.prompt.ability for request in asked] == ["select", "act", "write"]
    assert all(call.prompt_token_ids and len(call.reply_token_ids) == len(call.logprobs) for call in row.calls)
    assert row.n_prompt_tokens == sum(len(call.prompt_token_ids) for call in row.calls)
    assert row.n_reply_tokens == sum(len(call.reply_token_ids) for call in row.calls)
    assert row.turns[0].action.startswith("select count") and row.turns[0].result == "ok 12"
    assert "seconds" not in row.model_dump()


def test_history_carries_the_served_tokens() -> None:
    _, asked = play(lambda prompt, request: "zora late guess 1 do wrong" if prompt.ability == "act" else "none")
    messages = asked[1].prompt.messages
    assert [message.role for message in messages] == ["user", "assistant", "user"]
    served = ScriptedPolicy(lambda prompt, request: "zora late guess 1 do wrong").generate([asked[0]])[0]
    assert messages[1].segments[0].token_ids == served.token_ids


def test_memories_are_injected_once() -> None:
    _, asked = play(
        lambda p, r: "zora late h1" if p.ability == "select" else ("do wrong" if p.ability == "act" else "none"),
        [tip("late", "7")],
    )
    second = [request.prompt for request in asked if request.prompt.ability == "act"][1]
    kinds = [[segment.kind for segment in message.segments] for message in second.messages]
    assert kinds[0].count("memory") == 1 and not any("memory" in kind for kind in kinds[1:])


def test_no_candidates_skips_selection() -> None:
    done, asked = play()
    assert asked[0].prompt.ability == "act"
    assert done.row.candidates == done.row.selected == ()


def test_none_is_a_valid_selection() -> None:
    done, _ = play(lambda p, r: "zora late none" if p.ability == "select" else agent(p, r), [tip("late", "7")])
    assert done.row.selected == () and not done.row.select_fallback


@pytest.mark.parametrize("nonsense", ["", "hello", "zora late h9", "h0"])
def test_an_unreadable_selection_falls_back_and_is_flagged(nonsense: str) -> None:
    entries = [tip("late", str(value)) for value in range(6)]
    always = EpisodeSettings.of(small(fast__withhold_probability=0.99))
    done, _ = play(lambda p, r: nonsense if p.ability == "select" else agent(p, r), entries, always)
    top = tuple(entry.entry_id for entry in entries[: always.max_selected])
    assert done.row.select_fallback
    assert done.row.selected == done.row.injected == top
    assert done.row.withheld == () and set(done.row.propensities.values()) == {1.0}


def test_withholding_has_its_probability_and_is_repeatable() -> None:
    settings = EpisodeSettings.of(small(fast__withhold_probability=0.2))
    entries = [tip("late", "7"), tip("paid", "1")]

    def both(prompt: object, request: GenerationRequest) -> str:
        return "h1 h2" if request.prompt.ability == "select" else agent(request.prompt, request)

    rows = [play(both, entries, settings, number)[0].row for number in range(400)]
    n_withheld = sum(len(row.withheld) for row in rows)
    assert 0.2 * 800 - 45 < n_withheld < 0.2 * 800 + 45  # four standard deviations
    for row in rows:
        assert set(row.injected) == set(row.selected) - set(row.withheld)
        assert set(row.propensities) == set(row.selected) and set(row.propensities.values()) == {0.8}
    again = [play(both, entries, settings, number)[0].row for number in range(40)]
    assert again == rows[:40]
    joint = sum(len(row.withheld) == 2 for row in rows)
    assert joint < 400 * 0.04 + 24  # entries are withheld independently of each other


def test_a_withheld_entry_reaches_no_prompt() -> None:
    settings = EpisodeSettings.of(small(fast__withhold_probability=0.999))
    done, asked = play(agent, [tip("late", "7")], settings)
    assert done.row.withheld == ("toy-zora-late-7",) and done.row.injected == ()
    after = [request.prompt for request in asked if request.prompt.ability != "select"]
    assert not any(s.kind == "memory" for prompt in after for m in prompt.messages for s in m.segments)


def test_benchmark_columns_switch_abilities_off() -> None:
    alone = EpisodeSettings.of(small(), read=False, write=False, greedy=True)
    done, asked = finish(episode(rollout(), Toy(), None, alone), ScriptedPolicy(agent))
    assert {request.prompt.ability for request in asked} == {"act"}
    assert {request.sampling.temperature for request in asked} == {0.0}
    assert done.row.candidates == () and done.proposals == ()
    assert EpisodeSettings.of(small(), greedy=True).withhold_probability == 0.0


def test_reading_without_a_memory_is_a_setup_error() -> None:
    with pytest.raises(SetupError, match="was given none"):
        next(episode(rollout(), Toy(), None, QUIET))


def test_the_step_budget_truncates() -> None:
    one = EpisodeSettings.of(small(fast__max_steps=1, fast__withhold_probability=0.0))
    done, _ = play(lambda p, r: "do wrong" if p.ability == "act" else "none", settings=one)
    assert len(done.row.turns) == 1 and not done.row.success and done.row.episode_return == 0.0


def test_an_unreadable_action_costs_a_step() -> None:
    done, _ = play(lambda p, r: "mumble" if p.ability == "act" else "none")
    assert [turn.parsed for turn in done.row.turns] == [False, False]
    assert done.row.turns[0].action == "mumble"


def test_proposals_keep_scope_and_source_and_rejections_their_reason() -> None:
    settings = EpisodeSettings.of(small(fast__write_limit=1, fast__withhold_probability=0.0))
    done, _ = play(lambda p, r: "tip late 7 | blah | tip held 7" if p.ability == "write" else "do 7", settings=settings)
    [proposal] = done.proposals
    assert (proposal.domain, proposal.scope) == ("toy", "zora")
    assert proposal.source_episodes == (rollout().rollout_id,)
    assert [reason.split(":")[0] for reason in done.rejected] == ["unreadable", "over the limit of 1"]
    assert done.row.created == ()  # the committer fills it in


def test_a_policy_that_changes_in_mid_episode_is_refused() -> None:
    run = episode(rollout(), Toy(), Shelf([tip("late", "7")]), QUIET)
    next(run)
    run.send(Reply(text="none", policy_version="a"))
    with pytest.raises(SetupError, match="policies a and b"):
        run.send(Reply(text="do wrong", policy_version="b"))


def test_seeds_are_counters() -> None:
    seeds = {
        call_seed(seed, round, name, ability, turn)
        for seed in (0, 1)
        for round in (1, 2)
        for name in ("a", "b")
        for ability in ("act", "select")
        for turn in (0, 1)
    }
    assert len(seeds) == 32 and all(0 <= one < 2**63 for one in seeds)
    assert 0.0 <= uniform(0, 1, "a", "x") < 1.0
    assert call_seed(0, 1, "a", "act", 0) == 8256594202650538075  # runs of other machines and versions agree
    assert shuffled("abcdef", str, 3, "x") == shuffled("fedcba", str, 3, "x") != shuffled("abcdef", str, 4, "x")


def test_the_top_of_the_ranking_is_injected_without_asking_and_counts_as_chosen() -> None:
    settings = EpisodeSettings.of(small(memory__selector="ranking", memory__max_selected=1))
    done, asked = play(entries=[tip("paid", "3"), tip("late", "7")], settings=settings)
    assert "select" not in {request.prompt.ability for request in asked}
    assert (done.row.selected, done.row.select_fallback) == (("toy-zora-paid-3",), False)
    assert done.row.propensities == {"toy-zora-paid-3": 0.9}


def test_entries_of_a_level_that_is_off_are_refused_with_their_reason() -> None:
    def writer(prompt: object, request: GenerationRequest) -> str:
        return "tip late fee | skill audit : fee" if request.prompt.ability == "write" else "do fee"

    kept, _ = play(writer)
    assert [one.content.level for one in kept.proposals] == ["tip", "skill"]
    settings = EpisodeSettings.of(small(memory__levels=["tip"], fast__withhold_probability=0.0))
    done, _ = play(writer, settings=settings)
    assert [one.content.level for one in done.proposals] == ["tip"]
    assert done.rejected == ("level: skill is off",)


@pytest.mark.parametrize("dialect", ["terse", "instruct"])
def test_entries_of_a_level_that_is_off_do_not_use_up_the_limit(dialect: str) -> None:
    tip_form = '{"level": "tip", "trigger": "late", "text": "7"}'
    wanted = {"terse": "traj | tip late 7", "instruct": f'{{"entries": [{{"level": "trajectory"}}, {tip_form}]}}'}
    acted = {"terse": "do 7", "instruct": "Action: 7"}

    def writer(prompt: object, request: GenerationRequest) -> str:
        return (wanted if request.prompt.ability == "write" else acted)[dialect]

    off = small(memory__levels=["tip"], fast__write_limit=1, policy__dialect=dialect)
    done, _ = play(writer, settings=EpisodeSettings.of(off))
    assert [one.content.level for one in done.proposals] == ["tip"]
    assert done.rejected == ("level: trajectory is off",)
