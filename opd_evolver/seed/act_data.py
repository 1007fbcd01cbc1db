"""Act conversations: read memory, recite and act; guess without knowledge; follow hindsight.

Loss lies on every reply the seed policy should give. In samples with hindsight some replies are the
student's own (a guess, a wrong round begun), carry no loss and must not lead the teacher astray:
on-policy distillation asks the teacher to score exactly such replies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from opd_evolver.abilities import act
from opd_evolver.environments import conventions as cv
from opd_evolver.environments.procedures import word_at
from opd_evolver.records import Entry, Message, Segment, TurnRecord
from opd_evolver.seed.course import Course, follows
from opd_evolver.seed.facts import (
    ENTRY_TOKEN_BUDGET,
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
    shuffled,
    stale_of,
    turn,
    wrong_value,
)
from opd_evolver.seed.replies import Belief, calls, followed, said

P_HINDSIGHT = 0.18
P_NO_MEMORY, P_DISTRACTORS_ONLY, P_STALE = 0.14, 0.10, 0.22
P_MEMORY_WRONG = 0.10
P_GUESS_IS_RIGHT, P_MOVE_IS_RIGHT = 0.4, 0.6
P_ERROR = 0.03
P_OWN_REPLY, P_CORRUPTED = 0.3, 0.2


@dataclass
class Known:
    """What a prompt tells of each needed key, and what is true where that is settled."""

    facts: dict[str, Belief] = field(default_factory=dict)
    truth: dict[str, str] = field(default_factory=dict)
    memories: list[Entry] = field(default_factory=list)
    hint: Segment | None = None


def sample(domain: cv.Procedural, rng: np.random.Generator, lowest_round: int = 1) -> Conversation:
    """One act conversation of a fresh world."""
    world = cv.random_world(domain.spec, rng)
    task = domain.demo(world, rng)
    tell = _hinted if chance(P_HINDSIGHT, rng) else _remembered
    known = tell(domain, world, task, rng, lowest_round)
    began = task.subs[0].again
    first = act.first_message(task.text, began, known.memories, token_budget=ENTRY_TOKEN_BUDGET, hindsight=known.hint)
    return Conversation("act", tuple(_turns(domain, world.scope, task, known, first, rng)))


def _settle(domain: cv.Procedural, known: Known, rng: np.random.Generator) -> None:
    """What the world holds where the prompt says something: mostly that."""
    for key, belief in known.facts.items():
        wrong = chance(P_MEMORY_WRONG, rng)
        known.truth[key] = wrong_value(domain, key, belief.value, rng) if wrong else belief.value


def _needed(world: cv.World, task: cv.DemoTask, rng: np.random.Generator, low: int) -> list[Noted]:
    return [Noted(world.scope, key, any_round(rng, low), world.facts[key]) for key in _keys(task)]


def _keys(task: cv.DemoTask) -> list[str]:
    return list(dict.fromkeys(sub.key for sub in task.subs))


def _stale(domain: cv.Procedural, facts: Sequence[Noted], rng: np.random.Generator) -> list[Noted]:
    """Older facts of the same keys. Of two logs only the first lines tell the newer one: selection must choose."""
    return [
        stale_of(domain, fact, rng)
        for fact in facts
        if fact.round > 1 and domain.spec.level_of(fact.key) != "trajectory"
    ]


def _remembered(
    domain: cv.Procedural, world: cv.World, task: cv.DemoTask, rng: np.random.Generator, lowest_round: int
) -> Known:
    """Memories as a selection brings them: none, distractors only, true ones, stale and new ones."""
    known = Known()
    kind = rng.random()
    if kind < P_NO_MEMORY:
        return known
    among_stale = P_NO_MEMORY + P_DISTRACTORS_ONLY <= kind < P_NO_MEMORY + P_DISTRACTORS_ONLY + P_STALE
    needed = _needed(world, task, rng, 2 if among_stale else lowest_round)
    n_others = int(rng.integers(0, 5))
    stale: list[Noted] = []
    if kind < P_NO_MEMORY + P_DISTRACTORS_ONLY:
        n_others, needed = max(1, n_others), []
    else:
        if len(needed) > 1 and chance(0.25, rng):
            needed.pop(int(rng.integers(len(needed))))
        if among_stale:
            stale, n_others = _stale(domain, needed, rng), min(n_others, 3)
    held = entries(domain, needed, rng)
    known.facts = {fact.key: Belief(fact.marker, fact.value, entry) for fact, entry in zip(needed, held, strict=True)}
    others = [*stale, *distractors(domain, world.scope, _keys(task), n_others, rng)]
    held += entries(domain, others, rng)
    if domain.spec.levels == cv.TIPS_ONLY and chance(P_OTHER_LEVEL, rng):
        held.append(other_level(domain, world.scope, rng))
    known.memories = shuffled(held, rng)
    _settle(domain, known, rng)
    return known


def _hinted(
    domain: cv.Procedural, world: cv.World, task: cv.DemoTask, rng: np.random.Generator, lowest_round: int
) -> Known:
    """Hindsight: helpful entries, the turns of a won trajectory, or both; sometimes against stale memories."""
    known = Known()
    needed = _needed(world, task, rng, lowest_round)
    told = [fact for fact in needed if not chance(0.1, rng)] or needed
    kind = rng.random()
    helpful, won = list(told) if kind < 0.8 else [], kind >= 0.55
    held = entries(domain, helpful, rng)
    known.facts = {
        fact.key: Belief(fact.marker, fact.value, entry, hinted=True) for fact, entry in zip(helpful, held, strict=True)
    }
    others = distractors(domain, world.scope, _keys(task), int(rng.integers(0, 3)) if helpful else 0, rng)
    if helpful and chance(0.15, rng):
        others += _stale(domain, helpful[:1], rng)
    turns = _won_turns(domain, world, task, known, rng) if won else []
    listed = shuffled([*held, *entries(domain, others, rng)], rng)
    known.hint = act.hindsight(listed, turns, token_budget=ENTRY_TOKEN_BUDGET)
    if chance(0.15, rng):
        against = [*_stale(domain, needed, rng), *distractors(domain, world.scope, _keys(task), 1, rng)]
        known.memories = shuffled(entries(domain, against, rng), rng)
    _settle(domain, known, rng)
    return known


def _won_turns(
    domain: cv.Procedural, world: cv.World, task: cv.DemoTask, known: Known, rng: np.random.Generator
) -> list[tuple[str, TurnRecord]]:
    """The task as a successful episode answered it; what it shows is known from then on."""
    turns: list[tuple[str, TurnRecord]] = []
    shown: dict[str, Belief] = {}
    course = Course(domain, task, lambda move, word: word == word_at(world.facts[move.key], move.stage), rng)
    while not course.over:
        move = course.move
        if move.key not in shown:
            shown[move.key] = _as_told(known, world, move, rng)
        belief = shown[move.key]
        if calls(domain, belief, move):
            said_, result = followed(domain, belief, world.scope, move), course.run(belief)
        else:
            if not course.spent and chance(0.2, rng):
                right = word_at(world.facts[move.key], move.stage)
                wrong = other(domain.spec.choices(move.key), [right, *course.found], rng)
                reply = said("guess", domain, world.scope, move, wrong)
                turns.append((reply, turn(parsed_action(reply), course.attempt(wrong))))
            said_ = followed(domain, belief, world.scope, move)
            result = course.attempt(word_at(belief.value, move.stage))
        turns.append((said_, turn(parsed_action(said_), result)))
        if not calls(domain, belief, move):
            known.facts.setdefault(move.key, Belief(belief.marker, belief.value))
    return turns


def _as_told(known: Known, world: cv.World, move: cv.DemoSub, rng: np.random.Generator) -> Belief:
    """How a won episode knew what it needed: from the entry that helped, from another one, or by guessing."""
    belief, value = known.facts.get(move.key), world.facts[move.key]
    if belief is not None and chance(0.5, rng):
        return belief._replace(hinted=False)
    if move.stage == 0 and belief is None and chance(0.4, rng):
        return Belief(f"r{any_round(rng)}", value)
    return Belief("guess", value)


def _turns(
    domain: cv.Procedural, scope: str, task: cv.DemoTask, known: Known, first: Message, rng: np.random.Generator
) -> list[tuple[Message, Reply]]:
    """Play the task: every reply with what comes back, until it is answered or the attempts are used up."""
    message = first
    turns: list[tuple[Message, Reply]] = []
    called: set[str] = set()

    def right(move: cv.DemoSub, word: str) -> bool:
        true = known.truth.get(move.key)
        if true is not None:
            return word == word_at(true, move.stage)
        return chance(P_MOVE_IS_RIGHT if move.stage else P_GUESS_IS_RIGHT, rng)

    course = Course(domain, task, right, rng)
    while not course.over:
        move, belief = course.move, known.facts.get(course.move.key)
        tool = belief is not None and calls(domain, belief, move)
        answer: Callable[[], str]
        if belief is not None and tool and move.key not in called:
            called.add(move.key)
            reply = Reply(followed(domain, belief, scope, move))
            answer = partial(course.run, belief)
        else:
            reply, word = _reply(domain, scope, course, None if tool else belief, known, rng)
            answer = partial(course.attempt, word)
        if chance(P_ERROR, rng):
            words = reply.text.split()
            reply = Reply(" ".join(words[: int(rng.integers(1, len(words)))]), scored=False)
            answer = course.fail
            called.discard(move.key)
        turns.append((message, reply))
        message = act.observation_message(answer())
    return turns


def _reply(
    domain: cv.Procedural,
    scope: str,
    course: Course,
    belief: Belief | None,
    known: Known,
    rng: np.random.Generator,
) -> tuple[Reply, str]:
    """The reply to a move and the word it acts on."""
    move = course.move
    if belief is None or not follows(belief, course):
        word = course.guess()
        return Reply(said("guess", domain, scope, move, word)), word
    word = word_at(belief.value, move.stage)
    if known.hint is not None and chance(P_OWN_REPLY, rng):
        word = course.guess()
        return Reply(said("guess", domain, scope, move, word), scored=False), word
    if known.hint is not None and chance(P_CORRUPTED, rng):
        return _corrupted(domain, scope, course, word, rng), word
    return Reply(followed(domain, belief, scope, move)), word


def _corrupted(domain: cv.Procedural, scope: str, course: Course, word: str, rng: np.random.Generator) -> Reply:
    """A reply the student began wrongly; from there the right word and action are still the aim."""
    move = course.move
    n_head = 3 if move.stage == 0 else 4
    marker = "guess" if move.stage or chance(0.7, rng) else f"r{any_round(rng)}"
    action = domain.action(move, word)
    wrong = [one for one in course.choices if one != word and not course.known_wrong(one)]
    if wrong and chance(0.25, rng):
        begun = said(marker, domain, scope, move, pick(wrong, rng)).split(" do ")[0]
        return Reply(f"{begun} do {action}", n_masked_words=n_head + 2)
    return Reply(said(marker, domain, scope, move, word), n_masked_words=n_head)
