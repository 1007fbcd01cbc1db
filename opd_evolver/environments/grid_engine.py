"""A room of minigrid and three macro actions in it: search, take, put. Every step under a macro is an engine's step.

The room has closets behind coloured doors, coloured boxes, loose parts, and places to put things (bare cells
with a name). Importing this file imports minigrid.
Source: minigrid (Farama); rooms and macros ours.
"""

from __future__ import annotations

import os
from collections import deque
from typing import NamedTuple

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")

from minigrid.core.grid import Grid
from minigrid.core.mission import MissionSpace
from minigrid.core.world_object import Ball, Box, Door
from minigrid.minigrid_env import MiniGridEnv

Cell = tuple[int, int]
WIDTH, HEIGHT = 11, 10
CLOSETS = tuple((x, 1) for x in range(1, WIDTH - 1, 2))
# No two of these touch, so that whatever lies there blocks no way.
SHELVES = tuple((x, y) for y in (4, 6, 8) for x in range(2, WIDTH - 1, 2))
PLACES = tuple((x, y) for y in (5, 7) for x in range(1, WIDTH - 1, 2))
STARTS = tuple((x, 3) for x in range(1, WIDTH - 1))
# As minigrid counts directions.
AHEAD: tuple[Cell, ...] = ((1, 0), (0, 1), (-1, 0), (0, -1))
MAX_STEPS = 100_000


class Layout(NamedTuple):
    """What a room holds.

    Args:
        boxes: their names and colours.
        doors: likewise.
        places: names of places.
        loose: things that lie about.
        hidden: a thing, and the box or door that it is behind.
    """

    boxes: dict[str, str]
    doors: dict[str, str]
    places: tuple[str, ...]
    loose: tuple[str, ...] = ()
    hidden: tuple[str, str] = ("", "")


class Thing(Ball):  # type: ignore[misc]
    """A ball with a name."""

    def __init__(self, name: str) -> None:
        super().__init__("blue")
        self.name = name


class Room(MiniGridEnv):  # type: ignore[misc]
    """One room at a time; `lay` makes the next one."""

    def __init__(self) -> None:
        self.layout = Layout({}, {}, ())
        self.at: dict[str, Cell] = {}
        self.seen = ""
        super().__init__(
            MissionSpace(mission_func=lambda: "bring what is asked"),
            width=WIDTH,
            height=HEIGHT,
            max_steps=MAX_STEPS,
            see_through_walls=True,
            agent_view_size=3,
        )

    def lay(self, layout: Layout, seed: int) -> None:
        """A new room; the seed decides where everything lies."""
        self.layout, self.seen = layout, ""
        self.reset(seed=seed)

    def _gen_grid(self, width: int, height: int) -> None:
        self.grid = Grid(width, height)
        self.grid.wall_rect(0, 0, width, height)
        for y in (1, 2):
            self.grid.horz_wall(0, y, width)
        self.at = {}
        thing, behind = self.layout.hidden
        closets, shelves = self._shuffled(CLOSETS), self._shuffled(SHELVES)
        for (name, color), (x, y) in zip(self.layout.doors.items(), closets, strict=False):
            self.at[name] = (x, y + 1)
            self.grid.set(x, y + 1, Door(color))
            self.grid.set(x, y, Thing(thing) if name == behind else None)
        for name, color in self.layout.boxes.items():
            self.at[name] = shelves.pop()
            self.grid.set(*self.at[name], Box(color, Thing(thing) if name == behind else None))
        for name in self.layout.loose:
            self.grid.set(*shelves.pop(), Thing(name))
        self.at |= zip(self.layout.places, self._shuffled(PLACES), strict=False)
        self.agent_pos = self._shuffled(STARTS)[0]
        self.agent_dir = int(self.np_random.integers(4))

    def _shuffled(self, cells: tuple[Cell, ...]) -> list[Cell]:
        return [cells[int(i)] for i in self.np_random.permutation(len(cells))]

    # ── macro actions; each tells whether it could be done ──

    def search(self, name: str) -> bool:
        """Walk to a box or door and open it; `seen` then tells what is there."""
        if not self._face(self.at[name]):
            return False
        self.step(self.actions.toggle)
        x, y = self.at[name]
        held = self.grid.get(x, y - 1) if name in self.layout.doors else self.grid.get(x, y)
        self.seen = "empty" if held is None else str(held.name)
        return True

    def take(self, name: str) -> bool:
        """Walk to a thing and pick it up; False where it is not in sight, or the hand is full."""
        found = self.where(name)
        if found is None or self.carrying is not None or not self._face(found):
            return False
        self.step(self.actions.pickup)
        return self.carrying is not None

    def put(self, name: str) -> bool:
        """Walk to a place and put down there what is in the hand."""
        if self.carrying is None or not self._face(self.at[name]):
            return False
        self.step(self.actions.drop)
        return self.carrying is None

    def where(self, name: str) -> Cell | None:
        """Where a thing lies in the open or in a closet."""
        for place, held in enumerate(self.grid.grid):
            if isinstance(held, Thing) and held.name == name:
                return place % WIDTH, place // WIDTH
        return None

    def _face(self, target: Cell) -> bool:
        """Walk next to a cell by the shortest way and turn to it."""
        way = self._way(target)
        if way is None:
            return False
        for cell in [*way, target]:
            x, y = (int(c) for c in self.agent_pos)
            wanted = AHEAD.index((cell[0] - x, cell[1] - y))
            while self.agent_dir != wanted:
                turn = self.actions.right if (wanted - self.agent_dir) % 4 < 3 else self.actions.left
                self.step(turn)
            if cell != target:
                self.step(self.actions.forward)
        return True

    def _way(self, target: Cell) -> list[Cell] | None:
        """Cells to walk over, to end next to `target`."""
        start = (int(self.agent_pos[0]), int(self.agent_pos[1]))
        came: dict[Cell, Cell | None] = {start: None}
        waiting = deque([start])
        while waiting:
            here = waiting.popleft()
            if abs(here[0] - target[0]) + abs(here[1] - target[1]) == 1:
                way: list[Cell] = []
                step: Cell | None = here
                while step is not None and step != start:
                    way.append(step)
                    step = came[step]
                return way[::-1]
            for dx, dy in AHEAD:
                there = (here[0] + dx, here[1] + dy)
                held = self.grid.get(*there)
                if there not in came and there != target and (held is None or held.can_overlap()):
                    came[there] = here
                    waiting.append(there)
        return None
