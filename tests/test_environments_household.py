"""`household`: the engine's own score behind renamed places; one Java, restarted when it dies, ended with us."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from opd_evolver.environments import extras, household_java, registry
from opd_evolver.environments.household import N_HOUSES, PLACES, STATIONS, Household
from opd_evolver.environments.playing import play
from opd_evolver.environments.tasks import moves_of, subs_of, word_of
from opd_evolver.errors import OutageError
from opd_evolver.records import LEVELS, Task
from tests.task_worlds import needs

pytestmark = needs("household")


@pytest.fixture(scope="module", autouse=True)
def ended() -> Iterator[None]:
    yield
    household_java.shut_down()


def single(environment: Household, level: str = "tip") -> Task:
    """A task with one sub-question of this level."""
    for task in environment.tasks("deploy-train", 400):
        subs = subs_of(task)
        if len(subs) == 1 and environment.spec.level_of(subs[0].key) == level:
            return task
    raise AssertionError(f"no task about a {level}")


def test_every_house_has_a_usual_place_and_enough_others() -> None:
    from opd_evolver.environments.household_house import surveyed

    for number in range(N_HOUSES):
        house = surveyed(number)
        assert house.usual
        assert len(house.others) >= len(PLACES) - 1
        assert len({*house.usual, *house.others}) == len(house.usual) + len(house.others)


def test_only_the_hidden_place_scores_in_the_engine() -> None:
    environment = Household()
    task = single(environment)
    (sub,) = subs_of(task)
    hidden = task.gold["facts"][sub.key]
    for name in PLACES:
        environment.reset(task)
        step = environment.step(environment.action(sub, name))
        assert step.observation == ("ok" if name == hidden else "no")
        assert step.info["success"] == (name == hidden)


def test_a_wrong_place_is_walked_to_and_the_thing_is_fetched_from_there() -> None:
    environment = Household()
    task = single(environment)
    (sub,) = subs_of(task)
    environment.reset(task)
    hands = environment._hands
    assert hands is not None
    wrong = next(name for name in PLACES if name != task.gold["facts"][sub.key])
    seen = hands.put(environment._named[wrong])
    assert seen.text == f"You put the {hands._house.item} in the {environment._named[wrong].name}." and not seen.success
    assert hands.n_actions >= 2
    assert environment.step(environment.oracle(task)).info["success"]


def test_an_order_is_one_way_through_one_house() -> None:
    environment = Household(levels=LEVELS)
    task = single(environment, "trajectory")
    moves = moves_of(task)
    assert environment.reset(task).endswith(" s1")
    hands = environment._hands
    for move in moves[:-1]:
        wrong = next(name for name in STATIONS if name != word_of(task, move))
        assert environment.step(environment.action(move, wrong)).observation.endswith(f" s{move.stage}")
        right = environment.step(environment.action(move, word_of(task, move)))
        assert right.observation.endswith(f" s{move.stage + 1}")
        assert environment._hands is hands
    assert environment.step(environment.oracle(task)).info["success"]


@pytest.mark.parametrize("action", ["", "put", "take mug", "put mug shelf", "put big", "look around", "put a b c d"])
def test_what_is_no_macro_is_refused(action: str) -> None:
    environment = Household()
    task = single(environment)
    environment.reset(task)
    step = environment.step(action)
    assert step.observation.startswith("error ") and step.reward == 0.0
    assert environment.step(environment.oracle(task)).info["success"]


def test_another_look_another_thing_or_an_unknown_place_is_refused() -> None:
    environment = Household()
    task = single(environment)
    (sub,) = subs_of(task)
    right = environment.action(sub, task.gold["facts"][sub.key])
    for old, new in ((sub.arg, "pink"), (sub.key, "lamp"), (task.gold["facts"][sub.key], "wardrobe")):
        environment.reset(task)
        assert environment.step(right.replace(old, new)).observation == "error nothing called that here"


def test_instances_share_one_java_and_do_not_disturb_each_other() -> None:
    first, second = Household(), Household()
    tasks = first.tasks("deploy-test", 12)
    first.reset(tasks[0])
    running = household_java.process_id()
    assert running is not None
    second.reset(tasks[1])
    assert household_java.process_id() == running
    for environment, task in ((first, tasks[0]), (second, tasks[1])):
        step = environment.step(environment.oracle(task))
        while not step.terminated:
            step = environment.step(environment.oracle(task))
        assert step.info["success"]


def test_a_killed_java_is_an_outage_and_the_episode_can_be_played_again() -> None:
    plain = Household(levels=LEVELS)
    task = next(t for t in plain.tasks("deploy-test", 60) if len(moves_of(t)) > 4)
    expected = play(plain, task, lambda _: plain.oracle(task))
    environment = Household(levels=LEVELS)
    actions = [plain.action(move, word_of(task, move)) for move in moves_of(task)]
    killed: list[int] = []

    def choose(steps: list[object]) -> str:
        if len(steps) == 2:
            process = household_java.process_id()
            assert process is not None
            killed.append(process)
            os.kill(process, signal.SIGKILL)
        return actions[len(steps)]

    with pytest.raises(OutageError):
        play(environment, task, choose)
    assert play(environment, task, lambda steps: actions[len(steps)]).observations == expected.observations
    assert household_java.process_id() not in (None, *killed)


def test_a_silent_java_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    household_java.shut_down()
    monkeypatch.setattr(household_java, "ANSWER_S", 6.0)
    monkeypatch.setattr(household_java, "END_S", 0.5)
    environment = Household()
    task = single(environment)
    environment.reset(task)
    process = household_java.process_id()
    assert process is not None
    os.kill(process, signal.SIGSTOP)
    with pytest.raises(OutageError, match="Java does not answer"):
        environment.step(environment.oracle(task))
    assert household_java.process_id() is None
    assert not os.path.exists(f"/proc/{process}")
    environment.reset(task)
    assert environment.step(environment.oracle(task)).info["success"]
    household_java.shut_down()


def test_java_that_does_not_start_is_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    household_java.shut_down()
    monkeypatch.setattr(household_java, "OPTIONS", ["-XX:NoSuchOption"])
    with pytest.raises(OutageError, match="Java did not start"):
        Household().reset(single(Household()))


@pytest.mark.parametrize("end", ["pass", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"])
def test_java_ends_with_its_process(end: str) -> None:
    code = (
        "from opd_evolver.environments import household_java\n"
        "household_java.Game().new(0)\n"
        "print(household_java.process_id(), flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code + end], capture_output=True, text=True, check=False)
    process = int(done.stdout)
    ends = time.monotonic() + 20
    while os.path.exists(f"/proc/{process}"):
        assert time.monotonic() < ends
        time.sleep(0.05)


def test_a_missing_engine_says_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(extras.EXTRAS, "household", ("textworld_express", "no_such_java"))
    with pytest.raises(extras.MissingExtra, match=r"no_such_java .*pip install 'opd-evolver\[household\]'"):
        registry.load("household")
