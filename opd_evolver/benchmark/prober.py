"""Plays the probes of one policy on one split: real engines, real episodes, the abilities' own prompts, greedy."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, cast

from opd_evolver.abilities import dialects
from opd_evolver.benchmark import maintain_probe
from opd_evolver.benchmark import probe_cases as cases
from opd_evolver.benchmark.statistics import Outcome, Unit
from opd_evolver.environments.protocol import Conventions, Environment
from opd_evolver.errors import SetupError
from opd_evolver.fast.maintenance import MaintenanceSettings
from opd_evolver.params import Params
from opd_evolver.policy.protocol import Policy
from opd_evolver.records import (
    Ability,
    Attribution,
    Entry,
    GenerationRequest,
    Level,
    Prompt,
    Reply,
    Sampling,
    Split,
    Task,
)
from opd_evolver.rollout.budget import policy_count
from opd_evolver.rollout.driver import drive
from opd_evolver.rollout.runner import EnvironmentPool, Runner
from opd_evolver.rollout.seeds import call_seed
from opd_evolver.rollout.settings import EpisodeSettings, Rollout

MAX_PLACED = 20


class Placed:
    """A memory that holds what was put there for one episode."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._found = tuple((entry, 1.0) for entry in entries)

    def retrieve(
        self, query: str, *, domain: str, scope: str, limit: int, alpha: float, scope_filter: bool
    ) -> Sequence[tuple[Entry, float]]:
        """As `MemoryView.retrieve`."""
        return self._found[:limit]


def can_probe(environments: EnvironmentPool, name: str) -> bool:
    """Whether a domain's hidden facts are known and its actions can be scripted."""
    with environments.lend(name) as domain:
        return isinstance(domain, Conventions) and all(hasattr(domain, part) for part in ("spec", "action", "values"))


class Prober:
    """Runs probes of one policy on one split.

    Args:
        policy: what is probed.
        environments: lends engines.
        split: `novel-val` to choose by, `novel-test` to report.
        n_tasks_per_domain: tasks of each domain.
        params: budgets, batch size, seed.
    """

    def __init__(
        self, policy: Policy, environments: EnvironmentPool, split: Split, n_tasks_per_domain: int, params: Params
    ) -> None:
        self.policy, self.environments, self.split, self.params = policy, environments, split, params
        self.n_tasks = n_tasks_per_domain
        base = EpisodeSettings.of(params, write=False, greedy=True)
        self.settings = base.model_copy(update={"candidates": MAX_PLACED, "max_selected": MAX_PLACED})
        self.batch = params.benchmark.batch_rollouts
        self.count = policy_count(self.settings.budget_unit, policy)
        self.speak = dialects.of(params.policy.dialect)
        self.homes: dict[str, Level] = {}
        self.domains = [name for name in params.environments.domains if can_probe(environments, name)]
        if not self.domains:
            raise SetupError(
                f"no domain of {', '.join(params.environments.domains)} can be probed",
                "a procedural domain whose facts are known",
                "add sql or apps to environments.domains; elsewhere retention is not measured",
            )

    def _each(
        self, make: Callable[[cases.Probed, cases.Neighbours, Task], Any], split: Split | None = None
    ) -> list[Any]:
        made = []
        for name in self.domains:
            with self.environments.lend(name) as env:
                domain = _probed(env)
                neighbours = cases.Neighbours(domain, split or self.split)
                tasks = domain.tasks(split or self.split, self.n_tasks)
                self.homes |= {task.task_id: task.gold.get("home", "tip") for task in tasks}
                made += [make(domain, neighbours, task) for task in tasks]
        return made

    def act(self, placement: cases.Placement, split: Split | None = None) -> tuple[Outcome, ...]:
        """Outcomes of real episodes with the placed memories."""
        made: list[cases.ActCase] = self._each(lambda d, n, task: cases.act_case(d, n, task, placement), split)
        # All that was placed is injected: the act probes ask about acting alone; selection has a probe of its own.
        settings = self.settings.model_copy(update={"read": placement != "no_memory", "selector": "ranking"})
        runner = Runner(
            self.policy,
            self.environments,
            None,
            settings,
            outage_retries=self.params.fast.outage_retries,
            count=self.count,
        )
        starts = [
            runner.start(
                Rollout(rollout_id=f"probe {placement} {case.task.task_id}", round=0, wave=0, task=case.task),
                Placed(case.entries),
            )
            for case in made
        ]
        episodes = drive(runner.policy, starts, self.batch, outage_retries=runner.outage_retries)
        return tuple(
            Outcome(
                task_id=case.task.task_id,
                family=case.task.family,
                domain=case.task.domain,
                success=one.row.success,
                episode_return=one.row.episode_return,
                steps=len(one.row.turns),
                tokens=one.row.n_prompt_tokens + one.row.n_reply_tokens,
            )
            for case, one in zip(made, episodes, strict=True)
        )

    def select(self, n_candidates: int = cases.N_CANDIDATES) -> tuple[Unit, ...]:
        """Micro-F1 as a ratio: 2 TP over 2 TP + FP + FN. An unreadable answer chooses nothing."""
        made: list[cases.SelectCase] = self._each(lambda d, n, task: cases.select_case(d, n, task, n_candidates))
        budget = self.settings.candidate_token_budget
        prompts = [
            self.speak.select.prompt(case.task.text, case.candidates, token_budget=budget, count=self.count)
            for case in made
        ]
        replies = self._ask("select", made, prompts, self.settings.select_sampling)
        units = []
        for case, reply in zip(made, replies, strict=True):
            chosen = self.speak.select.parse(reply.text, len(case.candidates), self.params.memory.max_selected)
            hits = len(case.right & set(chosen or ()))
            units.append(_unit(case.task, 2.0 * hits, float(len(case.right) + len(chosen or ()))))
        return tuple(units)

    def maintain(self) -> tuple[Unit, ...]:
        """Micro-F1 of what a maintenance episode retires."""
        made: list[maintain_probe.MaintainCase] = self._each(maintain_probe.maintain_case)
        settings = MaintenanceSettings.of(self.params)
        greedy = settings.model_copy(update={"sampling": settings.sampling.model_copy(update={"temperature": 0.0})})
        return maintain_probe.play(made, self.policy, greedy, self.count, self.batch, self.params.fast.outage_retries)

    def write(self, *, hindsight: bool) -> tuple[Unit, ...]:
        """Whether exactly the newly revealed facts are written; with `hindsight` the teacher's prompt is used."""
        made: list[cases.WriteCase] = self._each(lambda domain, _, task: cases.write_case(domain, task))
        prompts = [self._write_prompt(case, hindsight) for case in made]
        replies = self._ask("write", made, prompts, self.settings.write_sampling)
        limit = self.settings.write_limit
        return tuple(
            _unit(case.task, float(_is_exact(self.speak.write, case, reply, limit)), 1.0)
            for case, reply in zip(made, replies, strict=True)
        )

    def _write_prompt(self, case: cases.WriteCase, hindsight: bool) -> Prompt:
        hint = self.speak.write.hindsight(case.revealed, _all_helped(case.revealed), 0.0) if hindsight else None
        return self.speak.write.prompt(
            case.task.text,
            case.turns,
            case.replies,
            case.memories,
            episode_return=case.episode_return,
            success=case.success,
            token_budget=self.settings.entry_token_budget,
            count=self.count,
            hindsight=hint,
        )

    def _ask(self, ability: Ability, made: Sequence[Any], prompts: Sequence[Prompt], sampling: Sampling) -> list[Reply]:
        def start(case: Any, prompt: Prompt) -> Callable[[], Generator[GenerationRequest, Reply, Reply]]:
            seed = call_seed(self.params.seed, 0, f"probe {case.task.task_id}", ability, 0)
            return lambda: _one_call(GenerationRequest(prompt=prompt, sampling=sampling, seed=seed))

        starts = [start(case, prompt) for case, prompt in zip(made, prompts, strict=True)]
        return drive(self.policy, starts, self.batch, outage_retries=self.params.fast.outage_retries)


def _probed(env: Environment) -> cases.Probed:
    return cast(cases.Probed, env)


def _one_call(request: GenerationRequest) -> Generator[GenerationRequest, Reply, Reply]:
    return (yield request)


def _unit(task: Task, numerator: float, denominator: float) -> Unit:
    return Unit(
        task_id=task.task_id, family=task.family, domain=task.domain, numerator=numerator, denominator=denominator
    )


def _all_helped(entries: Sequence[Entry]) -> dict[str, Attribution]:
    return {
        entry.entry_id: Attribution(
            entry_id=entry.entry_id, value=1.0, low=None, high=None, advantage=1.0, n_selected=1, n_withheld=1
        )
        for entry in entries
    }


def _is_exact(write: dialects.Write, case: cases.WriteCase, reply: Reply, limit: int) -> bool:
    written = write.parse(reply.text, limit=limit, task_text=case.task.text, turns=case.turns)
    # A trajectory is written by its one word: the harness adds what it holds.
    wanted = {write.written_form(entry.content) for entry in case.revealed}
    return not written.rejected and {write.written_form(content) for content in written.contents} == wanted
