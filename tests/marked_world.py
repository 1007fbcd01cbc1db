"""A finished round in real environments whose gold carries a canary and whose test splits may be lost."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import finished_run

from opd_evolver import step
from opd_evolver.environments import registry
from opd_evolver.records import Level, Split, Step, Task

CANARY = "canarygold"


class Marked:
    """A real environment whose gold carries a canary, whose test splits may be lost, and which notes what is asked."""

    def __init__(self, name: str, asked: set[str], lost: Sequence[Split]) -> None:
        self._env, self._asked, self._lost = _LOAD(name), asked, lost
        self._task: Task | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)

    def tasks(self, split: Split, n: int, seed: int = 0) -> list[Task]:
        self._asked.add(split)
        found = self._env.tasks(split, n, seed)
        return [one.model_copy(update={"gold": {**one.gold, CANARY: [CANARY]}}) for one in found]

    def reset(self, task: Task) -> str:
        self._task = task
        return self._env.reset(task)

    def step(self, action: str) -> Step:
        played = self._env.step(action)
        if self._task is None or self._task.split not in self._lost:
            return played
        return played.model_copy(update={"reward": 0.0, "info": {**played.info, "success": False}})


_LOAD = registry.load


class World:
    """A finished round in marked environments."""

    def __init__(self, folder: Path, lost: Sequence[Split] = ()) -> None:
        self.asked: dict[str, set[str]] = defaultdict(set)
        self._step = ""
        run_step = step.run

        def noting(job: step.Job) -> step.StepResult:
            self._step = job.step
            return run_step(job)

        def load(name: str, levels: Sequence[Level] = (), headroom: object = None) -> Marked:
            return Marked(name, self.asked[self._step], lost)

        with patch.object(step, "run", noting), patch.object(registry, "load", load):
            self.run = finished_run.build(folder / "project", finished_run.policy_folder(folder))
        self.root = self.run.root
        summary = self.run.summary(1)
        assert summary is not None
        self.gate, self.columns = summary["gate"], summary["measurement"]["columns"]
