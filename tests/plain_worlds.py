"""Small worlds from outside, without families: what `check_env` must let pass, and one that tells its answers."""

from __future__ import annotations

from opd_evolver.records import Fact, Split, Step, Task


class Plain:
    """A world of its own that knows its facts and no other values; the only family is the shop."""

    domain = "broken"
    first = ""

    def __init__(self, **_: object) -> None:
        self.right = ""

    def tasks(self, split: Split, n: int, seed: int = 0) -> list[Task]:
        return [
            Task(
                task_id=f"{split}-{i}", domain="broken", scope="shop", family="shop", split=split,
                text=f"shop {split} q{i}", gold={"answer": ("iron", "bone", "gold")[i % 3]},
            )
            for i in range(n)
        ]  # fmt: skip

    def reset(self, task: Task) -> str:
        self.right = task.gold["answer"]
        return self.first.format(self.right)

    def step(self, action: str) -> Step:
        won = action == self.right
        return Step(observation="ok" if won else "no", reward=float(won), terminated=True, info={"success": won})

    def close(self) -> None: ...

    def oracle(self, task: Task) -> str:
        return str(task.gold["answer"])

    def facts(self, task: Task) -> tuple[Fact, ...]:
        return (Fact(scope="shop", key=task.text, value=task.gold["answer"]),)

    needed = facts


class Answering(Plain):
    first = "the answer is {}."


class Unlabelled(Plain):
    def tasks(self, split: Split, n: int, seed: int = 0) -> list[Task]:
        return [task.model_copy(update={"family": ""}) for task in super().tasks(split, n, seed)]


class Patient(Plain):
    """Ends when the answer is right and leaves the number of attempts to the runner."""

    first = "iron , bone or gold"

    def step(self, action: str) -> Step:
        step = super().step(action)
        return step.model_copy(update={"terminated": step.info["success"]})

    def facts(self, task: Task) -> tuple[Fact, ...]:
        return (Fact(scope="shop", key="metal", value=task.gold["answer"]),)

    needed = facts
