"""`household`: TextWorld Commonsense on textworld-express, with every item and place renamed.

Hidden convention: in which place a kind of thing belongs in this house. Behind the names stand the engine's items and
places; the engine's own score decides, common sense cannot help, since no name tells what stands behind it. Families
beyond tips hide through which places a thing must go, and in which order (`environments/procedures.py`).
Source: textworld-express (Jansen), game `twc`, extra `household`; names, macro and wording ours.
Differs: one macro action `put` fetches, walks, opens and puts; a new house for each thing.
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
    from opd_evolver.environments.household_house import Hands, House, Place
    from opd_evolver.environments.household_java import Game

# fmt: off
THINGS = (
    "mug", "comb", "soap", "sock", "plate", "spoon", "towel", "pillow",
    "candle", "brush", "jar", "cup", "hat", "scarf", "kettle", "blanket",
)
PLACES = ("shelf", "drawer", "basket", "closet", "crate", "hamper", "trunk", "rack", "hutch", "cabinet")
PROCEDURES = (
    pr.Procedure("skill", ("launder", "bleach", "dye", "rinse", "starch", "mend", "soak", "scrub"), 3),
    pr.Procedure("tool", ("polish", "dust", "wax", "air", "tidy", "stack", "wrap", "trim"), 3),
    pr.Procedure("trajectory", ("cook", "bake", "brew", "roast", "pickle", "ferment", "smoke", "cure"), 4),
)
# fmt: on
STATIONS = ("basin", "tub", "dryer", "iron", "hanger")
LOOKS = ("big", "small", "old", "new", "wet", "dry", "long", "flat")
PIECES = tuple(f"h{n}" for n in range(2, 10))
N_HOUSES = 24


def _phrase(sub: cv.Sub) -> str:
    return f"{sub.key} {sub.arg}" if sub.arg in PIECES else f"{sub.arg} {sub.key}"


SPEC = cv.Domain(
    name="household",
    slot=4,
    keys=THINGS,
    values=PLACES,
    distinct=False,
    args=LOOKS,
    phrase=_phrase,
    steps=STATIONS,
    step_args=PIECES,
    procedures=PROCEDURES,
)


class Household(ProceduralDomain):
    """The `household` domain.

    Args:
        world_seed: fixes the conventions of all families.
        levels: home levels of the families, by turns.
        headroom: see `environments/headroom.py`.

    Raises:
        MissingExtra: textworld-express or its Java is not installed.
    """

    domain = "household"
    spec = SPEC

    def __init__(
        self, world_seed: int = 0, levels: Sequence[Level] = cv.TIPS_ONLY, headroom: HeadroomParams = NO_HEADROOM
    ) -> None:
        extras.require("household")
        super().__init__(world_seed, levels, headroom)
        self._game: Game | None = None
        self._hands: Hands | None = None
        self._named: dict[str, Place] = {}

    # ── Environment ──

    def reset(self, task: Task) -> str:
        """The first house of `task`; the first observation is the stage that an order begins with, else empty.

        Raises:
            OutageError: Java does not start or answer; the next call starts another.
        """
        self._task = task
        self._attempts = Attempts(task_list.asked_of(self.spec, task))
        self._enter(task)
        return self._attempts.first

    def _enter(self, task: Task) -> None:
        """A new house where the current move begins something; the moves of an order share one."""
        from opd_evolver.environments import household_house as houses
        from opd_evolver.environments.household_java import Game

        moves = task_list.moves_of(task)
        if self._attempts.place == len(moves) or moves[self._attempts.place].stage > 1:
            return
        if self._game is None or not self._game.lives:
            self._game = Game()
        move = moves[self._attempts.place]
        rng = cv.generator("house", task.scope, int(task.gold["world_seed"]), move.key, move.arg)
        house = houses.surveyed(int(rng.integers(N_HOUSES)))
        self._named = _named(house, move, task_list.word_of(task, move), rng)
        self._hands = houses.Hands(self._game, house)

    def step(self, action: str) -> Step:
        """Play one macro, `put big mug shelf`; the engine's score, or for an order its next place, decides.

        Raises:
            OutageError: Java died or is silent.
        """
        if self._task is None or self._hands is None:
            raise SetupError("step before reset", "reset(task) first")
        if self._attempts.over:
            return self._attempts.record(0.0)
        move = task_list.moves_of(self._task)[self._attempts.place]
        words = action.split()
        thing = ["put", move.arg] if move.stage else ["put", move.arg, move.key]
        if words[:1] != ["put"] or len(words) != len(thing) + 1:
            return self._attempts.record(0.0, "not a macro", error=True)
        if words[:-1] != thing or words[-1] not in self._named:
            return self._attempts.record(0.0, "nothing called that here", error=True)
        seen = self._hands.put(self._named[words[-1]])
        if move.stage:
            right = seen.text.startswith("You put ") and words[-1] == task_list.word_of(self._task, move)
        else:
            right = seen.success
        step = self._attempts.record(float(right))
        if right:
            self._enter(self._task)
        return step

    def close(self) -> None:
        """Leave the house; the Java process serves other instances and ends with ours."""
        self._game = self._hands = None

    # ── Procedural ──

    def action(self, sub: cv.Sub | cv.Move | cv.DemoSub, value: str) -> str:
        if self.spec.procedure(sub.key):
            return f"put {sub.arg} {value}"
        return f"put {sub.arg} {sub.key} {value}"

    def observation(self, sub: cv.DemoSub, ok: bool, is_last: bool, rng: np.random.Generator) -> str:
        next_text = sub.again if not ok else "" if is_last else sub.next_text
        return wording("ok" if ok else "no", "", next_text)

    def words(self) -> tuple[str, ...]:
        spoken = "put then next ok no error not a macro nothing called that here"
        return (
            *spoken.split(),
            *THINGS,
            *PLACES,
            *LOOKS,
            *cv.FIRST,
            *cv.SECOND,
            *self.spec.level_words(),
        )


def _named(house: House, move: pr.Move, word: str, rng: np.random.Generator) -> dict[str, Place]:
    """Which of the house's places stands behind each name; the hidden one behind `word`."""
    if move.stage:
        places = [*house.usual, *house.others]
        return {name: places[int(i)] for name, i in zip(STATIONS, rng.permutation(len(places)), strict=False)}
    usual = house.usual[int(rng.integers(len(house.usual)))]
    others = [house.others[int(i)] for i in rng.permutation(len(house.others))]
    names = [name for name in PLACES if name != word]
    return {word: usual, **dict(zip(names, others, strict=False))}
