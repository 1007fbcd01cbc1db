"""The one protocol of task worlds: Gymnasium-shaped, with tasks and splits.

Budgets, truncation and parsing live in the runner, so an environment stays under 50 lines.
Source: ours; Gymnasium has no task, family or split (see docs/environments.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from opd_evolver.records import Content, Fact, Split, Step, Task, ToolContent


@runtime_checkable
class Environment(Protocol):
    """One domain. An instance plays one episode at a time; `reset` starts the next."""

    domain: str

    def tasks(self, split: Split, n: int, seed: int = 0) -> Sequence[Task]:
        """The first `n` tasks of a split; the same (split, n, seed) gives the same tasks, and n is a prefix of n+1.

        Fewer where the split has no more, but deploy-train must have those of all rounds: every round plays
        `fast.tasks_per_domain` of its own, and a run stops at the round that lacks them.
        """
        ...

    def reset(self, task: Task) -> str:
        """Start `task`; the first observation (may be empty). Deterministic. OutageError when the engine is down."""
        ...

    def step(self, action: str) -> Step:
        """Apply one action. A bad action is an observation, never an exception."""
        ...

    def close(self) -> None:
        """Free the engine."""
        ...


@runtime_checkable
class Oracle(Protocol):
    """Optional: a scripted expert that knows the gold."""

    def oracle(self, task: Task) -> str:
        """The next right action in the running episode of `task`."""
        ...


@runtime_checkable
class Conventions(Protocol):
    """Optional: procedural domains whose hidden facts are known to the seed data and the probes (never to an agent)."""

    def facts(self, task: Task) -> tuple[Fact, ...]:
        """Every fact of the task's scope."""
        ...

    def needed(self, task: Task) -> tuple[Fact, ...]:
        """The facts this task needs, in the order in which they are needed."""
        ...


@runtime_checkable
class Notes(Protocol):
    """Optional: a deployment that keeps what an agent writes in its own words."""

    def noted(self, task: Task, content: Content) -> Content:
        """What the memory keeps of `content`, of the same level. Deterministic; says nothing that was not said."""
        ...


@runtime_checkable
class Executes(Protocol):
    """Optional: runs the code of a saved `python` or `bash` tool against the engine of the running episode."""

    def execute(self, tool: ToolContent, arguments: tuple[str, ...]) -> Step:
        """Run the tool, isolated as `sandbox.Sandbox.run` isolates; called on machines with isolation only.

        The code is untrusted: whatever it does is an observation, never an exception. Counts one step.
        """
        ...
