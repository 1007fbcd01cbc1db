"""Families beyond tips: hidden orders of moves, as hard to find as a tip, and no short cut to them."""

from __future__ import annotations

from collections import Counter

import pytest

from opd_evolver.environments import conventions as cv
from opd_evolver.environments.apps import Apps
from opd_evolver.environments.check import check_env
from opd_evolver.environments.playing import play, random_values
from opd_evolver.environments.procedures import words_of
from opd_evolver.environments.shell import Shell
from opd_evolver.environments.sql import COLUMNS, TABLES, Sql, tables_of
from opd_evolver.environments.tasks import moves_of, subs_of, word_of
from opd_evolver.params import load_preset
from opd_evolver.records import LEVELS, Split, Task
from tests.task_worlds import AnyDomain, each_domain

DEPLOYED: tuple[Split, ...] = ("deploy-train", "deploy-val", "deploy-test")


def task_at(environment: AnyDomain, level: str, n_subs: int = 1) -> Task:
    """A task of a family at home in `level` whose first sub-question asks for that level."""
    return next(
        task
        for task in environment.tasks("deploy-test", 200)
        if len(subs_of(task)) == n_subs and environment.spec.level_of(subs_of(task)[0].key) == level
    )


def right_action(environment: AnyDomain, task: Task, place: int) -> str:
    move = moves_of(task)[place]
    return environment.action(move, word_of(task, move))


@pytest.mark.timeout(900)  # two thousand real commands of `shell`: 20 s on cores of their own
@each_domain
def test_worlds_of_all_levels_keep_the_protocol_and_the_floor(make: type[AnyDomain]) -> None:
    # A command of `shell` is two processes: a hundred tasks take minutes where other programs share the cores.
    n_tasks = 36 if make is Shell else 120
    report = check_env(make.domain, n_tasks, LEVELS)
    assert report.passed, report.problems
    assert report.homes == dict.fromkeys(sorted(LEVELS), 3)
    assert not any(split.headroom for split in report.splits.values())
    assert report.expert == 1.0
    too_few = [f"deploy-test tasks: {n_tasks}, at least 100 wanted"] if n_tasks < 100 else []
    assert list(report.below_floor) == too_few
    assert report.exploration is not None and report.exploration < 0.25
    assert report.exploration > 0.05 or n_tasks < 100


@each_domain
def test_homes_come_by_turns_and_decide_what_is_asked(make: type[AnyDomain]) -> None:
    environment = make(levels=LEVELS)
    worlds = cv.worlds(environment.spec, "deploy-train", 12)
    assert Counter(world.home for world in worlds) == dict.fromkeys(LEVELS, 3)
    for world in worlds:
        levels = Counter(environment.spec.level_of(key) for key in world.facts)
        assert levels == ({"tip": 6} if world.home == "tip" else {"tip": 2, world.home: 4})
        for key, value in world.facts.items():
            assert value in environment.values(key)
            assert len(set(words_of(value))) == len(words_of(value))
    tips = cv.worlds(make().spec, "deploy-train", 12)
    assert [w.scope for w in tips] == [w.scope for w in worlds]
    assert all(world.home == "tip" for world in tips)


@pytest.mark.parametrize("make", [Sql, Apps])  # the engines that play 1500 episodes in a second
def test_every_level_is_about_as_hard_to_explore(make: type[AnyDomain]) -> None:
    environment = make(levels=LEVELS)
    won: dict[str, list[bool]] = {level: [] for level in LEVELS}
    for task in environment.tasks("deploy-train", 1500):
        if len(subs_of(task)) == 1:
            level = environment.spec.level_of(subs_of(task)[0].key)
            won[level].append(play(environment, task, random_values(environment, task, repeat=False)).success)
    for name, found in won.items():
        assert 0.08 < sum(found) / len(found) < 0.27, (name, len(found))


@each_domain
def test_an_order_leads_on_asks_again_and_ends_after_two_refusals(make: type[AnyDomain]) -> None:
    environment = make(levels=LEVELS)
    task = task_at(environment, "skill")
    (sub,) = subs_of(task)
    wrong = next(w for w in environment.spec.steps if w not in words_of(task.gold["facts"][sub.key]))
    environment.reset(task)
    again = environment.step(environment.action(sub, wrong))
    assert again.observation.endswith(f"next {task.scope} {sub.key} s1") and again.reward == 0.0
    on = environment.step(right_action(environment, task, 0))
    assert on.observation.endswith(f"next {task.scope} {sub.key} s2") and on.reward == pytest.approx(1 / 3)
    unreadable = environment.step("nonsense")
    assert unreadable.observation.endswith(f"next {task.scope} {sub.key} s2")
    over = environment.step(environment.action(sub, wrong))
    assert over.terminated and not over.info["success"] and " next " not in over.observation


def tasks_with_orders(environment: AnyDomain, n: int) -> list[Task]:
    """Deployed tasks: all that ask two orders about the same argument, and a few others."""
    chosen = []
    for split in DEPLOYED:
        tasks = environment.tasks(split, n)
        subs = {task.task_id: subs_of(task) for task in tasks}
        twice = [
            task
            for task in tasks
            if all(environment.spec.procedure(sub.key) for sub in subs[task.task_id])
            and len(subs[task.task_id]) > len({sub.arg for sub in subs[task.task_id]})
        ]
        chosen += [*twice, *[task for task in tasks if len(subs[task.task_id]) == 2 and task not in twice][:1]]
    return chosen


# What changes nothing: right where an engine looks at the state alone, and that is the wanted one before the move.
IDLE = {"apps": ["call otp"], "shell": ["chmod 644 certs"]}


@each_domain
def test_no_other_action_is_right_at_any_stage(make: type[AnyDomain]) -> None:
    params = load_preset("laptop").environments
    environment = make(levels=params.levels, headroom=params.headroom)
    for task in tasks_with_orders(environment, 240 if make in (Apps, Shell) else 120):
        moves = moves_of(task)
        for number in range(max(len(environment.spec.choices(move.key)) for move in moves)):
            environment.reset(task)
            for move in moves:
                right = environment.action(move, word_of(task, move))
                said = [environment.action(move, word) for word in environment.spec.choices(move.key)]
                others = [*IDLE.get(environment.domain, ()), *(one for one in said if one != right)]
                wrong = environment.step(others[number % len(others)])
                assert not wrong.observation.startswith("ok") and wrong.info["score"] < 1, (task.text, move, number)
                step = environment.step(right)
                assert step.observation.startswith("ok"), (task.text, move, number)
            assert step.info["success"]
    environment.close()


def test_a_step_of_a_service_comes_alone_and_only_at_its_place() -> None:
    apps = Apps(levels=LEVELS)
    task = task_at(apps, "tool")
    (sub,) = subs_of(task)
    right = [apps.action(move, word_of(task, move)) for move in moves_of(task)]
    apps.reset(task)
    assert apps.step(" ".join(right[:2])).observation.startswith("error too many calls")
    other = next(item for item in apps.spec.step_args if item != sub.arg)
    assert apps.step(right[0].replace(sub.arg, other)).observation == "no"
    apps.reset(task)
    assert apps.step(right[1]).observation.startswith("no")
    assert [apps.step(action).info["success"] for action in right] == [False, False, True]


def test_a_tables_columns_hold_different_digits_and_a_wrong_table_says_nothing() -> None:
    for scope in ("zora", "malo"):
        for row in tables_of(scope, 0).values():
            assert len(set(row)) == len(COLUMNS)
    sql = Sql(levels=LEVELS)
    task = task_at(sql, "trajectory")
    sql.reset(task)
    assert sql.step(f"select {' , '.join(COLUMNS)} from {subs_of(task)[0].arg}").reward == 0.0
    plain = Sql()
    plain.reset(plain.tasks("deploy-test", 1)[0])
    assert plain.step(f"select fee from {TABLES[0]}").observation.startswith("error no such table")
