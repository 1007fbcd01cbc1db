"""Episodes of sql and apps: scoring, wording, determinism, secrecy."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opd_evolver.environments import conventions as cv
from opd_evolver.environments.attempts import Asked, Attempts
from opd_evolver.environments.playing import Choose, bad_actions, play, random_values
from opd_evolver.environments.procedures import word_at
from opd_evolver.environments.protocol import Conventions, Environment, Oracle
from opd_evolver.environments.tasks import moves_of, subs_of, word_of
from opd_evolver.records import LEVELS, Level, Task
from tests.task_worlds import AnyDomain, each_domain, n_played, task_with, wrong_value


def expert(environment: AnyDomain, task: Task) -> Choose:
    return lambda _: environment.oracle(task)


# ── episodes ──


@each_domain
def test_implements_the_protocols_and_the_expert_succeeds(make: type[AnyDomain]) -> None:
    environment = make()
    assert isinstance(environment, Environment)
    assert isinstance(environment, Oracle)
    assert isinstance(environment, Conventions)
    assert isinstance(environment, cv.Procedural)
    for task in environment.tasks("novel-test", n_played(make, 100)):
        played = play(environment, task, expert(environment, task))
        assert played.success
        assert played.episode_return == pytest.approx(1.0)
        assert len(played.steps) == len(environment.needed(task))


@each_domain
def test_return_is_the_mean_over_sub_questions_of_the_last_attempt(make: type[AnyDomain]) -> None:
    environment = make()
    task = task_with(environment, 2)
    first, second = subs_of(task)
    facts = task.gold["facts"]
    right = [environment.action(sub, facts[sub.key]) for sub in (first, second)]
    wrong = [environment.action(sub, wrong_value(environment, task, i)) for i, sub in enumerate((first, second))]

    def outcome(*actions: str) -> tuple[float, bool, bool]:
        environment.reset(task)
        steps = [environment.step(action) for action in actions]
        assert all(not step.terminated for step in steps[:-1])
        return sum(step.reward for step in steps), steps[-1].info["success"], steps[-1].terminated

    assert outcome(right[0], right[1]) == (1.0, True, True)
    assert outcome(wrong[0], right[0], wrong[1], right[1]) == (1.0, True, True)
    assert outcome(right[0], wrong[1], wrong[1]) == (0.5, False, True)
    assert outcome(wrong[0], wrong[0]) == (0.0, False, True)
    assert outcome(right[0]) == (0.5, False, False)


def shape(text: str) -> list[str]:
    """An observation with the engine's number left open."""
    return ["N" if word.isdigit() and place == 1 else word for place, word in enumerate(text.split())]


@each_domain
@pytest.mark.parametrize("levels", [cv.TIPS_ONLY, LEVELS])
def test_observations_are_worded_as_the_seed_data_words_them(make: type[AnyDomain], levels: tuple[Level, ...]) -> None:
    environment = make(levels=levels)
    rng = cv.generator("wording")
    for task in environment.tasks("deploy-test", 24):
        facts = {key: str(value) for key, value in task.gold["facts"].items()}
        demo = cv.demo_of(environment.spec, cv.World(environment.domain, task.scope, "", facts), subs_of(task))
        assert demo.text == task.text
        assert environment.reset(task) == demo.subs[0].again
        for sub in demo.subs:
            right = word_at(facts[sub.key], sub.stage)
            wrong = next(word for word in environment.spec.choices(sub.key) if word != right)
            missed = environment.step(environment.action(sub, wrong)).observation
            assert shape(missed) == shape(environment.observation(sub, False, False, rng))
            step = environment.step(environment.action(sub, right))
            assert shape(step.observation) == shape(environment.observation(sub, True, not sub.next_text, rng))
            assert step.observation.partition(" next ")[2] == sub.next_text
        assert step.info["success"]
    environment.close()


@each_domain
def test_all_prompt_words_are_announced(make: type[AnyDomain]) -> None:
    environment = make(levels=LEVELS)
    words = set(environment.words())
    seen: set[str] = set()
    for task in environment.tasks("deploy-train", n_played(make, 72)):
        played = play(environment, task, random_values(environment, task, repeat=False))
        actions = [environment.action(move, word_of(task, move)) for move in moves_of(task)]
        seen |= {
            word for part in (task.text, *actions, *played.observations) for word in part.split() if word != task.scope
        }
    unknown = {word for word in seen if word not in words and not (word.isdigit() and set(word) <= words)}
    assert not unknown


@each_domain
@settings(max_examples=25, deadline=None)
@given(actions=st.lists(st.text(max_size=60), min_size=1, max_size=6), index=st.integers(0, 40))
def test_no_action_raises_and_replays_are_equal(make: type[AnyDomain], actions: list[str], index: int) -> None:
    environment, other = make(), make()
    task = environment.tasks("deploy-val", 41)[index]

    def run(engine: AnyDomain) -> list[object]:
        return [engine.reset(task), *(engine.step(action) for action in actions)]

    once = run(environment)
    other.reset(other.tasks("novel-val", 3)[2])
    other.step("something else in between")
    assert run(other) == once == run(environment)


@each_domain
def test_gold_and_family_reach_no_observation(make: type[AnyDomain]) -> None:
    environment = make()
    for number, task in enumerate(environment.tasks("deploy-test", n_played(make, 40))):
        marked = task.model_copy(update={"family": "canary-family", "gold": {**task.gold, "canary": "canary-gold"}})
        agents: list[Callable[[], Choose]] = [
            lambda task=marked: expert(environment, task),  # type: ignore[misc]
            lambda number=number: bad_actions(number),  # type: ignore[misc]
            lambda task=marked: random_values(environment, task, repeat=True),  # type: ignore[misc]
        ]
        for agent in agents:
            plain, again = play(environment, task, agent()), play(environment, marked, agent())
            assert plain.observations == again.observations
            assert "canary" not in " ".join(again.observations)
        assert task.family not in task.text


@each_domain
def test_family_labels_permute_without_a_trace(make: type[AnyDomain]) -> None:
    environment = make()
    tasks = environment.tasks("deploy-test", 24)
    labels = [task.family for task in tasks]
    for task, label in zip(tasks, labels[1:] + labels[:1], strict=True):
        permuted = task.model_copy(update={"family": label})
        runs = [play(environment, t, random_values(environment, t, repeat=True)) for t in (task, permuted)]
        assert runs[0].observations == runs[1].observations
        assert runs[0].episode_return == runs[1].episode_return


def test_a_finished_episode_stays_finished() -> None:
    attempts = Attempts([Asked("a")])
    assert attempts.record(1.0, "12").observation == "ok 12"
    late = attempts.record(1.0, "12")
    assert (late.terminated, late.reward, late.info["success"]) == (True, 0.0, True)


def test_observations_are_short_and_hold_no_separator() -> None:
    said = Attempts([Asked("a")]).record(0.0, "a | b\nc " * 50 + "x" * 500).observation
    assert said == "no a b c a b c a b …"
