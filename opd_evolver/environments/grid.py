"""`grid`: rooms of minigrid, played with macro actions; what is asked for lies behind one of ten boxes and doors.

Hidden convention: which box or door holds a kind of thing. All ten look alike from outside, the others are empty.
Families beyond tips hide which parts a machine is built from, and in which order (`environments/procedures.py`).
Source: minigrid (Farama), extra `grid`; rooms, macros and wording ours.
Differs: each move has a room of its own, laid anew after a refused action.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from opd_evolver.environments import conventions as cv
from opd_evolver.environments import extras
from opd_evolver.environments import procedures as pr
from opd_evolver.environments import tasks as task_list
from opd_evolver.environments.attempts import Attempts, wording
from opd_evolver.environments.procedural import ProceduralDomain
from opd_evolver.errors import SetupError
from opd_evolver.records import Level, Step, Task
from opd_evolver.sections import NO_HEADROOM, HeadroomParams

if TYPE_CHECKING:
    from opd_evolver.environments.grid_engine import Layout, Room

# fmt: off
THINGS = (
    "hammer", "wrench", "drill", "saw", "chisel", "pliers", "ladder", "rope",
    "torch", "bucket", "shovel", "compass", "anchor", "whistle", "lantern", "magnet",
)
PROCEDURES = (
    pr.Procedure("skill", ("clock", "pump", "winch", "crane", "mill", "loom", "press", "forge"), 3),
    pr.Procedure("tool", ("robot", "engine", "radio", "turbine", "motor", "lathe", "boiler", "valve"), 3),
    pr.Procedure("trajectory", ("rover", "glider", "tram", "canoe", "kite", "sled", "buggy", "raft"), 4),
)
# fmt: on
PARTS = ("gear", "spring", "axle", "bolt", "cog")
COLORS = ("red", "green", "blue", "purple", "yellow")
BOXES = {f"{color}-box": color for color in COLORS}
DOORS = {f"{color}-door": color for color in COLORS}
SIDES = ("north", "south", "east", "west")
BENCHES = tuple(f"p{n}" for n in range(2, 10))
# An action has each at most once, in this order: two searches would try two places at once.
MACROS = ("search", "take", "put")


def _phrase(sub: cv.Sub) -> str:
    return f"{sub.key} {sub.arg}"


SPEC = cv.Domain(
    name="grid",
    slot=3,
    keys=THINGS,
    values=(*BOXES, *DOORS),
    distinct=False,
    args=SIDES,
    phrase=_phrase,
    steps=PARTS,
    step_args=BENCHES,
    procedures=PROCEDURES,
)


class Grid(ProceduralDomain):
    """The `grid` domain.

    Args:
        world_seed: fixes the conventions of all families.
        levels: home levels of the families, by turns.
        headroom: see `environments/headroom.py`.

    Raises:
        MissingExtra: minigrid is not installed.
    """

    domain = "grid"
    spec = SPEC

    def __init__(
        self, world_seed: int = 0, levels: Sequence[Level] = cv.TIPS_ONLY, headroom: HeadroomParams = NO_HEADROOM
    ) -> None:
        extras.require("grid")
        super().__init__(world_seed, levels, headroom)
        self._room: Room | None = None

    # ── Environment ──

    def reset(self, task: Task) -> str:
        """The first room of `task`; the first observation is the stage that an order begins with, else empty."""
        from opd_evolver.environments.grid_engine import Room

        self._task = task
        self._room = self._room or Room()
        self._attempts = Attempts(task_list.asked_of(self.spec, task))
        self._lay(task, self._room)
        return self._attempts.first

    def _lay(self, task: Task, room: Room) -> None:
        """The room of the current move."""
        moves = task_list.moves_of(task)
        if self._attempts.place < len(moves):
            move = moves[self._attempts.place]
            rng = cv.generator("room", task.scope, int(task.gold["world_seed"]), *move)
            room.lay(_layout(move, task_list.word_of(task, move)), int(rng.integers(2**31)))

    def step(self, action: str) -> Step:
        """Play one action of macros, `search red-box take rope put north`; then look whether the thing lies there."""
        if self._task is None or self._room is None:
            raise SetupError("step before reset", "reset(task) first")
        if self._attempts.over:
            return self._attempts.record(0.0)
        room = self._room
        macros = _parse(action, room.layout)
        if isinstance(macros, str):
            return self._attempts.record(0.0, macros, error=True)
        move = task_list.moves_of(self._task)[self._attempts.place]
        n_done = _played(room, macros)
        thing = task_list.word_of(self._task, move) if move.stage else move.key
        right = n_done == len(macros) and room.where(thing) == room.at[move.arg]
        step = self._attempts.record(float(right), "" if right else room.seen)
        self._lay(self._task, room)
        return step

    def close(self) -> None:
        """Free the room."""
        if self._room is not None:
            self._room.close()
            self._room = None

    # ── Procedural ──

    def action(self, sub: cv.Sub | cv.Move | cv.DemoSub, value: str) -> str:
        if self.spec.procedure(sub.key):
            return f"take {value} put {sub.arg}"
        return f"search {value} take {sub.key} put {sub.arg}"

    def observation(self, sub: cv.DemoSub, ok: bool, is_last: bool, rng: np.random.Generator) -> str:
        next_text = sub.again if not ok else "" if is_last else sub.next_text
        return wording("ok" if ok else "no", "" if ok or sub.stage else "empty", next_text)

    def words(self) -> tuple[str, ...]:
        spoken = (
            *MACROS,
            *["then", "next", "ok", "no", "empty", "error", "not", "a", "macro", "nothing", "called", "that", "here"],
        )
        return (
            *spoken,
            *THINGS,
            *BOXES,
            *DOORS,
            *SIDES,
            *cv.FIRST,
            *cv.SECOND,
            *self.spec.level_words(),
        )


def _layout(move: pr.Move, word: str) -> Layout:
    from opd_evolver.environments.grid_engine import Layout

    if move.stage:
        return Layout({}, {}, BENCHES, loose=PARTS)
    return Layout(BOXES, DOORS, SIDES, hidden=(move.key, word))


def _parse(action: str, layout: Layout) -> list[tuple[str, str]] | str:
    """The macros of an action with their objects, or what is wrong with it."""
    words = action.split()
    verbs, names = words[::2], words[1::2]
    if not words or len(verbs) != len(names) or any(verb not in MACROS for verb in verbs):
        return "not a macro"
    if len(set(verbs)) < len(verbs) or verbs != [verb for verb in MACROS if verb in verbs]:
        return "not a macro"
    known = {"search": {*layout.boxes, *layout.doors}, "take": {*THINGS, *PARTS}, "put": {*layout.places}}
    if any(name not in known[verb] for verb, name in zip(verbs, names, strict=True)):
        return "nothing called that here"
    return list(zip(verbs, names, strict=True))


def _played(room: Room, macros: Sequence[tuple[str, str]]) -> int:
    """How many macros could be done, one after the other."""
    play = {"search": room.search, "take": room.take, "put": room.put}
    for number, (verb, name) in enumerate(macros):
        if not play[verb](name):
            return number
    return len(macros)
