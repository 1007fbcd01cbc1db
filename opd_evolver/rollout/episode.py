"""One episode: read, select, act, write. A generator that yields requests and is sent replies.

It never touches a policy, so lock-step batches, continuous batching and remote endpoints drive
the same code. It never writes to the memory: it hands over proposals, which one committer applies.
Paper: fast loop, steps 1 to 4.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from opd_evolver.abilities import dialects
from opd_evolver.environments.protocol import Environment, Notes
from opd_evolver.errors import SetupError
from opd_evolver.memory.levels import Count, n_words
from opd_evolver.records import (
    Candidate,
    Entry,
    Episode,
    GenerationRequest,
    LedgerRow,
    Message,
    Proposal,
    Reply,
    TurnRecord,
)
from opd_evolver.rollout import tools
from opd_evolver.rollout.calls import Calls, waiting_by_itself
from opd_evolver.rollout.seeds import uniform
from opd_evolver.rollout.settings import EpisodeSettings, Rollout
from opd_evolver.sandbox import available

EpisodeRun = Generator[GenerationRequest, Reply, Episode]


class MemoryView(Protocol):
    """The memory as an episode may read it: ranked live entries for a query, nothing else."""

    def retrieve(
        self, query: str, *, domain: str, scope: str, limit: int, alpha: float, scope_filter: bool
    ) -> Sequence[tuple[Entry, float]]:
        """Up to `limit` entries over all levels, best first, with their scores."""
        ...


@dataclass(frozen=True)
class Selection:
    """C and S of one episode, and what randomised inclusion kept."""

    candidates: tuple[tuple[Entry, float], ...] = ()
    selected: tuple[Entry, ...] = ()
    withheld: tuple[str, ...] = ()
    propensities: dict[str, float] = field(default_factory=dict)
    fallback: bool = False

    @property
    def injected(self) -> tuple[Entry, ...]:
        return tuple(entry for entry in self.selected if entry.entry_id not in self.withheld)


@dataclass(frozen=True)
class Played:
    """tau and R of one episode; `replies` are the act replies' texts."""

    turns: tuple[TurnRecord, ...]
    replies: tuple[str, ...]
    episode_return: float
    success: bool


def _read(rollout: Rollout, memory: MemoryView | None, settings: EpisodeSettings) -> tuple[tuple[Entry, float], ...]:
    if not settings.read or settings.candidates == 0 or settings.max_selected == 0:
        return ()
    if memory is None:
        raise SetupError(
            f"rollout {rollout.rollout_id} reads a memory but was given none",
            "a memory view, or settings with read off",
            "pass the memory, or EpisodeSettings.of(params, read=False)",
        )
    task = rollout.task
    with waiting_by_itself():
        found = memory.retrieve(
            task.text,
            domain=task.domain,
            scope=task.scope,
            limit=settings.candidates,
            alpha=settings.alpha,
            scope_filter=settings.scope_filter,
        )
    return tuple(found[: settings.candidates])


def _include(
    chosen: Sequence[Entry], rollout: Rollout, settings: EpisodeSettings
) -> tuple[tuple[str, ...], dict[str, float]]:
    """Randomised inclusion: which chosen entries are withheld, and each one's probability of being kept."""
    epsilon = settings.withhold_probability
    withheld = tuple(
        entry.entry_id
        for entry in chosen
        if uniform(settings.seed, rollout.round, rollout.rollout_id, f"withhold {entry.entry_id}") < epsilon
    )
    return withheld, {entry.entry_id: 1.0 - epsilon for entry in chosen}


def select(
    rollout: Rollout, memory: MemoryView | None, settings: EpisodeSettings, calls: Calls, count: Count
) -> Generator[GenerationRequest, Reply, Selection]:
    """What the policy brings to a task: candidates, selection, randomised inclusion. Fast loop, steps 1 and 2."""
    found = _read(rollout, memory, settings)
    if not found:
        return Selection()
    entries = [entry for entry, _ in found]
    if settings.selector == "ranking":
        return _included(found, tuple(entries[: settings.max_selected]), rollout, settings)
    speak = dialects.of(settings.dialect).select
    asked = speak.prompt(rollout.task.text, entries, token_budget=settings.candidate_token_budget, count=count)
    reply = yield from calls.ask("select", 0, asked, settings.select_sampling)
    places = speak.parse(reply.text, len(entries), settings.max_selected)
    if places is None:
        # A fallback is no choice of the policy: nothing is withheld, and attribution leaves the row out.
        top = tuple(entries[: settings.max_selected])
        return Selection(found, top, (), {entry.entry_id: 1.0 for entry in top}, fallback=True)
    return _included(found, tuple(entries[place] for place in places), rollout, settings)


def _included(
    found: tuple[tuple[Entry, float], ...], chosen: tuple[Entry, ...], rollout: Rollout, settings: EpisodeSettings
) -> Selection:
    withheld, propensities = _include(chosen, rollout, settings)
    return Selection(found, chosen, withheld, propensities)


def _act(
    rollout: Rollout,
    env: Environment,
    injected: Sequence[Entry],
    settings: EpisodeSettings,
    calls: Calls,
    count: Count,
    sandbox: tools.SandboxSource,
) -> Generator[GenerationRequest, Reply, Played]:
    act = dialects.of(settings.dialect).act
    observation = env.reset(rollout.task)
    budget = settings.entry_token_budget
    first = act.first_message(rollout.task.text, observation, injected, token_budget=budget, count=count)
    history: list[Message] = []
    turns: list[TurnRecord] = []
    replies: list[str] = []
    rewarded, success, given, n_steps = 0.0, False, None, 0
    while n_steps < settings.max_steps:
        reply = yield from calls.ask("act", len(turns), act.prompt(first, history), settings.act_sampling)
        action, parsed = act.parse(reply.text)
        if parsed and tools.is_call(action):
            left = settings.max_steps - n_steps
            called = tools.call(action, env, injected, steps_left=left, sandbox=sandbox, scope=rollout.task.scope)
        else:
            called = tools.Called(env.step(action))
        step = called.step
        n_steps += called.n_steps
        turns.append(
            TurnRecord(
                observation=observation,
                action=action,
                result=step.observation,
                reward=step.reward,
                parsed=parsed,
                called=called.entry_id,
            )
        )
        replies.append(reply.text)
        rewarded += step.reward
        # A tool outside the environment says nothing about success: what was known stays.
        success = bool(step.info.get("success", success))
        given = step.info.get("return", given)
        if step.terminated or step.truncated:
            break
        observation = step.observation
        history += [act.reply_message(reply), act.observation_message(observation)]
    episode_return = min(1.0, max(0.0, float(rewarded if given is None else given)))
    return Played(tuple(turns), tuple(replies), episode_return, success)


def _write(
    rollout: Rollout,
    env: Environment,
    played: Played,
    injected: Sequence[Entry],
    settings: EpisodeSettings,
    calls: Calls,
    count: Count,
) -> Generator[GenerationRequest, Reply, tuple[tuple[Proposal, ...], tuple[str, ...]]]:
    if not settings.write or settings.write_limit == 0:
        return (), ()
    task, write = rollout.task, dialects.of(settings.dialect).write
    asked = write.prompt(
        task.text,
        played.turns,
        played.replies,
        injected,
        episode_return=played.episode_return,
        success=played.success,
        token_budget=settings.entry_token_budget,
        count=count,
    )
    reply = yield from calls.ask("write", 0, asked, settings.write_sampling)
    written = write.parse(
        reply.text,
        limit=settings.write_limit,
        levels=settings.levels,
        task_text=task.text,
        turns=played.turns,
        episode_return=played.episode_return,
        success=played.success,
    )
    contents = written.contents
    if isinstance(env, Notes):
        contents = tuple(env.noted(task, content) for content in contents)
    proposals = tuple(
        Proposal(domain=task.domain, scope=task.scope, content=content, source_episodes=(rollout.rollout_id,))
        for content in contents
    )
    return proposals, written.rejected


def _row(rollout: Rollout, selection: Selection, played: Played, calls: Calls, renderer: str) -> LedgerRow:
    task = rollout.task
    return LedgerRow(
        rollout_id=rollout.rollout_id,
        round=rollout.round,
        wave=rollout.wave,
        task_id=task.task_id,
        domain=task.domain,
        scope=task.scope,
        group=task.family,
        task_text=task.text,
        candidates=tuple(
            Candidate(handle=number, entry_id=entry.entry_id, score=score)
            for number, (entry, score) in enumerate(selection.candidates, start=1)
        ),
        selected=tuple(entry.entry_id for entry in selection.selected),
        withheld=selection.withheld,
        injected=tuple(entry.entry_id for entry in selection.injected),
        propensities=selection.propensities,
        select_fallback=selection.fallback,
        episode_return=played.episode_return,
        success=played.success,
        turns=played.turns,
        calls=tuple(calls.records),
        n_prompt_tokens=calls.n_prompt_tokens,
        n_reply_tokens=calls.n_reply_tokens,
        policy_version=calls.policy_version or "",
        renderer=renderer,
    )


def episode(
    rollout: Rollout,
    env: Environment,
    memory: MemoryView | None,
    settings: EpisodeSettings,
    *,
    count: Count = n_words,
    sandbox: tools.SandboxSource = available,
) -> EpisodeRun:
    """Play one rollout; yields a request per generation and returns the finished `Episode`.

    Args:
        rollout: which task, and the id that keys every random draw.
        env: a free environment of the task's domain; it plays this episode alone.
        memory: the memory as it stood when the wave began; None with `settings.read` off.
        settings: abilities, budgets, sampling.
        count: what the entry budget counts, see rollout/budget.py.
        sandbox: where saved python and bash tools run; one that gives None shows them only.

    Raises:
        OutageError: the environment, the sandbox or the store is down; no episode fails of it. The driver tries the
            first two again.
        SetupError: the memory is missing, or the policy changed in mid-episode.

    Paper: fast loop, steps 1 to 4. Differs: an unreadable selection falls back to the top of the
    ranking and is kept out of attribution; a chosen entry is withheld with a small known probability.
    """
    began = time.perf_counter()
    calls = Calls(rollout.rollout_id, rollout.round, settings.seed)
    selection = yield from select(rollout, memory, settings, calls, count)
    played = yield from _act(rollout, env, selection.injected, settings, calls, count, sandbox)
    proposals, rejected = yield from _write(rollout, env, played, selection.injected, settings, calls, count)
    return Episode(
        row=_row(rollout, selection, played, calls, dialects.of(settings.dialect).renderer),
        proposals=proposals,
        rejected=rejected,
        seconds=time.perf_counter() - began,
    )
