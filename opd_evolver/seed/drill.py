"""The drill: dense look-ups without meaning. A tiny model learns to find and copy here first, in a minute or two."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from opd_evolver.abilities.dialect import segment, user
from opd_evolver.environments import conventions as cv
from opd_evolver.environments.procedures import word_at
from opd_evolver.records import Entry
from opd_evolver.seed.facts import (
    Conversation,
    Noted,
    Reply,
    any_key,
    any_round,
    chance,
    entry_of,
    near_name,
    pick,
    recited,
    shown,
    shuffled,
    tip,
)
from opd_evolver.seed.replies import Belief, followed
from opd_evolver.seed.wordings import drilling

KINDS = ("copy", "pairs", "facts", "handles")
# Share of drills over orders of moves, where the domain has such families.
P_ORDERS = 0.25


def sample(domain: cv.Procedural, rng: np.random.Generator) -> Conversation:
    """One drill of a random kind over the words of a domain."""
    if domain.spec.levels != cv.TIPS_ONLY and chance(P_ORDERS, rng):
        return _orders(domain, rng)
    kind = KINDS[int(rng.integers(len(KINDS)))]
    if kind == "copy":
        text = " ".join(_copied(domain, rng))
        return _asked(f"act {text}", text)
    if kind == "pairs":
        keys = [domain.spec.keys[int(place)] for place in rng.permutation(len(domain.spec.keys))[: _n(rng, 4, 12)]]
        pairs = [f"{key} {pick(domain.values(key), rng)}" for key in keys]
        order = _some(len(keys), rng)
        asked = " ".join(keys[i] for i in order)
        return _asked(f"act mem {' | '.join(pairs)} task {asked}", " ".join(pairs[i] for i in order))
    facts = _facts(domain, rng)
    order = _some(len(facts), rng)
    if kind == "facts":
        asked = " then ".join(f"{facts[i].scope} {facts[i].key}" for i in order)
        with drilling():
            memory = " | ".join(shown(tip(domain, fact)) for fact in facts)
        return _asked(f"act mem {memory} task {asked}", " ".join(recited(facts[i]) for i in order))
    return _handles(domain, facts, order, rng)


def _orders(domain: cv.Procedural, rng: np.random.Generator) -> Conversation:
    """Entries of all levels; asked for moves of some of them: `zora audit s2`, said with what is recited before."""
    spec, scope = domain.spec, pick(cv.names("seed"), rng)
    rows: list[tuple[str, str]] = []
    listed: list[Entry] = []
    for _ in range(_n(rng, 2, 4)):
        key = any_key(domain, rng, [spec.keys[0]])
        fact = Noted(scope, key, any_round(rng), pick(domain.values(key), rng))
        entry = entry_of(domain, fact, rng)
        belief = Belief(fact.marker, fact.value, entry, hinted=True)
        if any(asked.split()[:2] == [scope, key] for asked, _ in rows):
            continue
        listed.append(entry)
        world = cv.World(spec.name, scope, "", {key: fact.value})
        for move in cv.demo_of(spec, world, [cv.Sub(key, pick(spec.args_of(key), rng))]).subs:
            rows.append((f"{scope} {key}" + f" s{move.stage}" * bool(move.stage), _begun(domain, belief, scope, move)))
        scope = near_name(scope, rng) if chance(0.4, rng) else scope
    order = _some(len(rows), rng)[:3]
    memory = " | ".join(shown(entry) for entry in shuffled(listed, rng))
    asked = " then ".join(rows[i][0] for i in order)
    return _asked(f"act mem {memory} task {asked}", " ".join(rows[i][1] for i in order))


def _begun(domain: cv.Procedural, belief: Belief, scope: str, move: cv.DemoSub) -> str:
    """A reply up to the word that was to be found: the argument is not told."""
    if move.stage == 0:
        return f"{scope} {move.key} {belief.marker} {belief.value}"
    reply, word = followed(domain, belief, scope, move), word_at(belief.value, move.stage)
    return reply[: reply.rindex(f" {word} ") + len(word) + 1]


def _handles(
    domain: cv.Procedural, facts: Sequence[Noted], order: Sequence[int], rng: np.random.Generator
) -> Conversation:
    listed = " | ".join(
        f"{fact.scope} {fact.key} h{place} {fact.marker} {fact.value}" for place, fact in enumerate(facts, start=1)
    )
    there = {(fact.scope, fact.key) for fact in facts}
    asked, answered = [], []
    for place in order:
        scope, key, found = facts[place].scope, facts[place].key, f"h{place + 1}"
        if chance(0.25, rng):
            absent = near_name(scope, rng) if chance(0.5, rng) else scope
            absent_key = key if absent != scope else pick(domain.spec.keys, rng)
            if (absent, absent_key) not in there:
                scope, key, found = absent, absent_key, "none"
        asked.append(f"{scope} {key}")
        answered.append(f"{scope} {key} {found}")
    return _asked(f"select {' then '.join(asked)} | {listed}", " ".join(answered))


def _asked(question: str, answer: str) -> Conversation:
    return Conversation("drill", ((user(segment(question)), Reply(answer)),))


def _n(rng: np.random.Generator, low: int, high: int) -> int:
    return int(rng.integers(low, high + 1))


def _some(n: int, rng: np.random.Generator) -> list[int]:
    """Up to six places in random order."""
    return [int(place) for place in rng.permutation(n)[:6]]


def _copied(domain: cv.Procedural, rng: np.random.Generator) -> list[str]:
    words: list[str] = []
    for _ in range(_n(rng, 2, 6)):
        key = pick(domain.spec.keys, rng)
        words += [pick(cv.names("seed"), rng), key, f"r{any_round(rng)}", pick(domain.values(key), rng)]
    return words


def _facts(domain: cv.Procedural, rng: np.random.Generator) -> list[Noted]:
    """Facts whose names and keys overlap, so that only name and key together find one."""
    names = [pick(cv.names("seed"), rng)]
    while len(names) < 4:
        names.append(near_name(names[0], rng) if chance(0.5, rng) else pick(cv.names("seed"), rng))
    keys = [domain.spec.keys[int(place)] for place in rng.permutation(len(domain.spec.keys))[:4]]
    found: dict[tuple[str, str], Noted] = {}
    for _ in range(_n(rng, 3, 8)):
        scope, key = pick(names, rng), pick(keys, rng)
        found[scope, key] = Noted(scope, key, any_round(rng), pick(domain.values(key), rng))
    return list(found.values())
