"""Plays episodes without a policy: scripted expert, random values, bad actions. For `check_env`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from opd_evolver.environments.conventions import Procedural, generator
from opd_evolver.environments.protocol import Environment
from opd_evolver.environments.tasks import moves_of
from opd_evolver.errors import OpdError
from opd_evolver.records import Step, Task

MAX_STEPS = 50
BAD_ACTIONS = (
    "",
    "   ",
    "nonsense",
    "| do none",
    "line one\nline two",
    "nul \x00 byte",
    "lone \ud800 half",
    "x" * 20_000,
)

Choose = Callable[[list[Step]], str]
T = TypeVar("T")


@dataclass
class Transcript:
    """One episode: its observations, the first one from `reset`, and its steps; `fault` is what broke it off."""

    first: str = ""
    steps: list[Step] = field(default_factory=list)
    seconds: float = 0.0
    fault: str = ""

    @property
    def observations(self) -> list[str]:
        return [self.first, *(step.observation for step in self.steps)]

    @property
    def episode_return(self) -> float:
        return sum(step.reward for step in self.steps)

    @property
    def ended(self) -> bool:
        return bool(self.steps) and (self.steps[-1].terminated or self.steps[-1].truncated)

    @property
    def success(self) -> bool:
        return bool(self.steps) and self.steps[-1].info.get("success") is True


def play(environment: Environment, task: Task, choose: Choose) -> Transcript:
    """One episode, at most `MAX_STEPS` long; `choose` sees the steps so far.

    Raises:
        OpdError: as the environment does; whatever else it raises is the transcript's `fault`.
    """
    began = time.perf_counter()
    transcript = Transcript()
    try:
        transcript.first = _typed(environment.reset(task), str, "reset")
        while len(transcript.steps) < MAX_STEPS and not transcript.ended:
            transcript.steps.append(_typed(environment.step(choose(transcript.steps)), Step, "step"))
    except OpdError:
        raise
    except Exception as error:
        transcript.fault = f"an episode raised {type(error).__name__}: {error}"
    transcript.seconds = time.perf_counter() - began
    return transcript


def _typed(returned: T, kind: type[T], method: str) -> T:
    """What a world's method returned, if it is of the promised kind."""
    if not isinstance(returned, kind):
        raise TypeError(f"{method} returned a {type(returned).__name__}, no {kind.__name__}")
    return returned


def bad_actions(shift: int) -> Choose:
    """Actions no engine can run, beginning at another one for each task."""
    return lambda steps: BAD_ACTIONS[(shift + len(steps)) % len(BAD_ACTIONS)]


def random_values(domain: Procedural, task: Task, *, repeat: bool) -> Choose:
    """An agent that knows the mechanics but no convention.

    Args:
        domain: the procedural domain.
        task: what is played.
        repeat: draw values independently (the chance level); else never try a value that was refused or,
            in the same order, already right (all that exploring alone can reach).
    """
    rng = generator("check", task.task_id, repeat)
    moves = moves_of(task)
    words: list[str] = []
    order: dict[int, Sequence[str]] = {}
    tried: dict[int, int] = {}

    def choose(steps: list[Step]) -> str:
        place = min(round(steps[-1].info["progress"] * len(moves)), len(moves) - 1) if steps else 0
        move = moves[place]
        if len(words) <= place:
            words.append("")
        if repeat:
            values = domain.spec.choices(move.key)
            return domain.action(move, values[int(rng.integers(len(values)))])
        if place not in order:
            used = words[place - move.stage + 1 : place] if move.stage else []
            values = tuple(value for value in domain.spec.choices(move.key) if value not in used)
            order[place] = [values[int(i)] for i in rng.permutation(np.arange(len(values)))]
        at = tried[place] = tried.get(place, -1) + 1
        words[place] = order[place][at % len(order[place])]
        return domain.action(move, words[place])

    return choose
