"""Act conversations: read memory, recite and act; guess without knowledge; follow hindsight.

Loss lies on every reply the seed policy should give. In samples with hindsight some replies are the
student's own (a guess, a wrong round begun), carry no loss and must not lead the teacher astray:
on-policy distillation asks the teacher to score exactly such replies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from opd_evolver.abilities import act
from opd_evolver.environments import conventions as cv
from opd_evolver.records import Entry, Message, Segment, TurnRecord
from opd_evolver.seed.facts import (
    ENTRY_TOKEN_BUDGET,
    ERRORS,
    P_OTHER_LEVEL,
    Conversation,
    Noted,
    Reply,
    any_round,
    chance,
    distractors,
    entries,
    other,
    other_level,
    parsed_action,
    pick,
    said,
    shuffled,
    stale_of,
    turn,
)

P_HINDSIGHT = 0.18
P_NO_MEMORY, P_DISTRACTORS_ONLY, P_STALE = 0.14, 0.10, 0.22
P_MEMORY_WRONG = 0.10
P_GUESS_IS_RIGHT = 0.4
P_ERROR = 0.03
P_OWN_REPLY, P_CORRUPTED = 0.3, 0.2
N_ATTEMPTS = 2


@dataclass
class Known:
    """What a prompt tells of each needed key, and what is true where that is settled."""

    facts: dict[str, tuple[str, str]] = field(default_factory=dict)  # key -> (marker, value)
    truth: dict[str, str] = field(default_factory=dict)
    memories: list[Entry] = field(default_factory=list)
    hint: Segment | None = None


def sample(domain: cv.Procedural, rng: np.random.Generator) -> Conversation:
    """One act conversation of a fresh world."""
    world = cv.random_world(domain.spec, rng)
    task = domain.demo(world, rng)
    known = _hinted(domain, world, task, rng) if chance(P_HINDSIGHT, rng) else _remembered(domain, world, task, rng)
    first = act.first_message(task.text, "", known.memories, token_budget=ENTRY_TOKEN_BUDGET, hindsight=known.hint)
    return Conversation("act", tuple(_turns(domain, world.scope, task, known, first, rng)))


def _settle(domain: cv.Procedural, known: Known, rng: np.random.Generator) -> None:
    """What the world holds where the prompt says something: mostly that."""
    for key, (_, value) in known.facts.items():
        wrong = chance(P_MEMORY_WRONG, rng)
        known.truth[key] = other(domain.values(key), [value], rng) if wrong else value


def _needed(world: cv.World, task: cv.DemoTask, rng: np.random.Generator, low: int = 1) -> list[Noted]:
    keys = dict.fromkeys(sub.key for sub in task.subs)
    return [Noted(world.scope, key, any_round(rng, low), world.facts[key]) for key in keys]


def _remembered(domain: cv.Procedural, world: cv.World, task: cv.DemoTask, rng: np.random.Generator) -> Known:
    """Memories as a selection brings them: none, distractors only, true ones, stale and new ones."""
    known = Known()
    kind = rng.random()
    if kind < P_NO_MEMORY:
        return known
    needed = _needed(world, task, rng, low=2)
    facts: list[Noted] = []
    n_others = int(rng.integers(0, 5))
    if kind < P_NO_MEMORY + P_DISTRACTORS_ONLY:
        n_others = max(1, n_others)
    else:
        if len(needed) > 1 and chance(0.25, rng):
            needed.pop(int(rng.integers(len(needed))))
        facts += needed
        if kind < P_NO_MEMORY + P_DISTRACTORS_ONLY + P_STALE:
            facts += [stale_of(domain, fact, rng) for fact in needed]
            n_others = min(n_others, 3)
        known.facts = {fact.key: (fact.marker, fact.value) for fact in needed}
    listed = entries(domain, [*facts, *distractors(domain, world.scope, _keys(task), n_others, rng)], rng)
    if chance(P_OTHER_LEVEL, rng):
        listed.append(other_level(domain, world.scope, rng))
    known.memories = shuffled(listed, rng)
    _settle(domain, known, rng)
    return known


def _keys(task: cv.DemoTask) -> list[str]:
    return [sub.key for sub in task.subs]


def _hinted(domain: cv.Procedural, world: cv.World, task: cv.DemoTask, rng: np.random.Generator) -> Known:
    """Hindsight: helpful entries, the turns of a won trajectory, or both; sometimes against stale memories."""
    known = Known()
    needed = _needed(world, task, rng, low=2)
    told = [fact for fact in needed if not chance(0.1, rng)] or needed
    kind = rng.random()
    helpful, won = list(told) if kind < 0.8 else [], kind >= 0.55
    facts = [*helpful, *distractors(domain, world.scope, _keys(task), int(rng.integers(0, 3)) if helpful else 0, rng)]
    if helpful and chance(0.15, rng):
        facts.append(stale_of(domain, helpful[0], rng))
    known.facts = {fact.key: (fact.marker, fact.value) for fact in helpful}
    turns: list[tuple[str, TurnRecord]] = []
    if won:
        for sub in task.subs:
            turns += _won_turns(domain, world, sub, known, rng)
    known.hint = act.hindsight(shuffled(entries(domain, facts, rng), rng), turns, token_budget=ENTRY_TOKEN_BUDGET)
    if chance(0.15, rng):
        stale = [stale_of(domain, fact, rng) for fact in needed]
        listed = entries(domain, [*stale, *distractors(domain, world.scope, _keys(task), 1, rng)], rng)
        known.memories = shuffled(listed, rng)
    _settle(domain, known, rng)
    return known


def _won_turns(
    domain: cv.Procedural, world: cv.World, sub: cv.DemoSub, known: Known, rng: np.random.Generator
) -> list[tuple[str, TurnRecord]]:
    """A sub-question as a successful episode answered it; what it shows is known from then on."""
    marker, value = known.facts.get(
        sub.key, ("guess" if chance(0.6, rng) else f"r{any_round(rng)}", world.facts[sub.key])
    )
    shown = marker if chance(0.5, rng) else "guess"
    turns = []
    if chance(0.2, rng):
        wrong = said("guess", domain, world.scope, sub, other(domain.values(sub.key), [value], rng))
        turns.append((wrong, turn(parsed_action(wrong), domain.observation(sub, False, not sub.next_text, rng))))
    right = said(shown, domain, world.scope, sub, value)
    turns.append((right, turn(parsed_action(right), domain.observation(sub, True, not sub.next_text, rng))))
    known.facts.setdefault(sub.key, (shown, value))
    return turns


def _turns(
    domain: cv.Procedural, scope: str, task: cv.DemoTask, known: Known, first: Message, rng: np.random.Generator
) -> list[tuple[Message, Reply]]:
    """Play the task: every reply with what comes back, until it is answered or the attempts are used up."""
    message, turns = first, []
    for sub in task.subs:
        tried: list[str] = []
        for _ in range(N_ATTEMPTS):
            reply, value = _reply(domain, scope, sub, known, tried, rng)
            failed_to_run = chance(P_ERROR, rng)
            if failed_to_run:
                words = reply.text.split()
                reply = Reply(" ".join(words[: int(rng.integers(1, len(words)))]), scored=False)
            turns.append((message, reply))
            if failed_to_run:
                message = act.observation_message(pick(ERRORS, rng))
                continue
            tried.append(value)
            true = known.truth.get(sub.key)
            right = value == true if true is not None else chance(P_GUESS_IS_RIGHT, rng)
            message = act.observation_message(domain.observation(sub, right, not sub.next_text, rng))
            if right:
                break
        else:
            return turns
    return turns


def _reply(
    domain: cv.Procedural,
    scope: str,
    sub: cv.DemoSub,
    known: Known,
    tried: Sequence[str],
    rng: np.random.Generator,
) -> tuple[Reply, str]:
    """The reply to a sub-question and the value it acts on."""
    marker, value = known.facts.get(sub.key, ("guess", ""))
    if not value or value in tried:
        marker, value = "guess", other(domain.values(sub.key), tried, rng)
        return Reply(said(marker, domain, scope, sub, value)), value
    if known.hint is None:
        return Reply(said(marker, domain, scope, sub, value)), value
    if chance(P_OWN_REPLY, rng):
        value = other(domain.values(sub.key), tried, rng)
        return Reply(said("guess", domain, scope, sub, value), scored=False), value
    if chance(P_CORRUPTED, rng):
        return _corrupted(domain, scope, sub, value, tried, rng), value
    return Reply(said(marker, domain, scope, sub, value)), value


def _corrupted(
    domain: cv.Procedural, scope: str, sub: cv.DemoSub, value: str, tried: Sequence[str], rng: np.random.Generator
) -> Reply:
    """A reply the student began wrongly; from there the right value and action are still the aim."""
    marker = "guess" if chance(0.7, rng) else f"r{any_round(rng)}"
    begun, n_begun = value, 3
    if chance(0.25, rng):
        begun, n_begun = other(domain.values(sub.key), [value, *tried], rng), 5
    return Reply(f"{scope} {sub.key} {marker} {begun} do {domain.action(sub, value)}", n_masked_words=n_begun)
