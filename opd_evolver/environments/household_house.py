"""Houses of textworld-express: their rooms, places and item, walked through once, and an agent's hands in one."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import NamedTuple

from opd_evolver.environments.household_java import Game, Seen
from opd_evolver.errors import SetupError

BACK = {"north": "south", "south": "north", "east": "west", "west": "east"}
ROOM = re.compile(r"You are in the ([a-z ]+?)\.")
Way = tuple[str, ...]  # directions, one a room


class Place(NamedTuple):
    """Somewhere an item can be put; `way` leads there from the first room."""

    way: Way
    name: str


class House(NamedTuple):
    """What is in a house.

    Args:
        number: of the engine's game.
        item: what is to be put away, in the engine's words.
        way: from the first room to the item.
        usual: places that the engine accepts for the item.
        others: places that it does not accept.
    """

    number: int
    item: str
    way: Way
    usual: tuple[Place, ...]
    others: tuple[Place, ...]


def _rooms(game: Game, way: Way = (), known: set[str] | None = None) -> Iterator[tuple[Way, Seen]]:
    """Walk through all rooms and back; whoever iterates may act in each."""
    known = set() if known is None else known
    seen = game.do("look around")
    found = ROOM.match(seen.text)
    if found is None or found[1] in known:
        return
    known.add(found[1])
    yield way, seen
    for action in seen.actions:
        direction = action.removeprefix("move ")
        if direction in BACK and (not way or direction != BACK[way[-1]]):
            game.do(action)
            yield from _rooms(game, (*way, direction), known)
            game.do(f"move {BACK[direction]}")


def survey(game: Game, number: int) -> House:
    """Walk through the house of this number, try every place, and say what is where.

    Raises:
        SetupError: it has no item: another version of textworld-express.
    """
    game.new(number)
    item, at = "", Way()
    for way, seen in _rooms(game):
        for action in seen.actions:
            if action.startswith("take "):
                item, at = action.removeprefix("take "), way
                game.do(action)
    if not item:
        raise SetupError(f"house {number} of textworld-express has no item", "version 1.1", "install that version")
    usual: list[Place] = []
    others: list[Place] = []
    for way, seen in _rooms(game):
        for action in seen.actions:
            if action.startswith("open "):
                game.do(action)
        for action in game.do("look around").actions:
            if action.startswith(f"put {item} in "):
                place = Place(way, action.removeprefix(f"put {item} in "))
                (usual if game.do(action).success else others).append(place)
                game.do(f"take {item}")
    return House(number, item, at, tuple(usual), tuple(others))


class Hands:
    """An agent in a house: carries the item from where it is to a place, by the engine's own actions.

    Args:
        game: is begun anew.
        house: what `survey` found in it.
    """

    def __init__(self, game: Game, house: House) -> None:
        self._game, self._house = game, house
        self._here: Way = ()
        self._item_at: Way = house.way
        self.n_actions = 0
        game.new(house.number)

    def put(self, place: Place) -> Seen:
        """Fetch the item and put it into `place`; what the engine says at the end."""
        self._walk(self._item_at)
        self._do(f"take {self._house.item}")
        seen = self._walk(place.way) or self._do("look around")
        if f"open {place.name}" in seen.actions:
            self._do(f"open {place.name}")
        self._item_at = place.way
        return self._do(f"put {self._house.item} in {place.name}")

    def _walk(self, way: Way) -> Seen | None:
        shared = 0
        while shared < min(len(way), len(self._here)) and way[shared] == self._here[shared]:
            shared += 1
        steps = [BACK[direction] for direction in reversed(self._here[shared:])] + list(way[shared:])
        seen = None
        for direction in steps:
            seen = self._do(f"move {direction}")
        self._here = way
        return seen

    def _do(self, action: str) -> Seen:
        self.n_actions += 1
        return self._game.do(action)


@functools.cache
def surveyed(number: int) -> House:
    """The house of this number; walked through once in a process, in a game of its own."""
    return survey(Game(), number)
