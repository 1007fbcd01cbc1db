"""A first look at a policy: a few tasks through the real fast loop with a memory of its own, nothing kept.

Shows what was asked and said, what could not be read and what it was worth; and from the tokens and seconds it
took, what a full round would take. The first thing to run with a model of one's own.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from opd_evolver.abilities import dialects
from opd_evolver.environments import registry
from opd_evolver.errors import OpdError, SetupError
from opd_evolver.fast.epoch import run_epoch
from opd_evolver.fast.maintenance import MaintenanceSettings
from opd_evolver.fast.wave import plan_epoch
from opd_evolver.memory.store import Memory
from opd_evolver.params import Params, merge
from opd_evolver.policy.cache import bytes_per_token
from opd_evolver.policy.protocol import EncodedPrompt, Policy, TokenPolicy
from opd_evolver.processes import peak_bytes
from opd_evolver.records import MAINTAIN, Ability, GenerationRequest, LedgerRow, Prompt, Record, Reply, Task
from opd_evolver.rollout.runner import EnvironmentPool, Runner
from opd_evolver.rollout.settings import EpisodeSettings

BYTES_TRAINED = 16
"""Per trained parameter in float32: weight, gradient and AdamW's two moments."""


LOOKED_AT = 64
"""Tasks looked at for each one tried."""


class Shown(Record):
    """One call as the policy saw and answered it."""

    ability: Ability
    prompt: str
    reply: str
    reasoning: str
    finish: str
    n_prompt_tokens: int
    n_reply_tokens: int


class Tried(Record):
    """What one task, or the maintenance after all of them, came to; `unreadable` counts replies by ability."""

    task_id: str
    task_text: str
    success: bool
    episode_return: float
    n_steps: int
    unreadable: dict[str, int]


class Trial(Record):
    """All of it.

    Attributes:
        calls: in the order in which they were served.
        tried: by task, maintenance last.
        seconds: in generation alone; prompts and replies together make the tokens a second.
        peak_bytes: most memory of this process, or of its accelerator.
        round: what a full round of the parameters would take; empty where an error ended the trial.
    """

    policy_version: str
    dialect: str
    calls: tuple[Shown, ...]
    tried: tuple[Tried, ...]
    n_entries: int
    seconds: float
    n_prompt_tokens: int
    n_reply_tokens: int
    peak_bytes: int
    round: dict[str, float | None]


class _Watched:
    """Keeps what is asked and answered."""

    def __init__(self, policy: Policy) -> None:
        self._policy, self.version = policy, policy.version
        self.served: list[tuple[GenerationRequest, Reply]] = []
        self.seconds = 0.0

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Reply]:
        """As `Policy.generate`."""
        began = time.perf_counter()
        replies = self._policy.generate(requests)
        self.seconds += time.perf_counter() - began
        sent: Callable[[GenerationRequest], GenerationRequest] = getattr(self._policy, "sent", lambda one: one)
        self.served += zip(map(sent, requests), replies, strict=True)
        return replies


class _WatchedTokens(_Watched):
    """The same for a policy whose tokens are known."""

    def __init__(self, policy: TokenPolicy) -> None:
        super().__init__(policy)
        self._tokens = policy

    def encode(self, prompt: Prompt) -> EncodedPrompt:
        """As `TokenPolicy.encode`."""
        return self._tokens.encode(prompt)

    def decode(self, token_ids: Sequence[int]) -> str:
        """As `TokenPolicy.decode`."""
        return self._tokens.decode(token_ids)


def run(
    policy: Policy, environment: str, n_tasks: int, params: Params, *, ended: Callable[[Trial], None] | None = None
) -> Trial:
    """Try a policy.

    Args:
        policy: any.
        environment: name of an environment.
        n_tasks: tasks of deploy-train and one scope, one rollout each; later ones read what earlier ones wrote.
        params: budgets, dialect, and the size of the round that is estimated.
        ended: told what was served before an error or Ctrl-C ended the trial; then that goes on.

    Raises:
        SetupError: no such environment, or it has no tasks.
        OutageError: an engine or an endpoint stayed down.
    """
    small = merge(
        params,
        {
            "environments.domains": [environment],
            "memory.store": "embedded",
            "fast.tasks_per_domain": n_tasks,
            "fast.rollouts_per_task": 1,
            "fast.wave_tasks": 1,
            "fast.maintain_every_tasks": n_tasks,
        },
        "opd try",
    )
    watched = _WatchedTokens(policy) if isinstance(policy, TokenPolicy) else _Watched(policy)
    load = registry.loader(small.environments)
    with tempfile.TemporaryDirectory(prefix="opd-try-") as folder, EnvironmentPool(load) as pool:
        with pool.lend(environment) as env:
            tasks = _related(env.tasks("deploy-train", LOOKED_AT * n_tasks), n_tasks)
        if not tasks:
            raise SetupError(f"{environment} has no deploy-train tasks", "at least one", "choose another --env")
        with Memory.open(Path(folder) / "live", small.memory) as memory:
            runner = Runner(watched, pool, memory, EpisodeSettings.of(small), outage_retries=small.fast.outage_retries)
            try:
                run_epoch(memory, plan_epoch(small, 1, {environment: tasks}), runner, MaintenanceSettings.of(small))
            except (OpdError, KeyboardInterrupt):
                if watched.served and ended is not None:
                    ended(_trial(policy, watched, memory, params, small).model_copy(update={"round": {}}))
                raise
            return _trial(policy, watched, memory, params, small)


def _related(tasks: Sequence[Task], n: int) -> list[Task]:
    """The first task and others of its scope, so that what is written can be read; of other scopes where they end."""
    return sorted(tasks, key=lambda task: task.scope != tasks[0].scope)[:n]


def _trial(policy: Policy, watched: _Watched, memory: Memory, params: Params, small: Params) -> Trial:
    rows = list(memory.ledger.rows())
    calls = tuple(_shown(policy, request, reply) for request, reply in watched.served)
    ordered = sorted(rows, key=lambda row: row.group == MAINTAIN)
    here, on_device = peak_bytes()
    return Trial(
        policy_version=watched.version,
        dialect=small.policy.dialect,
        calls=calls,
        tried=tuple(_tried(row, small) for row in ordered),
        n_entries=len(memory.entries()),
        seconds=round(watched.seconds, 3),
        n_prompt_tokens=sum(call.n_prompt_tokens for call in calls),
        n_reply_tokens=sum(call.n_reply_tokens for call in calls),
        peak_bytes=on_device or here,
        round=_round(calls, watched.seconds, sum(row.group != MAINTAIN for row in rows), policy, params),
    )


def _shown(policy: Policy, request: GenerationRequest, reply: Reply) -> Shown:
    return Shown(
        ability=request.prompt.ability,
        prompt=_rendered(policy, request.prompt, reply),
        reply=reply.text,
        reasoning=reply.reasoning,
        finish=reply.finish,
        n_prompt_tokens=len(reply.prompt_token_ids) or reply.n_prompt_tokens,
        n_reply_tokens=len(reply.token_ids) or reply.n_reply_tokens,
    )


def _rendered(policy: Policy, prompt: Prompt, reply: Reply) -> str:
    """The prompt as served, template and all; an endpoint's by the messages that it was sent."""
    tokenizer: Any = getattr(policy, "tokenizer", None)
    if tokenizer is not None and reply.prompt_token_ids:
        return str(tokenizer.decode(list(reply.prompt_token_ids), skip_special_tokens=False))
    from opd_evolver.policy.endpoint import wire

    return "\n".join(f"[{sent['role']}]\n{sent['content']}" for sent in wire.messages(prompt))


def _tried(row: LedgerRow, params: Params) -> Tried:
    speak = dialects.of(params.policy.dialect)
    unreadable = {"select": int(row.select_fallback), "act": 0, "write": 0, "maintain": 0}
    unreadable["maintain" if row.group == MAINTAIN else "act"] = sum(not turn.parsed for turn in row.turns)
    for call in row.calls:
        if call.ability == "write":
            made = speak.write.parse(
                call.reply_text,
                limit=params.fast.write_limit,
                task_text=row.task_text,
                turns=row.turns,
                episode_return=row.episode_return,
                success=row.success,
            )
            unreadable["write"] += bool(made.rejected)
    return Tried(
        task_id=row.task_id,
        task_text=row.task_text,
        success=row.success,
        episode_return=row.episode_return,
        n_steps=len(row.turns),
        unreadable=unreadable,
    )


def _round(
    calls: Sequence[Shown], seconds: float, n_rollouts: int, policy: Policy, params: Params
) -> dict[str, float | None]:
    """A full round by what was measured; memory is counted, without what a forward or backward pass needs on top."""
    fast = params.fast
    wanted = fast.tasks_per_domain * len(params.environments.domains) * fast.rollouts_per_task
    share = wanted / max(1, n_rollouts)
    together = max(fast.microbatch_rollouts, params.benchmark.batch_rollouts)
    model: Any = getattr(policy, "model", None)
    has_weights = hasattr(model, "parameters")
    return {
        "rollouts": float(wanted),
        "seconds_one_by_one": round(seconds * share, 1),
        "prompt_tokens": round(sum(call.n_prompt_tokens for call in calls) * share),
        "reply_tokens": round(sum(call.n_reply_tokens for call in calls) * share),
        "episodes_together": float(together),
        "serving_bytes_without_activations": _serving_bytes(model, params, together) if has_weights else None,
        "training_bytes_without_activations": _training_bytes(model, params) if has_weights else None,
    }


def _serving_bytes(model: Any, params: Params, n: int) -> float:
    """Weights, and keys and values of `n` prompts and replies as long as they may be."""
    longest = params.policy.max_prompt_tokens + params.fast.longest_reply
    return float(_held(model) + n * longest * bytes_per_token(model))


def _training_bytes(model: Any, params: Params) -> float:
    """Weights that are only served, and what is trained with its gradient and AdamW's moments."""
    if params.slow.adapter == "full":
        # The teacher is a copy of the student, which is trained in float32.
        return float((BYTES_TRAINED + 4) * sum(one.numel() for one in model.parameters()))
    targets = params.slow.lora.targets
    shapes = [
        module.weight.shape
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in targets and getattr(module, "weight", None) is not None
    ]
    return float(_held(model) + BYTES_TRAINED * params.slow.lora.r * sum(int(sum(shape)) for shape in shapes))


def _held(model: Any) -> int:
    """Bytes of the weights."""
    return sum(one.numel() * one.element_size() for one in model.parameters())
