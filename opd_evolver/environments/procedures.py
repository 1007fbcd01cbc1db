"""Conventions that a tip cannot carry: a hidden order of moves, found step by step.

A family of the level `skill`, `tool` or `trajectory` has keys whose value is no single word but an order,
`fee ; net ; tax`: so many different words of the domain's five. Each move is one action with two attempts
of its own, so exploring finds a whole order in 0.13 of the cases, as hard as a tip's value. A skill keeps the
order, a tool the actions with the argument left open (one call plays them all), a trajectory the whole log.
Source: ours.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import NamedTuple

from opd_evolver.records import Level

JOINT = " ; "
# What level-typed tasks add to the vocabulary beside keys, steps and arguments.
MAX_MOVES = 4
STAGES = tuple(f"s{n}" for n in range(1, MAX_MOVES + 1))
LEVEL_WORDS = (*STAGES, "run", "$1", "success", "partial")


class Move(NamedTuple):
    """One action of a sub-question. `stage` counts from 1 within an order; 0: the action is the whole answer."""

    key: str
    arg: str
    stage: int = 0


@dataclass(frozen=True)
class Procedure:
    """The keys of one level, and how many moves their orders have."""

    level: Level
    keys: tuple[str, ...]
    n_moves: int


@functools.cache
def orders(steps: tuple[str, ...], n_moves: int) -> tuple[str, ...]:
    """Every value that such a key can have."""
    return tuple(JOINT.join(order) for order in itertools.permutations(steps, n_moves))


def words_of(value: str) -> tuple[str, ...]:
    """The word of each move that a fact's value holds; one for a tip."""
    return tuple(value.split(JOINT))


def word_at(value: str, stage: int) -> str:
    """The word that the move at `stage` needs."""
    return value if stage == 0 else words_of(value)[stage - 1]


def moves(key: str, arg: str, value: str) -> tuple[Move, ...]:
    """The moves of a sub-question whose fact has this value."""
    n = len(words_of(value))
    return (Move(key, arg),) if n == 1 else tuple(Move(key, arg, stage) for stage in range(1, n + 1))
