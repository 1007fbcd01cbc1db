"""The course of an episode with sub-questions: two attempts each, then the episode ends.

The rewards of an episode sum to R, the mean over sub-questions of the score of the last attempt:
a second attempt pays the difference to the first. A sub-question that asks for an order of moves has two
attempts at each move, and its share of R is spread over them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from opd_evolver.records import Step

N_ATTEMPTS = 2
MAX_SHOWN_WORDS = 8
MAX_WORD_CHARS = 24


def cut(words: Sequence[str], most: int) -> str:
    """The first words, none longer than `MAX_WORD_CHARS`; `…` marks that there were more."""
    short = [word[:MAX_WORD_CHARS] for word in words[:most]]
    return " ".join(short + ["…"] * (len(words) > most))


def shown_words(text: str) -> str:
    """Engine output as an observation may show it: one line, few words, no separator of the dialect."""
    return cut(text.replace("|", " ").split(), MAX_SHOWN_WORDS)


def wording(verdict: str, shown: str = "", next_text: str = "") -> str:
    """`ok 12`, `ok 12 next zora sum held`, `no 7`, `error near where`: engines and seed data share it."""
    return " ".join(part for part in (verdict, shown, f"next {next_text}" if next_text else "") if part)


class Asked(NamedTuple):
    """One thing asked: as it follows `next`, what is repeated when it is refused, its share of the return."""

    text: str
    again: str = ""
    weight: float = 1.0


class Attempts:
    """Keeps the place in what a task asks and words the observations.

    Args:
        asked: sub-questions, or their moves where they have several, in order; at least one.
    """

    def __init__(self, asked: Sequence[Asked]) -> None:
        self._asked = tuple(asked)
        self._scores = [0.0] * len(self._asked)
        self._used = 0
        self.place = 0
        self.over = False

    @property
    def first(self) -> str:
        """The first observation: the stage that an order begins with, empty for a tip."""
        return self._asked[0].again

    @property
    def success(self) -> bool:
        return self.place == len(self._asked)

    def record(self, score: float, shown: str = "", *, error: bool = False) -> Step:
        """Count one attempt at what is asked now.

        Args:
            score: in [0, 1]; only 1 goes on.
            shown: what the engine said.
            error: the action could not be run.
        """
        if self.over:
            return self._step("error episode over", 0.0, 0.0)
        current = self._asked[self.place]
        gained = (score - self._scores[self.place]) * current.weight
        self._scores[self.place] = score
        self._used += 1
        next_text = current.again
        if score >= 1.0:
            self.place, self._used = self.place + 1, 0
            next_text = "" if self.success else self._asked[self.place].text
        self.over = self.success or self._used >= N_ATTEMPTS
        verdict = "error" if error else ("ok" if score >= 1.0 else "no")
        return self._step(wording(verdict, shown_words(shown), "" if self.over else next_text), gained, score)

    def _step(self, observation: str, reward: float, score: float) -> Step:
        return Step(
            observation=observation,
            reward=reward,
            terminated=self.over,
            info={"success": self.success, "score": score, "progress": self.place / len(self._asked)},
        )
