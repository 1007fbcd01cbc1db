"""`opd check-env`: proves that an environment keeps the protocol, and measures how hard it is.

`problems` are breaches of the protocol; `below_floor` tells where a world is too easy or too small for a
curve to mean something (see docs/environments.md). Environments without families or conventions are
checked for the rest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from opd_evolver.environments import registry
from opd_evolver.environments.breaches import Findings, check_episodes, check_lists
from opd_evolver.environments.conventions import TIPS_ONLY, Procedural
from opd_evolver.environments.playing import Transcript, play, random_values
from opd_evolver.environments.protocol import Conventions, Environment
from opd_evolver.records import SPLITS, Level, Record, Split, Task
from opd_evolver.sections import NO_HEADROOM, HeadroomParams

FLOOR_FAMILIES = 12
FLOOR_FACTS = 2
FLOOR_VALUES = 8
FLOOR_TWO_FACTS = 0.30
FLOOR_TEST_TASKS = 100
FLOOR_EXPERT = 0.98


class SplitReport(Record):
    """What a split holds.

    Args:
        new_texts: share of texts that deploy-train does not have.
        headroom: share of tasks that meet each kind of headroom.
    """

    tasks: int
    families: int
    new_texts: float
    headroom: dict[str, float]


class CheckReport(Record):
    """What `check_env` found. Rates are shares of deploy-test tasks; None where not measurable.

    Args:
        chance: success of random valid values, drawn anew for each attempt.
        exploration: success of trying values without repeating a refused one; what no memory can reach.
        exploration_return: the same agent's mean return.
        ms_per_step: mean wall time of a step, milliseconds.
        homes: families of deploy-test by the memory level that they ask for; empty where only tips are.
    """

    name: str
    passed: bool
    problems: tuple[str, ...]
    below_floor: tuple[str, ...]
    splits: dict[str, SplitReport]
    has_families: bool
    facts: int | None
    facts_per_family: int | None
    values_per_fact: int | None
    two_fact_share: float | None
    chance: float | None
    exploration: float | None
    exploration_return: float | None
    expert: float | None
    longest_episode: int
    longest_text_words: int
    longest_observation_words: int
    ms_per_step: float
    homes: dict[str, int]

    def text(self) -> str:
        """The report for people, a line a finding."""

        def shown(value: float | None) -> str:
            return "not measured" if value is None else f"{value:.2f}"

        lines = [f"{self.name}: {'passed' if self.passed else 'FAILED'}"]
        lines += [f"  problem      {problem}" for problem in self.problems]
        lines += [f"  below floor  {finding}" for finding in self.below_floor]
        for split, counts in self.splits.items():
            unseen = "" if split == "deploy-train" else f", {counts.new_texts:.0%} of texts not in deploy-train"
            met = "".join(f", {kind} {share:.2f}" for kind, share in counts.headroom.items())
            lines.append(f"  {split:<12} {counts.tasks} tasks, {counts.families} families{unseen}{met}")
        facts = (
            f"  facts        {self.facts or 'not measured'} in all, {self.facts_per_family or '?'} a family, "
            f"{self.values_per_fact or '?'} values a fact, two facts in {shown(self.two_fact_share)} of tasks"
        )
        success = (
            f"  success      expert {shown(self.expert)} · exploring {shown(self.exploration)} "
            f"(return {shown(self.exploration_return)}) · chance {shown(self.chance)}"
        )
        limits = (
            f"  limits       episodes ≤ {self.longest_episode} steps, texts ≤ {self.longest_text_words} words, "
            f"observations ≤ {self.longest_observation_words} words, {self.ms_per_step:.2f} ms a step"
        )
        homes = ", ".join(f"{n} {home}" for home, n in self.homes.items())
        told = [f"  levels       families by home: {homes}"] if homes else []
        return "\n".join([*lines, facts, *told, success, limits])


def table(reports: Sequence[CheckReport], absent: Mapping[str, str]) -> str:
    """All environments in one table, a line each.

    Args:
        reports: of those that could be played.
        absent: what installs the others, by name.
    """

    def shown(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    head = ("environment", "families", "facts", "chance", "expert", "exploring", "ms a step")
    rows = [head]
    for report in reports:
        families = str(report.splits["deploy-test"].families) if report.has_families else "-"
        rates = (shown(report.chance), shown(report.expert), shown(report.exploration))
        rows.append((report.name, families, str(report.facts or "-"), *rates, f"{report.ms_per_step:.1f}"))
    lines = [f"{row[0]:<14}" + "".join(f"{cell:>11}" for cell in row[1:]) for row in rows]
    lines += [f"{name:<14}  not installed: {command}" for name, command in absent.items()]
    return "\n".join(lines)


def check_env(
    name: str,
    n_tasks: int = 120,
    levels: Sequence[Level] = TIPS_ONLY,
    headroom: HeadroomParams = NO_HEADROOM,
) -> CheckReport:
    """Check the environment `name`.

    Args:
        name: as in `registry.load`.
        n_tasks: tasks per split that are looked at; deploy-test's are played several times.
        levels: as in `registry.load`.
        headroom: as in `registry.load`.

    Raises:
        SetupError: there is no such environment.
        OutageError: its engine is down; nothing is concluded.
    """
    environment = registry.load(name, levels, headroom)
    try:
        return _check(name, environment, lambda: registry.load(name, levels, headroom), n_tasks)
    finally:
        environment.close()


def _check(name: str, environment: Environment, fresh: Callable[[], Environment], n_tasks: int) -> CheckReport:
    found = Findings()
    listed: dict[Split, Sequence[Task]] = {split: environment.tasks(split, n_tasks) for split in SPLITS}
    has_families = len({task.family for tasks in listed.values() for task in tasks}) > 1
    check_lists(environment, fresh, listed, has_families, n_tasks, found)
    tests = listed["deploy-test"]
    expert = check_episodes(environment, fresh, tests, found)
    chance = exploration = exploration_return = None
    if isinstance(environment, Procedural) and tests:
        guesses = [play(environment, t, random_values(environment, t, repeat=True)) for t in tests]
        explored = [play(environment, t, random_values(environment, t, repeat=False)) for t in tests]
        for transcript in (*guesses, *explored):
            found.note(transcript)
        chance, exploration = _success(guesses), _success(explored)
        exploration_return = sum(p.episode_return for p in explored) / len(explored)
    facts = _facts(environment, tests)
    return CheckReport(
        name=name,
        passed=not found.problems,
        problems=tuple(found.problems),
        below_floor=tuple(_below_floor(tests, facts, expert)),
        splits=_split_reports(listed),
        has_families=has_families,
        facts=facts.total if facts else None,
        facts_per_family=facts.per_family if facts else None,
        values_per_fact=facts.values if facts else None,
        two_fact_share=facts.two_share if facts else None,
        chance=chance,
        exploration=exploration,
        exploration_return=exploration_return,
        expert=expert,
        longest_episode=found.longest_episode,
        longest_text_words=max((len(t.text.split()) for tasks in listed.values() for t in tasks), default=0),
        longest_observation_words=found.longest_observation,
        ms_per_step=1000 * found.seconds / max(found.steps, 1),
        homes=_homes(tests),
    )


def _success(played: Sequence[Transcript]) -> float:
    return sum(p.success for p in played) / len(played)


def _split_reports(listed: dict[Split, Sequence[Task]]) -> dict[str, SplitReport]:
    known = {task.text for task in listed["deploy-train"]}
    return {
        split: SplitReport(
            tasks=len(tasks),
            families=len({task.family for task in tasks}),
            new_texts=round(sum(task.text not in known for task in tasks) / max(len(tasks), 1), 4),
            headroom=_headroom(tasks),
        )
        for split, tasks in listed.items()
    }


def _homes(tests: Sequence[Task]) -> dict[str, int]:
    by_family = {task.family: str(task.gold["home"]) for task in tests if "home" in task.gold}
    return dict(sorted(Counter(by_family.values()).items()))


def _headroom(tasks: Sequence[Task]) -> dict[str, float]:
    met = Counter(kind for task in tasks for kind in task.gold.get("headroom", ()))
    return {kind: round(n / len(tasks), 4) for kind, n in sorted(met.items())}


# ── difficulty ────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _Facts:
    total: int
    per_family: int
    values: int | None
    two_share: float


def _facts(environment: Environment, tests: Sequence[Task]) -> _Facts | None:
    if not isinstance(environment, Conventions) or not tests:
        return None
    by_family = {task.family: environment.facts(task) for task in tests}
    values = None
    if isinstance(environment, Procedural):
        values = min(len(environment.values(f.key)) for facts in by_family.values() for f in facts)
    two = sum(len({fact.key for fact in environment.needed(task)}) >= 2 for task in tests)
    return _Facts(
        total=sum(len(facts) for facts in by_family.values()),
        per_family=min(len(facts) for facts in by_family.values()),
        values=values,
        two_share=two / len(tests),
    )


def _below_floor(tests: Sequence[Task], facts: _Facts | None, expert: float | None) -> list[str]:
    families = len({task.family for task in tests})
    measured: list[tuple[str, float | None, float]] = [
        ("deployed families", families, FLOOR_FAMILIES),
        ("deploy-test tasks", len(tests), FLOOR_TEST_TASKS),
        ("facts a family", facts.per_family if facts else None, FLOOR_FACTS),
        ("values a fact", facts.values if facts else None, FLOOR_VALUES),
        ("share of two-fact tasks", facts.two_share if facts else None, FLOOR_TWO_FACTS),
        ("expert success", expert, FLOOR_EXPERT),
    ]
    return [
        f"{what}: {'not measured' if value is None else f'{value:g}'}, at least {least:g} wanted"
        for what, value, least in measured
        if value is None or value < least
    ]
