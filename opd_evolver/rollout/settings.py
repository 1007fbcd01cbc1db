"""How an episode runs: which abilities are on, budgets and sampling. Resolved from `Params` once."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import SerializerFunctionWrapHandler, model_serializer

from opd_evolver.params import DialectName, Params
from opd_evolver.records import LEVELS, Level, Record, Sampling, Task
from opd_evolver.rollout.budget import Unit


class EpisodeSettings(Record):
    """All that decides an episode beside its task, its environment, the memory and the policy.

    `selector` ranking injects the top of the ranking without asking the policy; entries of other levels than `levels`
    are not written. `read` off is the benchmark column *policy alone*: no retrieval, no select call, no memories.
    `write` off leaves the reflection out, as a frozen benchmark does.
    """

    seed: int
    dialect: DialectName = "terse"
    read: bool = True
    write: bool = True
    candidates: int
    max_selected: int
    selector: Literal["policy", "ranking"] = "policy"
    levels: tuple[Level, ...] = LEVELS
    alpha: float
    scope_filter: bool
    entry_token_budget: int
    candidate_token_budget: int
    budget_unit: Unit = "words"
    withhold_probability: float
    max_steps: int
    write_limit: int
    select_sampling: Sampling
    act_sampling: Sampling
    write_sampling: Sampling

    @model_serializer(mode="wrap")
    def _dump(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Keys of micro-batches and columns that were made before there was a choice stay as they were."""
        tree: dict[str, Any] = dump(self)
        for name, before in {"dialect": "terse", "selector": "policy", "levels": LEVELS}.items():
            if getattr(self, name) == before:
                del tree[name]
        return tree

    @classmethod
    def of(cls, params: Params, *, read: bool = True, write: bool = True, greedy: bool = False) -> EpisodeSettings:
        """Settings of the fast loop, or with `greedy` of a benchmark.

        Args:
            params: resolved science parameters.
            read: retrieve, select and inject memories.
            write: reflect at the end.
            greedy: temperature 0 and nothing withheld.
        """
        fast, memory = params.fast, params.memory
        temperature, top_p = (0.0, 1.0) if greedy else (fast.temperature, fast.top_p)

        def sampling(max_new_tokens: int) -> Sampling:
            return Sampling(temperature=temperature, top_p=top_p, max_new_tokens=max_new_tokens)

        return cls(
            seed=params.seed,
            dialect=params.policy.dialect,
            read=read,
            write=write,
            candidates=memory.candidates,
            max_selected=memory.max_selected,
            selector=memory.selector,
            levels=memory.levels,
            alpha=memory.alpha,
            scope_filter=memory.scope_filter,
            entry_token_budget=memory.entry_token_budget,
            candidate_token_budget=memory.candidate_token_budget,
            budget_unit=memory.budget_unit,
            withhold_probability=0.0 if greedy else fast.withhold_probability,
            max_steps=fast.max_steps,
            write_limit=fast.write_limit,
            select_sampling=sampling(fast.select_max_new_tokens),
            act_sampling=sampling(fast.act_max_new_tokens),
            write_sampling=sampling(fast.write_max_new_tokens),
        )


class Rollout(Record):
    """One attempt at one task. `rollout_id` names it in the ledger and in every random draw."""

    rollout_id: str
    round: int
    wave: int
    task: Task
