"""Facts and entries of the seed data: fresh random conventions for every sample, names of the seed group only."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from opd_evolver.abilities import act
from opd_evolver.environments import contents
from opd_evolver.environments import conventions as cv
from opd_evolver.environments.procedures import JOINT, words_of
from opd_evolver.memory.levels import render
from opd_evolver.records import (
    Attribution,
    Content,
    Entry,
    Message,
    SkillContent,
    TipContent,
    ToolContent,
    TrajectoryContent,
    TrajectoryStep,
    TurnRecord,
)
from opd_evolver.seed.wordings import worded

MAX_ROUND = 15
# As `memory.entry_token_budget` in params.
ENTRY_TOKEN_BUDGET = 80
# As `memory.candidate_token_budget`.
CANDIDATE_TOKEN_BUDGET = 16
# One distractor in so many is an entry of another level, which the seed policy learns to leave alone.
P_OTHER_LEVEL = 0.06
# Beyond tips: share of tips among keys at random, and the shares of the procedures among the rest.
P_TIP_KEY = 0.45
SHARES = (0.52, 0.33, 0.15)


class Noted(NamedTuple):
    """A fact as a tip holds it: scope, key, round, value."""

    scope: str
    key: str
    round: int
    value: str

    @property
    def marker(self) -> str:
        return f"r{self.round}"


class Reply(NamedTuple):
    """One reply of a conversation: its text, how many leading words carry no loss, whether any word does."""

    text: str
    n_masked_words: int = 0
    scored: bool = True


class Conversation(NamedTuple):
    """A user message and the reply to it, by turns."""

    ability: str
    turns: tuple[tuple[Message, Reply], ...]


def pick(items: Sequence[str], rng: np.random.Generator) -> str:
    return items[int(rng.integers(len(items)))]


def chance(p: float, rng: np.random.Generator) -> bool:
    return bool(rng.random() < p)


def any_round(rng: np.random.Generator, low: int = 1, high: int = MAX_ROUND) -> int:
    """A round from `low` to `high`, early ones more often, as runs are short."""
    top = high if chance(0.5, rng) else max(low, min(high, 5))
    return int(rng.integers(low, top + 1))


def other(items: Sequence[str], without: Sequence[str], rng: np.random.Generator) -> str:
    """Any item that is not in `without`."""
    return pick([item for item in items if item not in without], rng)


@functools.cache
def _names_by_piece() -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
    firsts: dict[str, list[str]] = {}
    seconds: dict[str, list[str]] = {}
    for name in cv.names("seed"):
        first, second = cv.syllables(name)
        firsts.setdefault(first, []).append(name)
        seconds.setdefault(second, []).append(name)
    return {k: tuple(v) for k, v in firsts.items()}, {k: tuple(v) for k, v in seconds.items()}


def near_name(scope: str, rng: np.random.Generator) -> str:
    """Another seed name that shares one syllable."""
    first, second = cv.syllables(scope)
    by_first, by_second = _names_by_piece()
    return other(by_first[first] if chance(0.5, rng) else by_second[second], [scope], rng)


def any_key(domain: cv.Procedural, rng: np.random.Generator, without: Sequence[str] = ()) -> str:
    """Any key that is not in `without`; beyond tips, short entries come more often than long ones."""
    spec = domain.spec
    if spec.levels != cv.TIPS_ONLY and not chance(P_TIP_KEY, rng):
        place = int(np.searchsorted(np.cumsum(SHARES), rng.random()))
        keys = spec.procedures[min(place, len(spec.procedures) - 1)].keys
        return other(keys, without, rng)
    return other(spec.keys, without, rng)


def distractor(
    domain: cv.Procedural, scope: str, needed: Sequence[str], rng: np.random.Generator, *, same: float
) -> Noted:
    """A fact that answers none of the needed keys of `scope`.

    Args:
        domain: gives keys and values.
        scope: the task's.
        needed: the task's keys.
        rng: the sample's generator.
        same: share of distractors of the same scope (a scope filter leaves only these).
    """
    kind = rng.random()
    if kind < same:
        home = domain.spec.procedure(needed[0]) if needed else None
        home = home if home and chance(0.4 if home.level == "trajectory" else 0.6, rng) else None
        name, key = scope, other(home.keys, needed, rng) if home else any_key(domain, rng, needed)
    elif kind < same + (1 - same) * 0.4:
        name, key = near_name(scope, rng), pick(needed, rng) if needed else any_key(domain, rng)
    elif kind < same + (1 - same) * 0.7:
        name, key = other(cv.names("seed"), [scope], rng), pick(needed, rng) if needed else any_key(domain, rng)
    else:
        name, key = other(cv.names("seed"), [scope], rng), any_key(domain, rng)
    return Noted(name, key, any_round(rng), pick(domain.values(key), rng))


def distractors(
    domain: cv.Procedural, scope: str, needed: Sequence[str], n: int, rng: np.random.Generator
) -> list[Noted]:
    """`n` distractors, in three of ten cases all of the task's scope."""
    same = 1.0 if chance(0.3, rng) else 0.35
    return [distractor(domain, scope, needed, rng, same=same) for _ in range(n)]


def wrong_value(domain: cv.Procedural, key: str, value: str, rng: np.random.Generator) -> str:
    """Another value of `key`; an order begins alike and goes another way at any of its moves."""
    words = words_of(value)
    if len(words) == 1:
        return other(domain.values(key), [value], rng)
    place = int(rng.integers(len(words)))
    kept = [*words[:place], other(domain.spec.choices(key), words[: place + 1], rng)]
    while len(kept) < len(words):
        kept.append(other(domain.spec.choices(key), kept, rng))
    return JOINT.join(kept)


def stale_of(domain: cv.Procedural, fact: Noted, rng: np.random.Generator) -> Noted:
    """An older fact of the same key, mostly with another value. `fact.round` must be above 1."""
    value = fact.value if chance(0.15, rng) else wrong_value(domain, fact.key, fact.value, rng)
    return fact._replace(round=int(rng.integers(1, fact.round)), value=value)


def tip(domain: cv.Procedural, fact: Noted) -> Entry:
    return _entry(domain, fact.scope, fact.round, TipContent(trigger=fact.key, text=fact.value))


def entry_of(domain: cv.Procedural, fact: Noted, rng: np.random.Generator) -> Entry:
    """The entry of the level that carries the fact."""
    return _entry(domain, fact.scope, fact.round, content_of(domain, fact, rng))


def entries(domain: cv.Procedural, facts: Sequence[Noted], rng: np.random.Generator) -> list[Entry]:
    return [entry_of(domain, fact, rng) for fact in facts]


def content_of(domain: cv.Procedural, fact: Noted, rng: np.random.Generator) -> Content:
    """As `contents.content_of`; some logs go on with something else, won or not, and some name a context."""
    if domain.spec.level_of(fact.key) != "trajectory":
        return contents.content_of(domain, fact.scope, fact.key, fact.value, rng)
    facts, n_won = {fact.key: fact.value}, None
    if chance(0.25, rng):
        other_key = any_key(domain, rng, [fact.key])
        facts[other_key] = pick(domain.values(other_key), rng)
        n_won = len(words_of(fact.value)) if chance(0.3, rng) else None
    log, context = contents.logged(domain, fact.scope, facts, rng, n_won), cv.any_context(rng)
    return log.model_copy(update={"task": f"{log.task} {context}"}) if context else log


def other_level(domain: cv.Procedural, scope: str, rng: np.random.Generator) -> Entry:
    """A skill, tool or trajectory of the scope."""
    world = cv.World(domain.spec.name, scope, "", {key: pick(domain.values(key), rng) for key in domain.spec.keys[:6]})
    task = domain.demo(world, rng)
    sub = task.subs[0]
    action = domain.action(sub, world.facts[sub.key])
    content: Content
    kind = int(rng.integers(3))
    if kind == 0:
        content = SkillContent(description=f"{sub.key} {sub.arg}", steps=(action,))
    elif kind == 1:
        content = ToolContent(name=sub.key, language="actions", code=action)
    else:
        step = TrajectoryStep(
            observation="", action=action, result=domain.observation(sub, True, True, rng), reward=1.0
        )
        content = TrajectoryContent(task=task.text, steps=(step,), outcome="success", episode_return=1.0)
    return _entry(domain, scope, any_round(rng), content)


def _entry(domain: cv.Procedural, scope: str, created_round: int, content: Content) -> Entry:
    content = worded(content, domain.spec.name, scope, created_round)
    return Entry(entry_id="seed", domain=domain.spec.name, scope=scope, content=content, created_round=created_round)


def recited(fact: Noted) -> str:
    """The fact as a reply recites it: as memory renders it."""
    return f"{fact.scope} {fact.key} {fact.marker} {fact.value}"


def shuffled(items: Sequence[Entry], rng: np.random.Generator) -> list[Entry]:
    return [items[int(place)] for place in rng.permutation(len(items))]


VERDICT_THRESHOLD = 0.25


def verdicts(marks: Mapping[str, str]) -> dict[str, Attribution]:
    """V of each entry id marked `up` or `down`, beyond the threshold; its size does not show."""
    return {
        entry_id: Attribution(
            entry_id=entry_id,
            value=0.5 if mark == "up" else -0.5,
            low=None,
            high=None,
            advantage=None,
            n_selected=1,
            n_withheld=1,
        )
        for entry_id, mark in marks.items()
    }


def turn(action: str, result: str) -> TurnRecord:
    return TurnRecord(observation="", action=action, result=result, reward=0.0)


# What engines answer to actions they cannot run; the policy must take the next attempt as if nothing was learnt.
ERRORS = ("error not a call", "error unknown call", "error too many calls", 'error near "=": syntax error', "error")


def parsed_action(reply: str) -> str:
    return act.parse(reply)[0]


def shown(entry: Entry) -> str:
    return render(entry, token_budget=ENTRY_TOKEN_BUDGET)
