"""Select samples: for each fact the task needs, the handle of its newest entry, or `none`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from opd_evolver.abilities import select
from opd_evolver.environments import conventions as cv
from opd_evolver.records import Entry, SkillContent, TipContent, ToolContent, TrajectoryContent
from opd_evolver.seed.facts import (
    CANDIDATE_TOKEN_BUDGET,
    P_OTHER_LEVEL,
    VERDICT_THRESHOLD,
    Conversation,
    Noted,
    Reply,
    any_round,
    chance,
    distractors,
    entries,
    other_level,
    shuffled,
    stale_of,
    verdicts,
)

P_HINDSIGHT, P_PRESENT, P_CORRUPTED = 0.18, 0.65, 0.15
# An older fact beside a present one, and one more, and so on. Which is the newest is the hardest to learn.
P_STALE = 0.45
MAX_CANDIDATES = 8
# Sometimes the list is long, as in runs that retrieve more.
P_MANY, MANY_CANDIDATES = 0.15, 20


class Slot(NamedTuple):
    """One needed fact and the place of its entry among the candidates, if any."""

    scope: str
    key: str
    place: int | None

    @property
    def text(self) -> str:
        return f"{self.scope} {self.key} {'none' if self.place is None else f'h{self.place + 1}'}"


def sample(domain: cv.Procedural, rng: np.random.Generator, lowest_round: int = 1) -> Conversation:
    """One select prompt of a fresh world, and the right reply."""
    world = cv.random_world(domain.spec, rng)
    task = domain.demo(world, rng)
    candidates = _candidates(domain, world, task, rng, lowest_round)
    marks: dict[int, str] = {}
    hint = None
    if chance(P_HINDSIGHT, rng):
        candidates = [entry.model_copy(update={"entry_id": str(place)}) for place, entry in enumerate(candidates)]
        marks = _marks(candidates, world.scope, task, rng)
        judged = {candidates[place].entry_id: mark for place, mark in marks.items()}
        hint = select.hindsight(candidates, verdicts(judged), VERDICT_THRESHOLD)
    asked = select.prompt(task.text, candidates, token_budget=CANDIDATE_TOKEN_BUDGET, hindsight=hint)
    slots = [Slot(world.scope, key, best(candidates, world.scope, key, marks)) for key in _keys(task)]
    reply = Reply(" ".join(slot.text for slot in slots))
    if marks and len(slots) > 1 and chance(P_CORRUPTED, rng):
        wrong = slots[0]._replace(place=int(rng.integers(len(candidates))))
        reply = Reply(" ".join(slot.text for slot in (wrong, *slots[1:])), n_masked_words=3)
    return Conversation("select", ((asked.messages[0], reply),))


def best(candidates: Sequence[Entry], scope: str, key: str, marks: Mapping[int, str]) -> int | None:
    """Which candidate to bring for a needed fact: never a `down` one; an `up` one, then the newest, then the first."""
    found = [
        place for place, entry in enumerate(candidates) if _answers(entry, scope, key) and marks.get(place) != "down"
    ]
    if not found:
        return None
    return max(found, key=lambda place: (marks.get(place) == "up", candidates[place].created_round, -place))


def _answers(entry: Entry, scope: str, key: str) -> bool:
    return entry.scope == scope and answered_key(entry) == key


def answered_key(entry: Entry) -> str:
    """The key that an entry answers; a log answers the question that it begins with."""
    match entry.content:
        case TipContent(trigger=key) | SkillContent(description=key) | ToolContent(name=key):
            return key
        case TrajectoryContent(task=text):
            return text.removeprefix(f"{entry.scope} ").split(" ")[0]


def _keys(task: cv.DemoTask) -> list[str]:
    return list(dict.fromkeys(sub.key for sub in task.subs))


def _candidates(
    domain: cv.Procedural, world: cv.World, task: cv.DemoTask, rng: np.random.Generator, lowest_round: int
) -> list[Entry]:
    n = int(rng.integers(1, MAX_CANDIDATES + 1)) if chance(0.5, rng) else int(rng.integers(5, MAX_CANDIDATES + 1))
    if chance(P_MANY, rng):
        n = int(rng.integers(MAX_CANDIDATES + 1, MANY_CANDIDATES + 1))
    keys = _keys(task)
    facts: list[Noted] = []
    for key in keys:
        if chance(P_PRESENT, rng):
            fact = Noted(world.scope, key, any_round(rng, lowest_round), world.facts[key])
            facts.append(fact)
            while fact.round > 1 and chance(P_STALE, rng):
                facts.append(stale_of(domain, fact, rng))
    facts = facts[:n]
    others = distractors(domain, world.scope, keys, n - len(facts), rng)
    listed = entries(domain, [*facts, *others], rng)
    for place in range(len(facts), len(listed)):
        if domain.spec.levels == cv.TIPS_ONLY and chance(P_OTHER_LEVEL, rng):
            other = other_level(domain, world.scope, rng)
            listed[place] = listed[place] if answered_key(other) in keys else other
    return shuffled(listed, rng)


def _marks(candidates: Sequence[Entry], scope: str, task: cv.DemoTask, rng: np.random.Generator) -> dict[int, str]:
    """`up` and `down` by place; where one answers the task, evidence is likely and mostly for it."""
    marks: dict[int, str] = {}
    keys = set(_keys(task))
    for place, entry in enumerate(candidates):
        answers = any(_answers(entry, scope, key) for key in keys)
        if chance(0.85 if answers else 0.35, rng):
            marks[place] = "up" if chance(0.6 if answers else 0.5, rng) else "down"
    return marks
