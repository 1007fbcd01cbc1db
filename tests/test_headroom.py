"""Headroom: what a deployment holds that only outcomes can teach."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import pytest

from opd_evolver.abilities import write
from opd_evolver.benchmark import wordings as probed
from opd_evolver.environments import headroom as hr
from opd_evolver.environments import registry
from opd_evolver.environments.conventions import CONTEXTS
from opd_evolver.environments.playing import play
from opd_evolver.environments.procedural import ProceduralDomain
from opd_evolver.environments.protocol import Notes
from opd_evolver.params import EnvironmentParams, HeadroomParams, Params, load_preset
from opd_evolver.policy.scripted import ScriptedPolicy
from opd_evolver.records import LEVELS, GenerationRequest, Level, Split, Task, TipContent
from opd_evolver.rollout.runner import EnvironmentPool, Runner
from opd_evolver.rollout.settings import EpisodeSettings, Rollout
from opd_evolver.seed import wordings as trained

FULL = HeadroomParams(misleading=0.5, drift=0.3, drift_after=60, one_off=0.5, wording=0.4)
DEPLOYED: tuple[Split, ...] = ("deploy-train", "deploy-val", "deploy-test")
DOMAINS = ("sql", "apps", "shell")


def opened(name: str, headroom: HeadroomParams = FULL, levels: Sequence[Level] = LEVELS) -> ProceduralDomain:
    found = registry.load(name, levels, headroom)
    assert isinstance(found, ProceduralDomain)
    return found


def context_of(task: Task) -> str:
    last = task.text.split()[-1]
    return last if last in CONTEXTS else ""


@pytest.mark.parametrize("name", DOMAINS)
def test_without_headroom_and_in_novel_families_nothing_changes(name: str) -> None:
    plain, full = opened(name, HeadroomParams()), opened(name)
    for split in DEPLOYED:
        tasks = plain.tasks(split, 120)
        assert not any(context_of(task) or "headroom" in task.gold for task in tasks)
        assert tasks != full.tasks(split, 120)
    novel: tuple[Split, ...] = ("seed", "novel-val", "novel-test")
    for split in novel:
        assert plain.tasks(split, 120) == full.tasks(split, 120)


@pytest.mark.parametrize("name", DOMAINS)
def test_the_expert_still_succeeds_everywhere(name: str) -> None:
    env = opened(name)
    for split in DEPLOYED:
        for task in env.tasks(split, 90):
            assert play(env, task, lambda _, task=task: env.oracle(task)).success  # type: ignore[misc]
    env.close()


@pytest.mark.parametrize("name", DOMAINS)
def test_exceptions_are_of_the_same_keys_everywhere_and_always_alike(name: str) -> None:
    env = opened(name)
    usual: dict[tuple[str, str], set[str]] = defaultdict(set)
    exceptional: dict[tuple[str, str], set[str]] = defaultdict(set)
    words = set()
    for split in DEPLOYED:
        for task in env.tasks(split, 240)[120:]:  # after the drift
            if context_of(task):
                words.add(context_of(task))
            for fact in env.needed(task)[: 1 if "one_off" in task.gold.get("headroom", ()) else 2]:
                side = exceptional if context_of(task) else usual
                side[fact.scope, fact.key].add(fact.value)
    assert len(words) == 1  # the domain's one context
    differing = {key for key, values in exceptional.items() if key in usual and values != usual[key]}
    assert differing and {key for _, key in differing} == {key for _, key in differing if hr.misleads(env.spec, key)}
    assert all(len(exceptional[key]) == 1 for key in differing)
    share = sum(hr.misleads(env.spec, key) for key in env.spec.keys) / len(env.spec.keys)
    assert share == FULL.misleading


@pytest.mark.parametrize("name", DOMAINS)
def test_drift_changes_a_share_of_the_tips_at_its_time_and_for_good(name: str) -> None:
    env, plain = opened(name, HeadroomParams(drift=0.3, drift_after=60)), opened(name, HeadroomParams())
    before, after = env.tasks("deploy-train", 120)[:60], env.tasks("deploy-train", 120)[60:]
    assert before == tuple(
        task.model_copy(update={"gold": {**task.gold, **headroom_of(marked)}})
        for task, marked in zip(plain.tasks("deploy-train", 60), before, strict=True)
    )
    old = {task.family: task.gold["facts"] for task in before}
    new = {task.family: task.gold["facts"] for task in after}
    for task in (*env.tasks("deploy-val", 24), *env.tasks("deploy-test", 24)):
        assert task.gold["facts"] == new[task.family]
    changed = [(family, key) for family in old for key in old[family] if old[family][key] != new[family][key]]
    assert all(env.spec.level_of(key) == "tip" for _, key in changed)
    n_tips = sum(env.spec.level_of(key) == "tip" for facts in old.values() for key in facts)
    assert 0.1 < len(changed) / n_tips < 0.5
    met = {task.task_id for task in env.tasks("deploy-test", 60) if "drift" in task.gold.get("headroom", ())}
    asked = {
        task.task_id
        for task in env.tasks("deploy-test", 60)
        if any((task.family, fact.key) in changed for fact in env.needed(task))
    }
    assert met == asked


def headroom_of(task: Task) -> dict[str, object]:
    return {"headroom": task.gold["headroom"]} if "headroom" in task.gold else {}


@pytest.mark.parametrize("name", DOMAINS)
def test_a_key_that_the_family_has_not_is_asked_for_in_training_only(name: str) -> None:
    env, plain = opened(name), opened(name, HeadroomParams())
    families = {task.family: set(task.gold["facts"]) for task in plain.tasks("deploy-train", 24)}
    strange = 0
    for split in DEPLOYED:
        for task in env.tasks(split, 120):
            outside = [fact for fact in env.needed(task) if fact.key not in families[task.family]]
            assert bool(outside) == ("one_off" in task.gold.get("headroom", ()))
            assert not outside or split == "deploy-train"
            strange += bool(outside)
    assert 120 * 0.4 * 0.25 < strange < 120 * 0.4 * 0.75


@pytest.mark.parametrize("name", DOMAINS)
def test_few_of_the_questions_about_such_a_key_share_it(name: str) -> None:
    laptop = load_preset("laptop")
    worlds = laptop.environments
    env, plain = opened(name, worlds.headroom, worlds.levels), opened(name, HeadroomParams(), worlds.levels)
    families = {task.family: set(task.gold["facts"]) for task in plain.tasks("deploy-train", 24)}
    outside = [
        (task.family, fact.key)
        for task in env.tasks("deploy-train", laptop.rounds * laptop.fast.tasks_per_domain)
        for fact in env.needed(task)
        if fact.key not in families[task.family]
    ]
    assert len(outside) >= 40 and 1 - len(set(outside)) / len(outside) < 0.15


def test_the_words_of_the_house_are_new_to_every_policy() -> None:
    house, seed, probe = (
        {word for one in templates for word in one.split()} - {"{}"}
        for templates in (hr.TEMPLATES, (*trained.TEMPLATES, *trained.WORDS), probed.TEMPLATES)
    )
    assert not house & seed and not house & probe


def test_a_share_of_the_tips_is_noted_in_them_and_nothing_else_is() -> None:
    env = opened("sql")
    assert isinstance(env, Notes)
    task = env.tasks("deploy-train", 1)[0]
    skill = write.parse("skill audit : fee ; tax ; net", limit=1, task_text=task.text, turns=()).contents[0]
    assert env.noted(task, skill) is skill
    kept = {key: env.noted(task, TipContent(trigger=key, text="4")) for key in env.spec.keys}
    assert kept == {key: env.noted(task, TipContent(trigger=key, text="4")) for key in env.spec.keys}
    worded = [one for one in kept.values() if isinstance(one, TipContent) and one.text != "4"]
    assert 2 <= len(worded) <= 12 and all("4" in one.text.split() or ": 4" in one.text for one in worded)


@pytest.mark.parametrize("name", DOMAINS)
@pytest.mark.parametrize("split", ["seed", "novel-val", "novel-test"])
def test_notes_about_other_families_are_worded_too_though_their_tasks_have_no_headroom(name: str, split: Split) -> None:
    worlds = load_preset("laptop").environments
    env = opened(name, worlds.headroom, worlds.levels)
    tips = {}
    for task in env.tasks(split, 480):
        assert "headroom" not in task.gold and not context_of(task)
        for fact in env.needed(task):
            if env.spec.level_of(fact.key) == "tip":
                note = TipContent(trigger=fact.key, text=fact.value)
                tips[fact.scope, fact.key] = env.noted(task, note) != note
    assert 0.1 < sum(tips.values()) / len(tips) < 0.4


def test_an_episode_proposes_what_the_house_notes() -> None:
    def answer(prompt: str, request: GenerationRequest) -> str:
        return "tip late 4" if request.prompt.ability == "write" else "zora late guess 4 do nothing 4"

    worlds = EnvironmentParams(domains=("sql",), levels=("tip",), headroom=HeadroomParams(wording=1.0))
    with EnvironmentPool(registry.loader(worlds)) as pool:
        with pool.lend("sql") as env:
            task = env.tasks("deploy-train", 1)[0]
        settings = EpisodeSettings.of(Params(), read=False)
        runner = Runner(ScriptedPolicy(answer), pool, None, settings)
        (episode,) = runner.run([Rollout(rollout_id="one", round=1, wave=0, task=task)], 1)
    (proposal,) = episode.proposals
    assert isinstance(proposal.content, TipContent)
    assert proposal.content.trigger == "late" and proposal.content.text != "4" and "4" in proposal.content.text
