"""`grid`: macros over a real engine; only what is physically done counts, and one action searches one thing."""

from __future__ import annotations

import pytest

from opd_evolver.environments import extras, registry
from opd_evolver.environments.grid import BENCHES, BOXES, DOORS, PARTS, SIDES, Grid
from opd_evolver.environments.tasks import subs_of
from opd_evolver.records import LEVELS, Task
from tests.task_worlds import needs

pytestmark = needs("grid")


def single(environment: Grid, value: str | None = None) -> Task:
    """A task with one sub-question whose thing lies in `value`."""
    for task in environment.tasks("deploy-train", 400):
        subs = subs_of(task)
        if len(subs) == 1 and value in (None, task.gold["facts"][subs[0].key]):
            return task
    raise AssertionError(f"no task about {value}")


@pytest.mark.parametrize("inside", ["red-box", "green-door"])
def test_only_the_right_box_or_door_leads_to_the_thing(inside: str) -> None:
    environment = Grid()
    task = single(environment, inside)
    (sub,) = subs_of(task)
    for value in (*BOXES, *DOORS):
        environment.reset(task)
        step = environment.step(environment.action(sub, value))
        assert step.observation == ("ok" if value == inside else "no empty")
        assert step.info["success"] == (value == inside)


def test_it_must_be_searched_taken_and_put_where_it_was_asked() -> None:
    environment = Grid()
    task = single(environment)
    (sub,) = subs_of(task)
    inside = task.gold["facts"][sub.key]
    elsewhere = next(side for side in SIDES if side != sub.arg)

    def says(action: str) -> str:
        environment.reset(task)
        return environment.step(action).observation

    assert says(f"search {inside} take {sub.key} put {sub.arg}") == "ok"
    assert says(f"search {inside} take {sub.key} put {elsewhere}") == f"no {sub.key}"
    assert says(f"search {inside} take {sub.key}") == f"no {sub.key}"
    assert says(f"search {inside}") == f"no {sub.key}"
    assert says(f"take {sub.key} put {sub.arg}") == "no"
    assert says(f"put {sub.arg}") == "no"


@pytest.mark.parametrize(
    "action",
    [
        "search red-box search blue-box",
        "take rope search red-box",
        "search red-box take rope put north put south",
        "search",
        "search red-box take",
        "go north",
        "",
        "search red-box\x00",
    ],
)
def test_what_is_no_series_of_macros_is_refused(action: str) -> None:
    environment = Grid()
    task = single(environment)
    environment.reset(task)
    assert environment.step(action).observation.startswith("error ")
    assert environment.step(environment.oracle(task)).info["success"]


def test_unknown_names_are_refused() -> None:
    environment = Grid()
    environment.reset(single(environment))
    assert environment.step("search pink-box").observation == "error nothing called that here"
    assert environment.step(f"put {BENCHES[0]}").observation == "error nothing called that here"


def test_steps_under_a_macro_are_the_engines_and_end_next_to_the_thing() -> None:
    from opd_evolver.environments.grid_engine import SHELVES, Layout, Room

    room = Room()
    for seed in range(40):
        room.lay(Layout(BOXES, DOORS, SIDES, hidden=("rope", "blue-door")), seed)
        assert len(set(room.at.values())) == len(BOXES) + len(DOORS) + len(SIDES)
        assert room.where("rope") == (room.at["blue-door"][0], 1)
        assert not room.take("rope")
        assert room.search("blue-door") and room.seen == "rope" and room.take("rope")
        assert room.carrying.name == "rope" and room.where("rope") is None
        assert not room.take("rope")
        assert room.put("east") and room.where("rope") == room.at["east"]
        assert room.step_count >= 8
    room.lay(Layout({}, {}, BENCHES, loose=PARTS), 3)
    assert {room.where(part) for part in PARTS} <= set(SHELVES)
    room.close()


def test_rooms_are_the_same_each_time_and_differ_between_moves() -> None:
    environment, other = Grid(levels=LEVELS), Grid(levels=LEVELS)
    places = []
    for task in environment.tasks("deploy-test", 8):
        environment.reset(task)
        other.reset(task)
        assert environment._room is not None and other._room is not None
        assert environment._room.at == other._room.at
        places.append(tuple(environment._room.at.items()))
    assert len(set(places)) == len(places)


def test_a_missing_engine_says_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(extras.EXTRAS, "grid", ("no_such_module", "minigrid"))
    with pytest.raises(
        extras.MissingExtra, match=r"no_such_module is not installed.*pip install 'opd-evolver\[grid\]'"
    ):
        registry.load("grid")
