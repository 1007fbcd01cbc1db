"""Hidden conventions: the shared scheme of procedural domains.

A world is one family: an opaque scope name and a handful of facts (key -> value) that no
observation states. One episode can discover them, a memory entry can carry them, distillation
can put them into the weights. Names are two syllables; every name belongs, by hash, to exactly
one of the groups seed, deploy, novel-val and novel-test, so scopes of different groups never meet.
All randomness is counter-based: the same question always has the same answer.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from opd_evolver.environments import procedures as pr
from opd_evolver.environments.domain import TIPS_ONLY as TIPS_ONLY
from opd_evolver.environments.domain import Domain as Domain
from opd_evolver.environments.domain import Sub as Sub
from opd_evolver.environments.procedures import Move as Move
from opd_evolver.records import Level, Split

# Every first syllable starts with a consonant that no second one has, all are two letters long:
# a name has one reading only, and no syllable is a word of the dialect.
FIRST = tuple(c + v for c in "zmkvbftjw" for v in "aeiou" if c + v not in {"me", "be", "to", "we", "wo"})
SECOND = tuple(c + v for c in "rlnsdpgxc" for v in "aeiou" if c + v not in {"no", "so", "do", "go", "xe"})

GROUPS = ("seed", "deploy", "novel-val", "novel-test")
# Deployed and novel names are dealt to domains, so that two domains never share one.
N_SLOTS = 5
N_FAMILIES: dict[Split, int] = {
    "seed": 64,
    "deploy-train": 12,
    "deploy-val": 12,
    "deploy-test": 12,
    "novel-val": 16,
    "novel-test": 16,
}
N_FACTS = 6
# So many of them are of the home level of a family whose home is not `tip`; the others are tips.
N_HOME = 4
# In what circumstances a task comes: the last word of its text, if any. In the seed data it never means a thing.
CONTEXTS = ("rush", "night", "guest", "trial")
P_CONTEXT = 0.15
# Facts a task needs, by turns: 40 % of all tasks need two.
SIZES = (1, 2, 1, 2, 1)


@dataclass(frozen=True)
class World:
    """One family of a domain. `family` cannot be read from `scope`; `facts` are the hidden conventions."""

    domain: str
    scope: str
    family: str
    facts: dict[str, str]
    world_seed: int = 0
    home: Level = "tip"


class DemoSub(NamedTuple):
    """A move of a seed example. `text` is as in `next …`, `again` as in `Domain`; `next_text` is empty for the last."""

    key: str
    arg: str
    text: str
    next_text: str
    stage: int = 0
    again: str = ""


class DemoTask(NamedTuple):
    """A seed example at the level of text: no engine runs. `subs` holds its moves, in order."""

    text: str
    subs: tuple[DemoSub, ...]


@runtime_checkable
class Procedural(Protocol):
    """What the seed data and the probes ask of a procedural domain, beside `Environment`."""

    @property
    def spec(self) -> Domain:
        """The domain's description."""
        ...

    def demo(self, world: World, rng: np.random.Generator) -> DemoTask:
        """A random task of a world."""
        ...

    def action(self, sub: Sub | Move | DemoSub, value: str) -> str:
        """The action that answers a move under the belief that its word is `value`."""
        ...

    def observation(self, sub: DemoSub, ok: bool, is_last: bool, rng: np.random.Generator) -> str:
        """What the engine would answer, in the engine's wording."""
        ...

    def words(self) -> tuple[str, ...]:
        """Every word the domain can put into a prompt or reply; syllables of names one by one."""
        ...

    def values(self, key: str) -> tuple[str, ...]:
        """The values that `key` can have."""
        ...


# ── names ─────────────────────────────────────────────────────────────────────────────────────


def _hash(*parts: object) -> bytes:
    return hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).digest()


def generator(*parts: object) -> np.random.Generator:
    """A generator of its own for each tuple of parts: counter-based, no shared state."""
    return np.random.Generator(np.random.Philox(key=int.from_bytes(_hash(*parts)[:16], "big")))


def uniform(*parts: object) -> float:
    """A number in [0, 1) of its own for each tuple of parts."""
    return int.from_bytes(_hash(*parts)[:7], "big") / 2**56


def draw_below(n: int, *parts: object) -> int:
    """A number from 0 to n - 1 of its own for each tuple of parts."""
    return int(uniform(*parts) * n)


def group_of(first: str, second: str) -> str:
    """The one group that a name belongs to: seed for 6 of 8 pairs, the rest in equal parts."""
    place = int.from_bytes(_hash("name-group", first, second)[:8], "big") % 24
    return "seed" if place < 18 else GROUPS[1 + (place - 18) // 2]


def group_of_split(split: Split) -> str:
    """deploy-train, deploy-val and deploy-test share their families, hence their names."""
    return "deploy" if split.startswith("deploy") else split


def syllables(scope: str) -> tuple[str, str]:
    """The two pieces of a name."""
    return scope[:2], scope[2:]


@functools.cache
def slot_of(name: str) -> int:
    """The share of deployed and novel names that a name is in: a quarter each for slots 0 and 1, a sixth for the rest.

    The quarters are as old as the tasks of `sql` and `apps`, which must stay what they were.
    """
    quarter = int.from_bytes(_hash("name-slot", name)[:8], "big") % 4
    return quarter if quarter < 2 else 2 + int.from_bytes(_hash("name-share", name)[:8], "big") % (N_SLOTS - 2)


@functools.cache
def names(group: str) -> tuple[str, ...]:
    """All names of a group, in the order of the syllable lists."""
    return tuple(a + b for a in FIRST for b in SECOND if group_of(a, b) == group)


def family_label(domain: str, scope: str, world_seed: int = 0) -> str:
    """An opaque label: latent, for splits and clustered intervals only."""
    return "f" + _hash("family", domain, scope, world_seed).hex()[:10]


# ── worlds ────────────────────────────────────────────────────────────────────────────────────


def _draw_facts(spec: Domain, rng: np.random.Generator, home: Level = "tip") -> dict[str, str]:
    n_tips = N_FACTS if home == "tip" else N_FACTS - N_HOME
    keys = rng.permutation(len(spec.keys))[:n_tips]
    if spec.distinct:
        values = rng.permutation(len(spec.values))[:n_tips]
    else:
        values = rng.integers(len(spec.values), size=n_tips)
    facts = {spec.keys[key]: spec.values[value] for key, value in zip(keys, values, strict=True)}
    for one in spec.procedures:
        if one.level == home:
            orders = pr.orders(spec.steps, one.n_moves)
            for key in rng.permutation(len(one.keys))[:N_HOME]:
                facts[one.keys[key]] = orders[int(rng.integers(len(orders)))]
    return facts


@functools.lru_cache(maxsize=64)
def worlds(spec: Domain, split: Split, n: int, world_seed: int = 0) -> tuple[World, ...]:
    """The first `n` families of a split; a prefix of the first `n` + 1.

    Raises:
        ValueError: the group has fewer names; lower `n` or lengthen FIRST and SECOND.
    """
    group = group_of_split(split)
    pool = [name for name in names(group) if group == "seed" or slot_of(name) == spec.slot]
    if n > len(pool):
        raise ValueError(f"{n} families asked of {split}, {len(pool)} names are there")
    pool.sort(key=lambda name: _hash("name-order", spec.name, world_seed, name))
    return tuple(
        World(
            domain=spec.name,
            scope=scope,
            family=family_label(spec.name, scope, world_seed),
            facts=_draw_facts(spec, generator("facts", spec.name, world_seed, scope), home_at(spec, place)),
            world_seed=world_seed,
            home=home_at(spec, place),
        )
        for place, scope in enumerate(pool[:n])
    )


def home_at(spec: Domain, place: int) -> Level:
    """The home level of the family at a place of a split's list: by turns."""
    return spec.levels[place % len(spec.levels)]


def random_world(spec: Domain, rng: np.random.Generator, names_: Sequence[str] | None = None) -> World:
    """A world with fresh random conventions, for the seed data: fast, never the same twice.

    Args:
        spec: the domain.
        rng: the caller's counter-based generator.
        names_: names to draw from; the seed group's when None.
    """
    pool = names("seed") if names_ is None else names_
    scope = pool[int(rng.integers(len(pool)))]
    home = spec.levels[0] if len(spec.levels) == 1 else _any_home(spec, rng)
    return World(domain=spec.name, scope=scope, family="", facts=_draw_facts(spec, rng, home), home=home)


def _any_home(spec: Domain, rng: np.random.Generator) -> Level:
    """A home level; the longest orders come half as often again, since each of their moves must be learnt."""
    weights = np.array([1.5 if level == "trajectory" else 1.0 for level in spec.levels])
    return spec.levels[int(np.searchsorted(np.cumsum(weights), rng.random() * weights.sum(), side="right"))]


def random_subs(spec: Domain, world: World, rng: np.random.Generator) -> tuple[Sub, ...]:
    """One or two sub-questions of a world, in the shares of the real tasks."""
    keys = tuple(world.facts)
    size = SIZES[int(rng.integers(len(SIZES)))]
    chosen = rng.permutation(len(keys))[:size]
    asked = [(key, spec.args_of(key)) for key in (keys[place] for place in chosen)]
    return tuple(Sub(key, args[int(rng.integers(len(args)))]) for key, args in asked)


def task_text(spec: Domain, scope: str, subs: Sequence[Sub], context: str = "") -> str:
    """`zora count late then sum held`, or with its context: `zora count late then sum held rush`."""
    return f"{scope} " + " then ".join(spec.phrase(sub) for sub in subs) + (f" {context}" if context else "")


def demo_task(spec: Domain, world: World, rng: np.random.Generator) -> DemoTask:
    """A random task of `world` with its sub-questions spelt out, some in a context."""
    return demo_of(spec, world, random_subs(spec, world, rng), any_context(rng))


def any_context(rng: np.random.Generator) -> str:
    """Mostly none."""
    return CONTEXTS[int(rng.integers(len(CONTEXTS)))] if rng.random() < P_CONTEXT else ""


def demo_of(spec: Domain, world: World, subs: Sequence[Sub], context: str = "") -> DemoTask:
    """A task of `world` that asks `subs`, with its moves spelt out."""
    moves = [move for sub in subs for move in pr.moves(sub.key, sub.arg, world.facts[sub.key])]
    texts = [spec.asked(world.scope, move) for move in moves] + [""]
    return DemoTask(
        text=task_text(spec, world.scope, subs, context),
        subs=tuple(
            DemoSub(move.key, move.arg, texts[i], texts[i + 1], move.stage, spec.again(world.scope, move))
            for i, move in enumerate(moves)
        ),
    )
