"""Hand-placed memories and histories for the probes: made of a domain's true conventions, always the same.

The probes ask what a policy can do with memory, apart from what a run happened to write. Only
procedural domains, whose hidden facts are known, can be probed; no agent ever sees these facts
but through the memories placed here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np

from opd_evolver.abilities import act
from opd_evolver.benchmark.wordings import reworded
from opd_evolver.environments.contents import content_of
from opd_evolver.environments.conventions import DemoSub, Procedural, generator
from opd_evolver.environments.procedures import words_of
from opd_evolver.environments.protocol import Conventions, Environment
from opd_evolver.environments.tasks import moves_of
from opd_evolver.records import Entry, Fact, Record, Split, Task, TurnRecord, uuid5_of
from opd_evolver.rollout import tools
from opd_evolver.seed.replies import Belief, followed, said
from opd_evolver.seed.select_data import answered_key

N_DISTRACTORS = 3
N_OVERRIDE_DISTRACTORS = 2
N_CANDIDATES, N_MANY_CANDIDATES = 8, 20
LAST_ROUND = 9
# How many families the distractors come from at most; task i belongs to family i mod families.
POOL_TASKS = 64
# Refused guesses before the last word of a fact, by how the episode goes.
MISSES = {"first": 0, "second": 1, "never": 2}
Placement = Literal[
    "memory_use", "no_memory", "distractors_only", "wrong_scope", "permuted", "reworded", "override", "drift"
]


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

    def twins(self, task: Task, needed: Sequence[Fact], rng: np.random.Generator) -> list[Fact]:
        """For each needed fact up to two of the same key in other scopes, that say something else."""
        found = []
        for fact in needed:
            others = [one for one in self._facts if one.key == fact.key and one.scope != task.scope]
            found += _shuffled([one for one in others if one.value != fact.value], rng)[:2]
        return found


def _shuffled(items: Sequence[Fact], rng: np.random.Generator) -> list[Fact]:
    return [items[place] for place in rng.permutation(len(items))]


def entry(domain: Probed, task: Task, fact: Fact, created_round: int) -> Entry:
    """A fact as a memory entry of the level that carries it best."""
    entry_id = uuid5_of("probe", task.domain, fact.scope, fact.key, fact.value, str(created_round))
    return Entry(
        entry_id=entry_id,
        domain=task.domain,
        scope=fact.scope,
        content=content_of(domain, fact.scope, fact.key, fact.value, generator("probe", entry_id)),
        created_round=created_round,
    )


def _entries(domain: Probed, task: Task, facts: Sequence[Fact], rng: np.random.Generator) -> list[Entry]:
    return [entry(domain, task, fact, 1 + int(rng.integers(LAST_ROUND))) for fact in facts]


def _mixed(entries: Sequence[Entry], rng: np.random.Generator) -> tuple[Entry, ...]:
    return tuple(entries[place] for place in rng.permutation(len(entries)))


def wrong_value(domain: Probed, fact: Fact, rng: np.random.Generator) -> str:
    """Another value that the fact's key could have."""
    values = [value for value in domain.values(fact.key) if value != fact.value]
    return values[int(rng.integers(len(values)))]


def act_case(domain: Probed, neighbours: Neighbours, task: Task, placement: Placement) -> ActCase:
    """A task with its memories: the true entries among distractors, none, distractors only, or stale and new ones.

    Two are controls. `wrong_scope`: the needed questions, answered for other scopes only; no better than none.
    `permuted`: the values of the scope's facts change places in the world and in the memory; as good as `memory_use`
    where the policy reads, and no better than chance where it knows. `reworded`: `memory_use` with tips in other words.
    `drift` is override on a family whose rule has changed in the world: the stale entry holds what was
    true during deployment. Where a policy has taken the old rule into its weights, only obeying the
    newest entry helps.
    """
    rng = generator("probe", placement, task.task_id)
    old = domain.needed(task)
    if placement == "drift":
        task = _drifted(domain, task, rng)
    if placement == "permuted":
        task = _permuted(domain, task)
    needed = domain.needed(task)
    if placement == "no_memory":
        return ActCase(task=task, entries=())
    if placement == "distractors_only":
        others = neighbours.distractors(domain, task, N_DISTRACTORS, rng)
        return ActCase(task=task, entries=_mixed(_entries(domain, task, others, rng), rng))
    if placement == "wrong_scope":
        return ActCase(task=task, entries=_mixed(_entries(domain, task, neighbours.twins(task, needed, rng), rng), rng))
    if placement in ("memory_use", "permuted", "reworded"):
        others = neighbours.distractors(domain, task, N_DISTRACTORS, rng)
        held = _entries(domain, task, [*needed, *others], rng)
        return ActCase(task=task, entries=_mixed(reworded(held, rng) if placement == "reworded" else held, rng))
    entries = _entries(domain, task, neighbours.distractors(domain, task, N_OVERRIDE_DISTRACTORS, rng), rng)
    for before, now in zip(old, needed, strict=True):
        stale = before.value if placement == "drift" else wrong_value(domain, now, rng)
        round_ = 1 + int(rng.integers(LAST_ROUND - 1))
        later = round_ + 1 + int(rng.integers(LAST_ROUND - round_))
        entries.append(entry(domain, task, now, later))
        # Of two logs only the first line tells the newer one: to choose is selection's work, not acting's.
        if domain.spec.level_of(now.key) != "trajectory":
            entries.append(entry(domain, task, now.model_copy(update={"value": stale}), round_))
    return ActCase(task=task, entries=_mixed(entries, rng))


def _drifted(domain: Probed, task: Task, rng: np.random.Generator) -> Task:
    changed = {fact.key: wrong_value(domain, fact, rng) for fact in domain.needed(task)}
    return task.model_copy(update={"gold": {**task.gold, "facts": {**task.gold["facts"], **changed}}})


def _permuted(domain: Probed, task: Task) -> Task:
    """The values of the scope's facts, each level apart, move on by one place."""
    by_level: dict[str, list[Fact]] = {}
    for fact in domain.facts(task):
        by_level.setdefault(domain.spec.level_of(fact.key), []).append(fact)
    changed: dict[str, str] = {}
    for facts in by_level.values():
        values = [fact.value for fact in facts]
        changed |= {fact.key: value for fact, value in zip(facts, [*values[1:], values[0]], strict=True)}
    return task.model_copy(update={"gold": {**task.gold, "facts": {**task.gold["facts"], **changed}}})


def select_case(domain: Probed, neighbours: Neighbours, task: Task, n_candidates: int = N_CANDIDATES) -> SelectCase:
    """So many candidates, of which as many are right as the task needs, or fewer, or none."""
    rng = generator("probe", "select" if n_candidates == N_CANDIDATES else f"select {n_candidates}", task.task_id)
    needed = domain.needed(task)
    n_right = int(rng.choice(len(needed) + 1, p=(0.25, 0.75) if len(needed) == 1 else _shares(len(needed))))
    right = _shuffled(needed, rng)[:n_right]
    others = neighbours.distractors(domain, task, n_candidates - n_right, rng)
    candidates = _mixed(_entries(domain, task, [*right, *others], rng), rng)
    wanted = {(fact.scope, fact.key) for fact in right}
    places = frozenset(place for place, one in enumerate(candidates) if (one.scope, answered_key(one)) in wanted)
    return SelectCase(task=task, candidates=candidates, right=places)


def _shares(n: int) -> tuple[float, ...]:
    """None right in a fifth of the cases, all in half of them."""
    return (0.2, *((0.3 / (n - 1),) * (n - 1)), 0.5)


class _Script:
    """Plays one task through the real engine: known from memory, guessed right, or guessed wrong first."""

    def __init__(self, domain: Probed, task: Task) -> None:
        self.domain, self.task = domain, task
        self.rng = generator("probe", "write", task.task_id)
        self.observation = domain.reset(task)
        self.moves = moves_of(task)
        self.turns: list[TurnRecord] = []
        self.replies: list[str] = []
        self.place = 0
        self.over = self.success = False

    def reply(self, text: str, injected: Sequence[Entry] = ()) -> bool:
        """One act turn; whether the engine took it for right."""
        action, _ = act.parse(text)
        if tools.is_call(action):
            called = tools.call(
                action, self.domain, injected, steps_left=99, sandbox=lambda: None, scope=self.task.scope
            )
            step = called.step
        else:
            step = self.domain.step(action)
        self.turns.append(
            TurnRecord(observation=self.observation, action=action, result=step.observation, reward=step.reward)
        )
        self.replies.append(text)
        self.observation = step.observation
        self.over, self.success = step.terminated or step.truncated, bool(step.info["success"])
        before, self.place = self.place, round(float(step.info["progress"]) * len(self.moves))
        return self.place > before

    def asked(self) -> DemoSub:
        """The current move as the seed data words it."""
        return DemoSub(*self.moves[self.place][:2], text="", next_text="", stage=self.moves[self.place].stage)

    def follow(self, held: Entry, fact: Fact) -> None:
        """Answer the current sub-question from a right entry."""
        belief = Belief(f"r{held.created_round}", fact.value, held)
        while not self.over and self.moves[self.place].key == fact.key:
            self.reply(followed(self.domain, belief, fact.scope, self.asked()), [held])

    def guess(self, fact: Fact, course: str) -> bool:
        """Answer it by guessing, with the misses of a course before its last word; whether it was answered."""
        right = words_of(fact.value)
        for stage, word in enumerate(right):
            wrong = [one for one in self.domain.spec.choices(fact.key) if one not in right[: stage + 1]]
            n_missed = MISSES[course] if word == right[-1] else int(self.rng.integers(2))
            missed = [*_shuffled_words(wrong, self.rng), *right[:stage]][:n_missed]
            for guessed in (*missed, word):
                if self.over:
                    return False
                self.reply(said("guess", self.domain, fact.scope, self.asked(), guessed))
        return True


def _shuffled_words(items: Sequence[str], rng: np.random.Generator) -> list[str]:
    return [items[place] for place in rng.permutation(len(items))]


def write_case(domain: Probed, task: Task) -> WriteCase:
    """An episode in which each needed fact was known, guessed at once, at the second attempt, or never."""
    script = _Script(domain, task)
    known: list[Entry] = []
    revealed: list[Entry] = []
    for place, fact in enumerate(domain.needed(task)):
        if script.over:
            break
        course = int(script.rng.choice(4, p=(0.3, 0.25, 0.25, 0.2)))
        if course == 0:
            held = _entries(domain, task, [fact], script.rng)[0]
            known.append(held)
            script.follow(held, fact)
        elif script.guess(fact, tuple(MISSES)[course - 1]) and _noted(domain, fact, place):
            revealed.append(entry(domain, task, fact, 0))
    return WriteCase(
        task=task,
        memories=tuple(known),
        turns=tuple(script.turns),
        replies=tuple(script.replies),
        episode_return=min(1.0, max(0.0, sum(turn.reward for turn in script.turns))),
        success=script.success,
        revealed=tuple(revealed),
    )


def _noted(domain: Probed, fact: Fact, place: int) -> bool:
    """A log serves the question that it begins with; everything else is noted wherever it came."""
    return place == 0 or domain.spec.level_of(fact.key) != "trajectory"
