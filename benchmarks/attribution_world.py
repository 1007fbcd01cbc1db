"""A synthetic world in which the true effect of every memory is known.

Tasks are easy or hard (u = +1 or -1); u decides the outcome and, for some kinds of memory, how often the
policy selects them: a confounder that no estimator sees. A rollout shows one memory of each kind and succeeds
with probability base + slope u + step (-1)^group + the effects of what is in its context: no clipping, hence
the effects are exact. Effects differ between groups.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from opd_evolver.memory.attribution import Pairs

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class Kind(NamedTuple):
    """One kind of memory: how often it is selected, and its effect in even and in odd groups."""

    on_hard: float
    on_easy: float
    effect: tuple[float, float]


KINDS = {
    "helpful": Kind(0.5, 0.5, (0.10, 0.20)),
    "neutral": Kind(0.5, 0.5, (0.0, 0.0)),
    "harmful": Kind(0.5, 0.5, (-0.10, -0.20)),
    "confounded": Kind(0.2, 0.8, (0.0, 0.0)),  # useless, but chosen on easy tasks
    "masked": Kind(0.8, 0.2, (0.10, 0.20)),  # helps, but chosen on hard tasks
}
ESSENTIAL = {"helpful": Kind(0.5, 0.5, (0.75, 0.80)), "neutral": Kind(0.5, 0.5, (0.0, 0.0))}


@dataclass(frozen=True)
class World:
    """Sizes and truths. `epsilon` is the probability that a selected memory is withheld."""

    epsilon: float = 0.1
    n_groups: int = 8
    n_tasks: int = 30
    n_rollouts: int = 4
    per_kind: int = 2
    base: float = 0.4
    slope: float = 0.15
    step: float = 0.04
    kinds: dict[str, Kind] = field(default_factory=lambda: dict(KINDS))

    @property
    def n_entries(self) -> int:
        return len(self.kinds) * self.per_kind

    def effects(self) -> Floats:
        """[kinds, groups] true effect of having the memory in the context."""
        return np.array([[one.effect[g % 2] for g in range(self.n_groups)] for one in self.kinds.values()])

    def select(self) -> Floats:
        """[kinds, 2] probability of selection on hard and on easy tasks."""
        return np.array([[one.on_hard, one.on_easy] for one in self.kinds.values()])


class Truth(NamedTuple):
    """[kinds] what a variant estimates in an endless ledger, and the same with true effects in it."""

    own: Floats
    causal: Floats


def truth(world: World, variant: str) -> Truth:
    """The estimand of a variant's A, with the confounding it suffers from and without."""
    effect, select, kept = world.effects(), world.select(), 1.0 - world.epsilon
    if variant == "causal":
        mean = effect.mean(axis=1)
        return Truth(mean, mean)
    inside = kept * select  # in the context, by u
    rho = inside.mean(axis=1, keepdims=True)
    easier_with = (inside[:, 1:] - inside[:, :1]) / inside.sum(axis=1, keepdims=True)
    outside = 1.0 - inside
    easier_without = (outside[:, 1:] - outside[:, :1]) / outside.sum(axis=1, keepdims=True)
    pull = kept * effect * (select[:, 1:] - select[:, :1]) / 2.0  # what each kind adds to the slope in u
    slope = world.slope + pull.sum(axis=0, keepdims=True) - pull
    delta = effect + slope * (easier_with - easier_without)
    if variant == "paper":
        return Truth((rho * delta).sum(axis=1), (rho * effect).sum(axis=1))
    if variant != "released":
        raise ValueError(f"no target is known for {variant}")
    share = rho * (1.0 - rho)
    return Truth((share * delta).mean(axis=1), (share * effect).mean(axis=1))


class Drawn(NamedTuple):
    """Ledgers of many seeds as one: entry = seed * n_entries + memory, memory = kind * per_kind + one.

    `task` is [N] the task of each pair, counted over all seeds.
    """

    pairs: Pairs
    task: Ints


def draw(world: World, seeds: range) -> Drawn:
    """One ledger for each seed, as pairs."""
    found = [_one(world, seed) for seed in seeds]
    n_tasks = world.n_groups * world.n_tasks
    columns = [np.concatenate([one[k] for one in found]) for k in range(6)]
    size = len(found[0][0]) if found else 0
    place = np.repeat(np.arange(len(found), dtype=np.int64), size)
    shown, group, task, selected, kept, outcome = columns
    return Drawn(
        Pairs(
            entry=shown + place * world.n_entries,
            group=group,
            chosen=selected & kept,
            outcome=outcome.astype(np.float64),
            groups=tuple(f"g{k}" for k in range(world.n_groups)),
            withheld=selected & ~kept,
            propensity=np.where(selected, 1.0 - world.epsilon, np.nan),
        ),
        task + place * n_tasks,
    )


def _one(world: World, seed: int) -> tuple[npt.NDArray[np.generic], ...]:
    rng = np.random.Generator(np.random.Philox(key=seed))
    n_kinds, n_tasks = len(world.kinds), world.n_groups * world.n_tasks
    task = np.repeat(np.arange(n_tasks), world.n_rollouts)
    easy = rng.integers(0, 2, n_tasks)[task]
    group = task // world.n_tasks
    shape = (len(task), n_kinds)
    shown = rng.integers(0, world.per_kind, shape) + np.arange(n_kinds) * world.per_kind
    selected = rng.random(shape) < world.select()[:, easy].T
    kept = rng.random(shape) >= world.epsilon
    effect = (world.effects()[:, group].T * (selected & kept)).sum(axis=1)
    chance = world.base + world.slope * (2 * easy - 1) + world.step * (1 - 2 * (group % 2)) + effect
    if chance.min() < 0.0 or chance.max() > 1.0:
        raise ValueError(f"success probabilities from {chance.min():.2f} to {chance.max():.2f}: effects would be cut")
    outcome = rng.random(len(task)) < chance
    wide = [np.repeat(one, n_kinds) for one in (group, task, outcome)]
    return shown.ravel(), wide[0], wide[1], selected.ravel(), kept.ravel(), wide[2]
