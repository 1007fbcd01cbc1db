"""Breaches of the protocol that `check_env` looks for: in the lists of tasks, and in episodes."""

from __future__ import annotations

import re
import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from opd_evolver.environments.conventions import Procedural
from opd_evolver.environments.playing import MAX_STEPS, Choose, Transcript, bad_actions, play
from opd_evolver.environments.protocol import Conventions, Environment, Oracle
from opd_evolver.records import Split, Task

LONGEST_OBSERVATION_WORDS = 200
DEPLOYED: tuple[Split, ...] = ("deploy-train", "deploy-val", "deploy-test")
HELD_APART: tuple[tuple[Split, ...], ...] = (
    ("seed",),
    DEPLOYED,
    ("novel-val",),
    ("novel-test",),
)


@dataclass
class Findings:
    """Problems, each said once, and the sizes met on the way."""

    problems: dict[str, None] = field(default_factory=dict)
    longest_episode: int = 0
    longest_observation: int = 0
    steps: int = 0
    seconds: float = 0.0

    def expect(self, holds: bool, problem: str) -> None:
        if not holds:
            self.problems[problem] = None

    def note(self, played: Transcript) -> None:
        self.expect(not played.fault, played.fault)
        self.longest_episode = max(self.longest_episode, len(played.steps))
        self.longest_observation = max(self.longest_observation, *(len(o.split()) for o in played.observations))
        self.steps += len(played.steps)
        self.seconds += played.seconds


# ── lists of tasks ────────────────────────────────────────────────────────────────────────────


def check_lists(
    environment: Environment,
    fresh: Callable[[], Environment],
    listed: dict[Split, Sequence[Task]],
    has_families: bool,
    n_tasks: int,
    found: Findings,
) -> None:
    other = fresh()
    for split, tasks in listed.items():
        found.expect(split in ("seed", "novel-val", "novel-test") or bool(tasks), f"{split} has no tasks")
        found.expect(list(other.tasks(split, n_tasks)) == list(tasks), f"{split}: two instances list other tasks")
        for n in {0, 1, n_tasks // 2}:
            prefix = list(environment.tasks(split, n))
            found.expect(prefix == list(tasks[:n]), f"{split}: {n} tasks are no prefix of {n_tasks} tasks")
        for task in tasks:
            found.expect(task.split == split, f"{split} lists a task of {task.split}")
            found.expect(task.domain == environment.domain, f"{split} lists a task of domain {task.domain!r}")
            told = has_families and _says(task.text, task.family)
            found.expect(not told, f"{split}: the family label stands in the text")
    other.close()
    repeated = [i for i, n in Counter(t.task_id for tasks in listed.values() for t in tasks).items() if n > 1]
    found.expect(not repeated, f"task id {repeated[0] if repeated else ''} is listed twice")
    _check_unseen(listed, found)
    if has_families:
        _check_apart(listed, found)


def _says(text: str, phrase: str) -> bool:
    """Whether the words of `phrase`, if it has any, stand in a text as words of their own."""
    return bool(phrase) and re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", text) is not None


def _check_unseen(listed: dict[Split, Sequence[Task]], found: Findings) -> None:
    """What was asked in one deployed split and is asked in another measures recall of the answer, not of the rule."""
    for left, right in combinations(DEPLOYED, 2):
        asked = {(task.scope, task.text) for task in listed[left]}
        both = [task.text for task in listed[right] if (task.scope, task.text) in asked]
        found.expect(not both, f"{len(both)} tasks of {right} are in {left} too: {both[0] if both else ''!r}")


def _check_apart(listed: dict[Split, Sequence[Task]], found: Findings) -> None:
    for what in ("scope", "family"):
        sets = [{getattr(task, what) for split in group for task in listed[split]} for group in HELD_APART]
        for i, left in enumerate(sets):
            for j in range(i + 1, len(sets)):
                both = sorted(left & sets[j])
                found.expect(
                    not both, f"{what} {both[0] if both else ''} is in {HELD_APART[i][0]} and in {HELD_APART[j][0]}"
                )


# ── episodes ──────────────────────────────────────────────────────────────────────────────────


def check_episodes(
    environment: Environment, fresh: Callable[[], Environment], tests: Sequence[Task], found: Findings
) -> float | None:
    """Expert success on deploy-test, None without an expert."""
    other = fresh()
    canary = f"canary-{secrets.token_hex(8)}"
    choices = _choices(environment, tests)
    succeeded = 0
    for number, task in enumerate(tests):
        expert = _expert(environment, task)
        played = play(environment, task, expert or bad_actions(number))
        found.note(played)
        # A budget of steps is the runner's work: only where all is done right must a world end the episode itself.
        ends = expert is None or bool(played.fault) or played.ended
        found.expect(ends, f"an episode that is played right has no end within {MAX_STEPS} steps")
        succeeded += played.success
        poor = play(environment, task, bad_actions(number))
        found.note(poor)
        marked = task.model_copy(update={"family": canary, "gold": {**task.gold, "canary": canary}})
        again = play(other, marked, _expert(other, marked) or bad_actions(number))
        found.expect(again.observations == played.observations, "an episode is not deterministic, or reads the family")
        found.expect(
            [s.reward for s in again.steps] == [s.reward for s in played.steps], "rewards are not deterministic"
        )
        found.expect(not any(canary in o for o in again.observations), "an observation shows gold or family")
        for transcript in (played, poor):
            _check_steps(transcript, found)
        _check_leak(environment, task, f"{task.text} {played.first}", choices, found)
    other.close()
    return succeeded / len(tests) if isinstance(environment, Oracle) and tests else None


def _expert(environment: Environment, task: Task) -> Choose | None:
    if not isinstance(environment, Oracle):
        return None
    oracle: Oracle = environment
    return lambda _: oracle.oracle(task)


def _check_steps(played: Transcript, found: Findings) -> None:
    for step in played.steps:
        found.expect(isinstance(step.info.get("success"), bool), 'info["success"] is missing or no bool')
        found.expect("\n" not in step.observation, "an observation has line breaks")
        found.expect(
            len(step.observation.split()) <= LONGEST_OBSERVATION_WORDS,
            f"an observation is longer than {LONGEST_OBSERVATION_WORDS} words",
        )
    total = played.episode_return
    found.expect(-1e-9 <= total <= 1 + 1e-9, f"rewards of an episode sum to {total:.3f}, outside [0, 1]")


def _choices(environment: Environment, tests: Sequence[Task]) -> dict[str, set[str]]:
    """The values that each key can have: as a procedural domain says, else as other tasks have them."""
    found: dict[str, set[str]] = {}
    if isinstance(environment, Conventions):
        for fact in (fact for task in tests for fact in environment.facts(task)):
            found.setdefault(fact.key, set()).add(fact.value)
    return {key: {*environment.values(key)} for key in found} if isinstance(environment, Procedural) else found


def _check_leak(environment: Environment, task: Task, said: str, choices: dict[str, set[str]], found: Findings) -> None:
    """A value may stand in the text only where all values do (a list of choices)."""
    if not isinstance(environment, Conventions):
        return
    for fact in environment.needed(task):
        values = choices.get(fact.key, set())
        listed = len(values) > 1 and all(_says(said, value) for value in values)
        leaked = _says(said, fact.value) and not listed
        found.expect(not leaked, f"the text or first observation tells a hidden value ({fact.key})")
