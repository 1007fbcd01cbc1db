"""The course of a scripted episode of the seed data: what is asked now, what was tried, what comes back. No engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from opd_evolver.environments import conventions as cv
from opd_evolver.environments.attempts import N_ATTEMPTS
from opd_evolver.environments.procedures import words_of
from opd_evolver.seed.facts import ERRORS, other, pick
from opd_evolver.seed.replies import Belief

Judge = Callable[[cv.DemoSub, str], bool]


class Course:
    """Plays the moves of a task as `Attempts` counts them.

    Args:
        domain: words the observations.
        task: its moves.
        right: whether a word answers a move.
        rng: the sample's generator.
    """

    def __init__(self, domain: cv.Procedural, task: cv.DemoTask, right: Judge, rng: np.random.Generator) -> None:
        self._domain, self._right, self._rng = domain, right, rng
        self._moves = task.subs
        self._place = self._used = 0
        # Words refused at this move, words found right at the earlier moves of the same order.
        self.refused: list[str] = []
        self.found: list[str] = []

    @property
    def over(self) -> bool:
        return self.won or self._used >= N_ATTEMPTS

    @property
    def won(self) -> bool:
        return self._place == len(self._moves)

    @property
    def move(self) -> cv.DemoSub:
        return self._moves[self._place]

    @property
    def place(self) -> int:
        """How many moves have been answered."""
        return self._place

    @property
    def choices(self) -> tuple[str, ...]:
        return self._domain.spec.choices(self.move.key)

    @property
    def spent(self) -> bool:
        """Whether the next refusal ends the episode."""
        return self._used + 1 >= N_ATTEMPTS

    def known_wrong(self, word: str) -> bool:
        """Whether the episode has shown that this word is not the one."""
        return word in self.refused or word in self.found

    def guess(self) -> str:
        """A word that was neither refused nor used before in the order."""
        return other(self.choices, [*self.refused, *self.found], self._rng)

    def attempt(self, word: str) -> str:
        """The observation after acting on a word."""
        move = self.move
        if self._right(move, word):
            self._place, self._used, self.refused = self._place + 1, 0, []
            self.found = [*self.found, word] if not self.won and self.move.stage > 1 else []
            return self._domain.observation(move, True, not move.next_text, self._rng)
        self._used += 1
        self.refused.append(word)
        told = move._replace(again="") if self.over else move
        return self._domain.observation(told, False, not move.next_text, self._rng)

    def fail(self) -> str:
        """The observation after an action that could not be run."""
        again = "" if self.spent else self.move.again
        self._used += 1
        error = pick(ERRORS, self._rng)
        return f"{error} next {again}" if again else error

    def run(self, belief: Belief) -> str:
        """The last observation of a tool's actions, played one after the other.

        What was tried is forgotten: the log tells it of no single action.
        """
        observation = ""
        for word in words_of(belief.value):
            if self.over:
                break
            observation = self.attempt(word)
        self.refused, self.found = [], []
        return observation


def follows(belief: Belief | None, course: Course) -> bool:
    """Whether a belief has a word for the current move that the episode has not shown to be wrong."""
    if belief is None:
        return False
    words: Sequence[str] = words_of(belief.value)
    stage = course.move.stage
    return not course.known_wrong(words[stage - 1] if stage else belief.value)
