"""Hand-placed memories and histories for the probes: made of a domain's true conventions, always the same.

The probes ask what a policy can do with memory, apart from what a run happened to write. Only
procedural domains, whose hidden facts are known, can be probed; no agent ever sees these facts
but through the memories placed here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np

from opd_evolver.environments.conventions import Procedural, generator
from opd_evolver.environments.protocol import Conventions, Environment
from opd_evolver.environments.tasks import subs_of
from opd_evolver.memory.levels import n_words, render
from opd_evolver.records import Entry, Fact, Record, Split, Task, TipContent, TurnRecord, uuid5_of

N_DISTRACTORS = 3
N_OVERRIDE_DISTRACTORS = 2
N_CANDIDATES = 8
LAST_ROUND = 9
# How many families the distractors come from at most; task i belongs to family i mod families.
POOL_TASKS = 64
Placement = Literal["memory_use", "no_memory", "distractors_only", "override", "drift"]


class Probed(Environment, Conventions, Procedural, Protocol):
    """A domain that can be probed."""


class ActCase(Record):
    """A task and the entries that are put before the policy."""

    task: Task
    entries: tuple[Entry, ...]


class SelectCase(Record):
    """Candidates, and the places (0-based) of those that are right: possibly none."""

    task: Task
    candidates: tuple[Entry, ...]
    right: frozenset[int]


class WriteCase(Record):
    """An episode played by script, and the tips that it newly revealed: possibly none."""

    task: Task
    memories: tuple[Entry, ...]
    turns: tuple[TurnRecord, ...]
    replies: tuple[str, ...]
    episode_return: float
    success: bool
    revealed: tuple[Entry, ...]


class Neighbours:
    """The facts of other families of a domain and split: where distractors come from."""

    def __init__(self, domain: Probed, split: Split) -> None:
        found: dict[str, tuple[Fact, ...]] = {}
        for task in domain.tasks(split, POOL_TASKS):
            found.setdefault(task.scope, domain.facts(task))
        self._facts = tuple(fact for facts in found.values() for fact in facts)

    def distractors(self, domain: Probed, task: Task, n: int, rng: np.random.Generator) -> list[Fact]:
        """By turns: the task's scope with a key it does not need, a needed key of another scope, any other fact."""
        needed = {fact.key for fact in domain.needed(task)}
        same = [fact for fact in domain.facts(task) if fact.key not in needed]
        others = [fact for fact in self._facts if fact.scope != task.scope]
        twins = [fact for fact in others if fact.key in needed]
        kinds = [_shuffled(kind, rng) for kind in (same, twins, others)]
        chosen: list[Fact] = []
        while len(chosen) < n and any(kinds):
            kind = kinds[len(chosen) % len(kinds)] or next(kind for kind in kinds if kind)
            fact = kind.pop()
            if fact not in chosen:
                chosen.append(fact)
        return chosen


def _shuffled(items: Sequence[Fact], rng: np.random.Generator) -> list[Fact]:
    return [items[place] for place in rng.permutation(len(items))]


def tip(task: Task, fact: Fact, created_round: int) -> Entry:
    """A fact as a memory entry of the tip level."""
    return Entry(
        entry_id=uuid5_of("probe", task.domain, fact.scope, fact.key, fact.value, str(created_round)),
        domain=task.domain,
        scope=fact.scope,
        content=TipContent(trigger=fact.key, text=fact.value),
        created_round=created_round,
    )


def _tips(task: Task, facts: Sequence[Fact], rng: np.random.Generator) -> list[Entry]:
    return [tip(task, fact, 1 + int(rng.integers(LAST_ROUND))) for fact in facts]


def _mixed(entries: Sequence[Entry], rng: np.random.Generator) -> tuple[Entry, ...]:
    return tuple(entries[place] for place in rng.permutation(len(entries)))


def wrong_value(domain: Probed, fact: Fact, rng: np.random.Generator) -> str:
    """Another value that the fact's key could have."""
    values = [value for value in domain.values(fact.key) if value != fact.value]
    return values[int(rng.integers(len(values)))]


def act_case(domain: Probed, neighbours: Neighbours, task: Task, placement: Placement) -> ActCase:
    """A task with its memories: the true entries among distractors, none, distractors only, or stale and new ones.

    `drift` is override on a family whose rule has changed in the world: the stale entry holds what was
    true during deployment. Where a policy has taken the old rule into its weights, only obeying the
    newest entry helps.
    """
    rng = generator("probe", placement, task.task_id)
    old = domain.needed(task)
    if placement == "drift":
        task = _drifted(domain, task, rng)
    needed = domain.needed(task)
    if placement == "no_memory":
        return ActCase(task=task, entries=())
    if placement == "distractors_only":
        return ActCase(
            task=task, entries=_mixed(_tips(task, neighbours.distractors(domain, task, N_DISTRACTORS, rng), rng), rng)
        )
    if placement == "memory_use":
        others = neighbours.distractors(domain, task, N_DISTRACTORS, rng)
        return ActCase(task=task, entries=_mixed(_tips(task, [*needed, *others], rng), rng))
    entries = _tips(task, neighbours.distractors(domain, task, N_OVERRIDE_DISTRACTORS, rng), rng)
    for before, now in zip(old, needed, strict=True):
        stale = before.value if placement == "drift" else wrong_value(domain, now, rng)
        round_ = 1 + int(rng.integers(LAST_ROUND - 1))
        later = round_ + 1 + int(rng.integers(LAST_ROUND - round_))
        entries += [tip(task, now.model_copy(update={"value": stale}), round_), tip(task, now, later)]
    return ActCase(task=task, entries=_mixed(entries, rng))


def _drifted(domain: Probed, task: Task, rng: np.random.Generator) -> Task:
    changed = {fact.key: wrong_value(domain, fact, rng) for fact in domain.needed(task)}
    return task.model_copy(update={"gold": {**task.gold, "facts": {**task.gold["facts"], **changed}}})


def select_case(domain: Probed, neighbours: Neighbours, task: Task) -> SelectCase:
    """Eight candidates, of which as many are right as the task needs, or fewer, or none."""
    rng = generator("probe", "select", task.task_id)
    needed = domain.needed(task)
    n_right = int(rng.choice(len(needed) + 1, p=(0.25, 0.75) if len(needed) == 1 else _shares(len(needed))))
    right = _shuffled(needed, rng)[:n_right]
    others = neighbours.distractors(domain, task, N_CANDIDATES - n_right, rng)
    candidates = _mixed(_tips(task, [*right, *others], rng), rng)
    wanted = {(fact.scope, fact.key) for fact in right}
    places = frozenset(place for place, entry in enumerate(candidates) if _named(entry) in wanted)
    return SelectCase(task=task, candidates=candidates, right=places)


def _shares(n: int) -> tuple[float, ...]:
    """None right in a fifth of the cases, all in half of them."""
    return (0.2, *((0.3 / (n - 1),) * (n - 1)), 0.5)


def _named(entry: Entry) -> tuple[str, str]:
    content = entry.content
    return entry.scope, content.trigger if isinstance(content, TipContent) else ""


class _Script:
    """Plays one task through the real engine: known from memory, guessed right, or guessed wrong first."""

    def __init__(self, domain: Probed, task: Task) -> None:
        self.domain, self.task = domain, task
        self.rng = generator("probe", "write", task.task_id)
        self.observation = domain.reset(task)
        self.turns: list[TurnRecord] = []
        self.replies: list[str] = []
        self.over = self.success = False

    def attempt(self, place: int, value: str, recited: str) -> bool:
        """One act turn; whether the engine took it for right."""
        action = self.domain.action(subs_of(self.task)[place], value)
        step = self.domain.step(action)
        self.turns.append(
            TurnRecord(observation=self.observation, action=action, result=step.observation, reward=step.reward)
        )
        self.replies.append(f"{recited} do {action}")
        self.observation = step.observation
        self.over, self.success = step.terminated or step.truncated, bool(step.info["success"])
        return float(step.info["score"]) >= 1.0

    def guess(self, place: int, fact: Fact, value: str) -> bool:
        return self.attempt(place, value, f"{fact.scope} {fact.key} guess {value}")


def write_case(domain: Probed, task: Task) -> WriteCase:
    """An episode in which each needed fact was known, guessed at once, at the second attempt, or never."""
    script = _Script(domain, task)
    known: list[Entry] = []
    revealed: list[Entry] = []
    for place, fact in enumerate(domain.needed(task)):
        if script.over:
            break
        course = script.rng.choice(4, p=(0.3, 0.25, 0.25, 0.2))
        if course == 0:
            entry = _tips(task, [fact], script.rng)[0]
            known.append(entry)
            script.attempt(place, fact.value, render(entry, token_budget=1_000_000, count=n_words))
            continue
        wrong = [wrong_value(domain, fact, script.rng) for _ in range(2)]
        values = ([fact.value], [wrong[0], fact.value], wrong)[course - 1]
        for value in values:
            if not script.over and script.guess(place, fact, value):
                revealed.append(tip(task, fact.model_copy(update={"value": value}), 0))
                break
    return WriteCase(
        task=task,
        memories=tuple(known),
        turns=tuple(script.turns),
        replies=tuple(script.replies),
        episode_return=min(1.0, max(0.0, sum(turn.reward for turn in script.turns))),
        success=script.success,
        revealed=tuple(revealed),
    )
