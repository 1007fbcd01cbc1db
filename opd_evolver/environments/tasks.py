"""Tasks of procedural domains: drawn evenly, balanced over families, with disjoint deployed splits."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from opd_evolver.environments import headroom
from opd_evolver.environments import procedures as pr
from opd_evolver.environments.attempts import Asked
from opd_evolver.environments.conventions import (
    N_FAMILIES,
    SIZES,
    TIPS_ONLY,
    Domain,
    Sub,
    World,
    generator,
    task_text,
    worlds,
)
from opd_evolver.records import Fact, Split, Task


def tasks(spec: Domain, split: Split, n: int, seed: int, world_seed: int) -> tuple[Task, ...]:
    """The first `n` tasks of a split: task i belongs to family i mod the number of families.

    Each family's facts are asked for in turn, so every fact is covered evenly. The texts of
    deploy-train, deploy-val and deploy-test are disjoint: the arguments (single questions) and pairs
    of arguments (double ones) of each key are dealt 2 : 1 : 1 to the three. Within a split texts recur
    once they are used up; the task id stays unique.
    """
    families = worlds(spec, split, N_FAMILIES[split], world_seed)
    return tuple(_task(spec, families, split, i, seed) for i in range(n))


def _task(spec: Domain, families: Sequence[World], split: Split, i: int, seed: int) -> Task:
    place, turn = i % len(families), i // len(families)
    world = families[place]
    size = SIZES[(turn + place) % len(SIZES)]
    cycles, rest = divmod(turn, len(SIZES))
    start = cycles * sum(SIZES) + sum(SIZES[(t + place) % len(SIZES)] for t in range(rest))
    keys = [_key_at(spec, world, split, seed, start + offset) for offset in range(size)]
    choices = _arguments(spec, world, split, tuple(keys))
    rng = generator("arguments", spec.name, world.world_seed, world.scope, split, seed, turn)
    args = choices[int(rng.integers(len(choices)))]
    subs = [Sub(key, arg) for key, arg in zip(keys, args, strict=True)]
    facts = headroom.facts_at(spec, world, split, i)
    if (once := headroom.one_off(spec, world, split, subs, seed, turn)) is not None:
        subs[-1], facts[once[0].key] = once
    if context := headroom.context_of(spec, world, split, [sub.key for sub in subs], seed, turn):
        facts = headroom.in_context(spec, world, facts, [sub.key for sub in subs])
    kinds = headroom.kinds_of(spec, world, split, subs)
    return Task(
        task_id=f"{spec.name}-w{world.world_seed}-{split}-s{seed}-{i:06d}",
        domain=spec.name,
        scope=world.scope,
        family=world.family,
        split=split,
        text=task_text(spec, world.scope, subs, context),
        gold={"subs": [list(sub) for sub in subs], "facts": facts, "world_seed": world.world_seed}
        | ({} if spec.levels == TIPS_ONLY else {"home": world.home})
        | ({"headroom": kinds} if kinds else {}),
    )


def _key_at(spec: Domain, world: World, split: Split, seed: int, position: int) -> str:
    """Keys come in shuffled blocks of all facts; neighbours differ even across blocks."""

    def block(number: int) -> list[str]:
        rng = generator("keys", spec.name, world.world_seed, world.scope, split, seed, number)
        keys = tuple(world.facts)
        return [keys[place] for place in rng.permutation(len(keys))]

    number, offset = divmod(position, len(world.facts))
    keys = block(number)
    # Swapping the first two leaves every block's last key as it was drawn, so one look back is enough.
    if number and keys[0] == block(number - 1)[-1]:
        keys[0], keys[1] = keys[1], keys[0]
    return keys[offset]


@functools.lru_cache(maxsize=65536)
def _dealt(spec: Domain, scope: str, world_seed: int, keys: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    combos: list[tuple[str, ...]] = [()]
    for key in keys:
        combos = [(*combo, arg) for combo in combos for arg in spec.args_of(key)]
    order = generator("deal", spec.name, world_seed, scope, *keys).permutation(len(combos))
    return tuple(combos[place] for place in order)


def _arguments(spec: Domain, world: World, split: Split, keys: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """Arguments that tasks of this split may give to these keys."""
    combos = _dealt(spec, world.scope, world.world_seed, keys)
    half, quarter = len(combos) // 2, len(combos) // 4
    shares = {
        "deploy-train": combos[:half],
        "deploy-val": combos[half : half + quarter],
        "deploy-test": combos[half + quarter :],
    }
    return shares.get(split, combos)


def subs_of(task: Task) -> tuple[Sub, ...]:
    """The sub-questions in a task's gold."""
    return tuple(Sub(str(key), str(arg)) for key, arg in task.gold["subs"])


def moves_of(task: Task) -> tuple[pr.Move, ...]:
    """The moves of all sub-questions, in order."""
    return tuple(move for sub in subs_of(task) for move in pr.moves(*sub, str(task.gold["facts"][sub.key])))


def word_of(task: Task, move: pr.Move) -> str:
    """The word that a move needs."""
    return pr.word_at(str(task.gold["facts"][move.key]), move.stage)


def asked_of(spec: Domain, task: Task) -> tuple[Asked, ...]:
    """The moves as an episode asks them; a sub-question's weight is shared out evenly over its moves."""
    facts, n_subs = task.gold["facts"], len(subs_of(task))
    return tuple(
        Asked(
            spec.asked(task.scope, move),
            spec.again(task.scope, move),
            1.0 / (n_subs * len(pr.words_of(str(facts[move.key])))),
        )
        for move in moves_of(task)
    )


def facts_of(task: Task) -> tuple[Fact, ...]:
    """Every fact of the task's scope."""
    return tuple(Fact(scope=task.scope, key=key, value=value) for key, value in task.gold["facts"].items())


def needed_facts(task: Task) -> tuple[Fact, ...]:
    """The facts a task needs, in the order in which it needs them."""
    facts = task.gold["facts"]
    return tuple(Fact(scope=task.scope, key=sub.key, value=facts[sub.key]) for sub in subs_of(task))
