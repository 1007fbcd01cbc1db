"""What distinguishes one procedural domain from another: its keys, values, orders and their wording."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from opd_evolver.environments import procedures as pr
from opd_evolver.environments.procedures import Move, Procedure
from opd_evolver.records import Level
from opd_evolver.sections import NO_HEADROOM, HeadroomParams

TIPS_ONLY: tuple[Level, ...] = ("tip",)


class Sub(NamedTuple):
    """A sub-question: the key whose convention it needs, and its argument."""

    key: str
    arg: str


@dataclass(frozen=True)
class Domain:
    """What distinguishes one procedural domain from another.

    Args:
        name: the environment's name.
        slot: its share of the deployed and novel names, below `N_SLOTS`; no two domains have the same.
        keys: pool that the `N_FACTS` keys of a world are drawn from.
        values: pool of values.
        distinct: whether the values of a world differ from each other.
        args: arguments of a sub-question.
        phrase: words of a sub-question, without the scope.
        steps: words that the moves of an order choose from.
        step_args: arguments of a sub-question that asks for an order.
        procedures: keys by level, beyond tips.
        levels: home levels of the families, by turns; `("tip",)` leaves the procedures out.
        headroom: what only outcomes can teach, see `environments/headroom.py`.
    """

    name: str
    slot: int
    keys: tuple[str, ...]
    values: tuple[str, ...]
    distinct: bool
    args: tuple[str, ...]
    phrase: Callable[[Sub], str]
    steps: tuple[str, ...] = ()
    step_args: tuple[str, ...] = ()
    procedures: tuple[Procedure, ...] = ()
    levels: tuple[Level, ...] = TIPS_ONLY
    headroom: HeadroomParams = NO_HEADROOM

    def at(self, levels: Sequence[Level], headroom: HeadroomParams = NO_HEADROOM) -> Domain:
        """The same domain with families of these home levels, and with this headroom."""
        return replace(self, levels=tuple(levels), headroom=headroom)

    def procedure(self, key: str) -> Procedure | None:
        """What orders `key` has; None for a tip's key."""
        return next((one for one in self.procedures if key in one.keys), None)

    def level_of(self, key: str) -> Level:
        """The level that carries `key` best."""
        found = self.procedure(key)
        return found.level if found else "tip"

    def args_of(self, key: str) -> tuple[str, ...]:
        """Arguments of a sub-question about `key`."""
        return self.step_args if self.procedure(key) else self.args

    def choices(self, key: str) -> tuple[str, ...]:
        """Words that one move may take; a tip's values."""
        return self.steps if self.procedure(key) else self.values

    def values_of(self, key: str) -> tuple[str, ...]:
        """Values that `key` can have."""
        found = self.procedure(key)
        return pr.orders(self.steps, found.n_moves) if found else self.values

    def asked(self, scope: str, move: Move) -> str:
        """A move as it stands after `next`: the sub-question, or its stage."""
        if move.stage > 1:
            return self.again(scope, move)
        return f"{scope} {self.phrase(Sub(move.key, move.arg))}"

    def again(self, scope: str, move: Move) -> str:
        """What an observation repeats after a refused move of an order; empty for a tip."""
        return f"{scope} {move.key} s{move.stage}" if move.stage else ""

    def level_words(self) -> tuple[str, ...]:
        """Words that families beyond tips add to the vocabulary; none when there are no such families."""
        if self.levels == TIPS_ONLY:
            return ()
        keys = (key for one in self.procedures for key in one.keys)
        return (*pr.LEVEL_WORDS, *keys, *self.steps, *self.step_args)
