"""A played round: the scripted agent on the real sql domain, rendered by a tiny policy's own encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoints import tiny_lfm2
from rollout_world import agent, small

from opd_evolver.environments import registry
from opd_evolver.fast.epoch import run_epoch
from opd_evolver.fast.maintenance import MaintenanceSettings
from opd_evolver.fast.wave import plan_epoch
from opd_evolver.memory.attribution import attribute
from opd_evolver.memory.store import Memory
from opd_evolver.params import EnvironmentParams, Params
from opd_evolver.policy.local import LocalPolicy
from opd_evolver.policy.protocol import EncodedPrompt
from opd_evolver.records import Attribution, Entry, GenerationRequest, LedgerRow, Prompt, Reply
from opd_evolver.rollout.runner import EnvironmentPool, Runner
from opd_evolver.rollout.settings import EpisodeSettings

Responder = Callable[[Prompt, GenerationRequest], str]


class Puppet:
    """Says what a function says, in the tokens of a real policy."""

    def __init__(self, local: LocalPolicy, responder: Responder = agent) -> None:
        self.local, self.responder, self.version = local, responder, "puppet"

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Reply]:
        return [self._answer(request) for request in requests]

    def encode(self, prompt: Prompt) -> EncodedPrompt:
        return self.local.encode(prompt)

    def _answer(self, request: GenerationRequest) -> Reply:
        text = self.responder(request.prompt, request)
        ids = (*self.local.encoder.tokenize(text), min(self.local.end_ids))
        return Reply(
            text=text,
            token_ids=ids,
            logprobs=(-0.5,) * len(ids),
            prompt_token_ids=self.encode(request.prompt).token_ids,
            policy_version=self.version,
        )


@dataclass(frozen=True)
class Played:
    """A ledger, its entries and V, and the policy that rendered it."""

    params: Params
    local: LocalPolicy
    rows: list[LedgerRow]
    entries: list[Entry]
    attributions: dict[str, Attribution]


def spoilt(prompt: Prompt, request: GenerationRequest) -> str:
    """The scripted agent, now and then not using what it was offered, and tidying up at maintenance."""
    if prompt.ability == "select" and request.seed % 4 == 0:
        return "none"
    return "nonsense" if prompt.ability == "maintain" else agent(prompt, request)


def play(folder: Path, responder: Responder = spoilt, positions: int = 2048, **overrides: Any) -> Played:
    """One epoch of sql tasks of two families, so that facts recur."""
    settings = {"environments__domains": ["sql"], "fast__tasks_per_domain": 40, "fast__rollouts_per_task": 4}
    params = small(**{**settings, "fast__wave_tasks": 8, "fast__microbatch_rollouts": 32, **overrides})
    local = LocalPolicy.load(
        tiny_lfm2(folder / "policy", positions=positions), max_prompt_tokens=params.policy.max_prompt_tokens
    )
    many = registry.load("sql", ("tip",)).tasks("deploy-train", 6 * params.fast.tasks_per_domain)
    families = {task.family for task in many[:2]}
    tasks = [task for task in many if task.family in families]
    with (
        Memory.open(folder / "live", params.memory) as memory,
        EnvironmentPool(registry.loader(EnvironmentParams(levels=("tip",)))) as pool,
    ):
        runner = Runner(Puppet(local, responder), pool, memory, EpisodeSettings.of(params))
        run_epoch(memory, plan_epoch(params, 1, {"sql": tasks}), runner, MaintenanceSettings.of(params))
        rows, entries = list(memory.ledger.rows()), memory.entries(live_only=False)
    return Played(params, local, rows, entries, attribute(rows, entries, params.attribution))
