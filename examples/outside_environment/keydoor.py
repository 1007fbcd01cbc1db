"""Houses whose doors each need one kind of key. Trying finds it, a memory keeps it."""

from collections.abc import Sequence
from hashlib import sha256

from opd_evolver.records import Fact, Split, Step, Task

KEYS = ("iron", "bone", "gold", "wood", "jade", "horn", "clay", "reed")
DOORS = ("attic", "barn", "cellar", "porch")
PREFIX = {"seed": "s", "novel-val": "v", "novel-test": "t"}  # the deploy splits share their houses
HOURS = {"deploy-val": "dusk", "deploy-test": "night"}  # and nothing else: no question of one stands in another


class KeyDoor:
    domain = "keydoor"

    def tasks(self, split: Split, n: int, seed: int = 0) -> Sequence[Task]:
        return [self._task(split, i, seed) for i in range(n)]

    def _task(self, split: Split, i: int, seed: int) -> Task:
        house, door = f"{PREFIX.get(split, 'd')}house{i % 12}", DOORS[i // 12 % len(DOORS)]
        digests = (sha256(f"{house} {name}".encode()).digest() for name in DOORS)
        keys = {name: KEYS[digest[0] % len(KEYS)] for name, digest in zip(DOORS, digests, strict=True)}
        return Task(
            task_id=f"keydoor-{split}-{seed}-{i}", domain="keydoor", scope=house, split=split,
            family=sha256(f"family {house}".encode()).hexdigest()[:8],
            text=f"{house} open {door} at {HOURS.get(split, 'noon')}", gold={"door": door, "keys": keys},
        )  # fmt: skip

    def reset(self, task: Task) -> str:
        self.tries, self.right = 2, f"use {task.gold['keys'][task.gold['door']]}"
        return ""

    def step(self, action: str) -> Step:
        won, self.tries = action == self.right, self.tries - 1
        over = won or self.tries <= 0
        return Step(observation="ok" if won else "no", reward=float(won), terminated=over, info={"success": won})

    def close(self) -> None: ...

    def oracle(self, task: Task) -> str:
        return self.right

    def facts(self, task: Task) -> tuple[Fact, ...]:
        return tuple(Fact(scope=task.scope, key=door, value=key) for door, key in task.gold["keys"].items())

    def needed(self, task: Task) -> tuple[Fact, ...]:
        return tuple(fact for fact in self.facts(task) if fact.key == task.gold["door"])
