"""The maintenance probe: a repository of true entries and wrong rivals; which ones does a policy retire?

Some rivals have shown that they are wrong (they lost where the true one won), others have not been used yet: those
must stay, since nothing but a guess could tell.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

from opd_evolver.benchmark import probe_cases as cases
from opd_evolver.benchmark.statistics import Unit
from opd_evolver.environments.conventions import generator
from opd_evolver.fast.maintenance import Maintenance, MaintenanceSettings, maintenance
from opd_evolver.fast.redundancy import first_shown
from opd_evolver.fast.wave import Wave
from opd_evolver.memory.levels import Count
from opd_evolver.policy.protocol import Policy
from opd_evolver.records import Entry, GenerationRequest, Record, Reply, Task
from opd_evolver.rollout.driver import drive

P_WRONG, P_SHOWN = 0.5, 0.7
TRUE_USES, WRONG_USES = 12, 4
"""Most uses of a true entry and of a wrong one."""


class MaintainCase(Record):
    """A repository and the ids of what has shown itself to be wrong: possibly none."""

    task: Task
    entries: tuple[Entry, ...]
    wrong: frozenset[str]


class Shelf:
    """A repository that holds what was put there."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._entries = list(entries)

    def entries(self) -> list[Entry]:
        """As `Memory.entries`."""
        return self._entries

    def retrieve(
        self, query: str, *, domain: str, scope: str, limit: int, alpha: float, scope_filter: bool
    ) -> Sequence[tuple[Entry, float]]:
        """As `Memory.retrieve`, in the order of the shelf."""
        return [(entry, 1.0) for entry in self._entries if entry.domain == domain][:limit]


def maintain_case(domain: cases.Probed, neighbours: cases.Neighbours, task: Task) -> MaintainCase:
    """The facts of the task's family as entries, half of them beside a wrong rival."""
    rng = generator("probe", "maintain", task.task_id)
    entries: list[Entry] = []
    wrong: set[str] = set()
    for fact in domain.facts(task):
        round_ = 1 + int(rng.integers(cases.LAST_ROUND))
        uses = 4 + int(rng.integers(TRUE_USES - 3))
        counts = {"usage_count": uses, "success_count": uses - int(rng.integers(2))}
        entries.append(cases.entry(domain, task, fact, round_).model_copy(update=counts))
        # Logs of one question are told apart by their question only.
        if domain.spec.level_of(fact.key) == "trajectory" or rng.random() >= P_WRONG:
            continue
        false = fact.model_copy(update={"value": cases.wrong_value(domain, fact, rng)})
        uses = 2 + int(rng.integers(WRONG_USES - 1)) if rng.random() < P_SHOWN else 0
        rival = cases.entry(domain, task, false, 1 + int(rng.integers(cases.LAST_ROUND)))
        entries.append(rival.model_copy(update={"usage_count": uses}))
        if uses:
            wrong.add(rival.entry_id)
    return MaintainCase(task=task, entries=tuple(entries), wrong=frozenset(wrong))


def play(
    made: Sequence[MaintainCase], policy: Policy, settings: MaintenanceSettings, count: Count, batch: int, retries: int
) -> tuple[Unit, ...]:
    """Micro-F1 of what is retired, against the wrong entries that are listed, as a ratio: 2 TP over 2 TP + FP + FN.

    Args:
        made: one case a task.
        policy: what is probed.
        settings: budgets; greedy.
        count: what the entry budget counts.
        batch: episodes answered together.
        retries: further tries when the policy's endpoint is down.
    """

    def start(case: MaintainCase) -> Callable[[], Generator[GenerationRequest, Reply, Maintenance]]:
        wave = Wave(round=cases.LAST_ROUND + 1, index=0, n_tasks=1, microbatches=(), maintain_after=True)
        return lambda: maintenance(wave, Shelf(case.entries), settings, count)

    played = drive(policy, [start(case) for case in made], batch, outage_retries=retries)
    units = []
    for case, done in zip(made, played, strict=True):
        listed = {entry.entry_id for entry in first_shown(case.entries, settings.shown)}
        kept = {entry.entry_id for entry in done.created}
        retired = {entry_id for one in done.operations for entry_id in one.retired} - kept
        right = case.wrong & listed
        units.append(
            Unit(
                task_id=case.task.task_id,
                family=case.task.family,
                domain=case.task.domain,
                numerator=2.0 * len(right & retired),
                denominator=float(len(right) + len(retired)),
            )
        )
    return tuple(units)
