"""What all procedural domains share: tasks, facts and the expert, given the domain's description and its engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from opd_evolver.environments import conventions as cv
from opd_evolver.environments import headroom as hr
from opd_evolver.environments import tasks as task_list
from opd_evolver.environments.attempts import Asked, Attempts
from opd_evolver.records import Content, Fact, Level, Split, Task
from opd_evolver.sections import NO_HEADROOM, HeadroomParams


class ProceduralDomain(ABC):
    """Base of the built-in domains; the engine (`reset`, `step`, `close`) and the wording are theirs.

    Args:
        world_seed: fixes the conventions and the data of all families.
        levels: home levels of the families, by turns.
        headroom: what only outcomes can teach, see `environments/headroom.py`.
    """

    spec: cv.Domain

    def __init__(
        self, world_seed: int = 0, levels: Sequence[Level] = cv.TIPS_ONLY, headroom: HeadroomParams = NO_HEADROOM
    ) -> None:
        self.world_seed = world_seed
        self.spec = self.spec.at(levels, headroom)
        self._task: Task | None = None
        self._attempts = Attempts([Asked("")])

    def tasks(self, split: Split, n: int, seed: int = 0) -> tuple[Task, ...]:
        """See `environments/tasks.py`."""
        return task_list.tasks(self.spec, split, n, seed, self.world_seed)

    # ── Oracle, Conventions and Notes ──

    def oracle(self, task: Task) -> str:
        """The right action for the current move."""
        moves = task_list.moves_of(task)
        move = moves[min(self._attempts.place, len(moves) - 1)]
        return self.action(move, task_list.word_of(task, move))

    def facts(self, task: Task) -> tuple[Fact, ...]:
        return task_list.facts_of(task)

    def needed(self, task: Task) -> tuple[Fact, ...]:
        return task_list.needed_facts(task)

    def noted(self, task: Task, content: Content) -> Content:
        """See `headroom.noted`."""
        return hr.noted(self.spec, task.scope, content)

    # ── Procedural ──

    def demo(self, world: cv.World, rng: np.random.Generator) -> cv.DemoTask:
        return cv.demo_task(self.spec, world, rng)

    def values(self, key: str) -> tuple[str, ...]:
        return self.spec.values_of(key)

    @abstractmethod
    def action(self, sub: cv.Sub | cv.Move | cv.DemoSub, value: str) -> str:
        """See `conventions.Procedural`."""
