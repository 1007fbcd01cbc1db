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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from opd_evolver.records import Split

# Every first syllable starts with a consonant that no second one has, all are two letters long:
# a name has one reading only, and no syllable is a word of the dialect.
FIRST = tuple(c + v for c in "zmkvbftjw" for v in "aeiou" if c + v not in {"me", "be", "to", "we", "wo"})
SECOND = tuple(c + v for c in "rlnsdpgxc" for v in "aeiou" if c + v not in {"no", "so", "do", "go", "xe"})

GROUPS = ("seed", "deploy", "novel-val", "novel-test")
N_SLOTS = 4  # deployed and novel names are dealt to domains, so that two domains never share one
N_FAMILIES: dict[Split, int] = {
    "seed": 64,
    "deploy-train": 12,
    "deploy-val": 12,
    "deploy-test": 12,
    "novel-val": 16,
    "novel-test": 16,
}
N_FACTS = 6
# Facts a task needs, by turns: 40 % of all tasks need two.
SIZES = (1, 2, 1, 2, 1)


class Sub(NamedTuple):
    """A sub-question: the key whose convention it needs, and its argument."""

    key: str
    arg: str


@dataclass(frozen=True)
class World:
    """One family of a domain. `family` cannot be read from `scope`; `facts` are the hidden conventions."""

    domain: str
    scope: str
    family: str
    facts: dict[str, str]
    world_seed: int = 0


@dataclass(frozen=True)
class Domain:
    """What distinguishes one procedural domain from another.

    Args:
        name: the environment's name.
        slot: its share of the deployed and novel names, below `N_SLOTS`.
        keys: pool that the `N_FACTS` keys of a world are drawn from.
        values: pool of values.
        distinct: whether the values of a world differ from each other.
        args: arguments of a sub-question.
        phrase: words of a sub-question, without the scope.
    """

    name: str
    slot: int
    keys: tuple[str, ...]
    values: tuple[str, ...]
    distinct: bool
    args: tuple[str, ...]
    phrase: Callable[[Sub], str]


class DemoSub(NamedTuple):
    """A sub-question of a seed example. `text` is as in `next …`; `next_text` is empty for the last one."""

    key: str
    arg: str
    text: str
    next_text: str


class DemoTask(NamedTuple):
    """A seed example at the level of text: no engine runs."""

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

    def action(self, sub: Sub | DemoSub, value: str) -> str:
        """The action that answers `sub` under the belief that its key means `value`."""
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
def names(group: str) -> tuple[str, ...]:
    """All names of a group, in the order of the syllable lists."""
    return tuple(a + b for a in FIRST for b in SECOND if group_of(a, b) == group)


def family_label(domain: str, scope: str, world_seed: int = 0) -> str:
    """An opaque label: latent, for splits and clustered intervals only."""
    return "f" + _hash("family", domain, scope, world_seed).hex()[:10]


# ── worlds ────────────────────────────────────────────────────────────────────────────────────


def _draw_facts(spec: Domain, rng: np.random.Generator) -> dict[str, str]:
    keys = rng.permutation(len(spec.keys))[:N_FACTS]
    if spec.distinct:
        values = rng.permutation(len(spec.values))[:N_FACTS]
    else:
        values = rng.integers(len(spec.values), size=N_FACTS)
    return {spec.keys[key]: spec.values[value] for key, value in zip(keys, values, strict=True)}


@functools.lru_cache(maxsize=64)
def worlds(spec: Domain, split: Split, n: int, world_seed: int = 0) -> tuple[World, ...]:
    """The first `n` families of a split; a prefix of the first `n` + 1.

    Raises:
        ValueError: the group has fewer names; lower `n` or lengthen FIRST and SECOND.
    """
    group = group_of_split(split)
    pool = [
        name
        for name in names(group)
        if group == "seed" or int.from_bytes(_hash("name-slot", name)[:8], "big") % N_SLOTS == spec.slot
    ]
    if n > len(pool):
        raise ValueError(f"{n} families asked of {split}, {len(pool)} names are there")
    pool.sort(key=lambda name: _hash("name-order", spec.name, world_seed, name))
    return tuple(
        World(
            domain=spec.name,
            scope=scope,
            family=family_label(spec.name, scope, world_seed),
            facts=_draw_facts(spec, generator("facts", spec.name, world_seed, scope)),
            world_seed=world_seed,
        )
        for scope in pool[:n]
    )


def random_world(spec: Domain, rng: np.random.Generator, names_: Sequence[str] | None = None) -> World:
    """A world with fresh random conventions, for the seed data: fast, never the same twice.

    Args:
        spec: the domain.
        rng: the caller's counter-based generator.
        names_: names to draw from; the seed group's when None.
    """
    pool = names("seed") if names_ is None else names_
    scope = pool[int(rng.integers(len(pool)))]
    return World(domain=spec.name, scope=scope, family="", facts=_draw_facts(spec, rng))


def random_subs(spec: Domain, world: World, rng: np.random.Generator) -> tuple[Sub, ...]:
    """One or two sub-questions of a world, in the shares of the real tasks."""
    keys = tuple(world.facts)
    size = SIZES[int(rng.integers(len(SIZES)))]
    chosen = rng.permutation(len(keys))[:size]
    return tuple(Sub(keys[place], spec.args[int(rng.integers(len(spec.args)))]) for place in chosen)


def task_text(spec: Domain, scope: str, subs: Sequence[Sub]) -> str:
    """`zora count late then sum held`."""
    return f"{scope} " + " then ".join(spec.phrase(sub) for sub in subs)


def demo_task(spec: Domain, world: World, rng: np.random.Generator) -> DemoTask:
    """A random task of `world` with its sub-questions spelt out."""
    subs = random_subs(spec, world, rng)
    texts = [f"{world.scope} {spec.phrase(sub)}" for sub in subs] + [""]
    return DemoTask(
        text=task_text(spec, world.scope, subs),
        subs=tuple(DemoSub(sub.key, sub.arg, texts[i], texts[i + 1]) for i, sub in enumerate(subs)),
    )
