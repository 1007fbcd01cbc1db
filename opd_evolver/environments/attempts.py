"""The course of an episode with sub-questions: two attempts each, then the episode ends.

The rewards of an episode sum to R, the mean over sub-questions of the score of the last attempt:
a second attempt pays the difference to the first.
"""

from __future__ import annotations

from collections.abc import Sequence

from opd_evolver.records import Step

N_ATTEMPTS = 2
MAX_SHOWN_WORDS = 8
MAX_WORD_CHARS = 24


def shown_words(text: str) -> str:
    """Engine output as an observation may show it: one line, few words, no separator of the dialect."""
    words = text.replace("|", " ").split()
    short = [word[:MAX_WORD_CHARS] for word in words[:MAX_SHOWN_WORDS]]
    return " ".join(short + ["…"] * (len(words) > MAX_SHOWN_WORDS))


def wording(verdict: str, shown: str = "", next_text: str = "") -> str:
    """`ok 12`, `ok 12 next zora sum held`, `no 7`, `error near where`: engines and seed data share it."""
    return " ".join(part for part in (verdict, shown, f"next {next_text}" if next_text else "") if part)


class Attempts:
    """Keeps the place in a task's sub-questions and words the observations.

    Args:
        texts: sub-questions as they follow `next`, in order; at least one.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = tuple(texts)
        self._scores = [0.0] * len(self._texts)
        self._used = 0
        self.place = 0
        self.over = False

    @property
    def success(self) -> bool:
        return self.place == len(self._texts)

    def record(self, score: float, shown: str = "", *, error: bool = False) -> Step:
        """Count one attempt at the current sub-question.

        Args:
            score: in [0, 1]; only 1 goes on to the next sub-question.
            shown: what the engine said.
            error: the action could not be run.
        """
        if self.over:
            return self._step("error episode over", 0.0, 0.0)
        gained = (score - self._scores[self.place]) / len(self._texts)
        self._scores[self.place] = score
        self._used += 1
        next_text = ""
        if score >= 1.0:
            self.place, self._used = self.place + 1, 0
            next_text = "" if self.success else self._texts[self.place]
        self.over = self.success or self._used >= N_ATTEMPTS
        verdict = "error" if error else ("ok" if score >= 1.0 else "no")
        return self._step(wording(verdict, shown_words(shown), next_text), gained, score)

    def _step(self, observation: str, reward: float, score: float) -> Step:
        return Step(
            observation=observation,
            reward=reward,
            terminated=self.over,
            info={"success": self.success, "score": score, "progress": self.place / len(self._texts)},
        )
