"""The rehearsal anchor: what the base policy does on families that are never deployed.

Episodes of the split `seed` are played by the *base* policy with hand-placed memories, through the same
episode code as in service; every prompt it was served, with its reply, is an anchor. Training then adds
KL(base || student) on them, so that reading memory and overriding old rules are kept.
Measured elsewhere: without it memory use on new families fell from 0.72 to 0.10 in three rounds.

Acting without memory is rehearsed too: what is internalised of deployed families is otherwise recited in families
that the policy never met, and it finds nothing there. Replies are the base policy's own: their mean KL is the forward
KL between the two reply distributions.
Differs: ours; the paper has none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from opd_evolver.environments.contents import content_of
from opd_evolver.environments.conventions import Procedural
from opd_evolver.environments.protocol import Conventions, Environment
from opd_evolver.params import Params
from opd_evolver.policy.protocol import Policy
from opd_evolver.records import (
    SCHEMA_VERSION,
    Ability,
    Content,
    Entry,
    Fact,
    LedgerRow,
    Record,
    Task,
    TipContent,
    canonical_json,
    digest_of,
    uuid5_of,
)
from opd_evolver.rollout.runner import EnvironmentPool, Runner
from opd_evolver.rollout.settings import EpisodeSettings, Rollout
from opd_evolver.slow.examples import generator, seed_of, write_lines

ANCHORS = "anchors.jsonl"
_LATER = ("slow", "attribution", "contracts", "benchmark", "gate")
Kind = Literal["read", "override", "bare"]
# Anchors are taken from these, so many parts of each. Following the newer of two entries is what is forgotten first,
# and exploring where nothing is known what costs most (docs/decisions.md), so they have two parts. `bare` episodes have
# nothing useful in memory; acting in them is acting without memory.
SHARES: dict[tuple[Kind, Ability], int] = {
    ("read", "act"): 1,
    ("override", "act"): 2,
    ("read", "select"): 1,
    ("override", "select"): 1,
    ("bare", "select"): 1,
    ("read", "write"): 1,
    ("bare", "write"): 1,
    ("bare", "act"): 2,
}
MAX_ROUND = 9


class Anchor(Record):
    """One rehearsal prompt with the base policy's reply."""

    schema_version: int = SCHEMA_VERSION
    anchor_id: str
    kind: Kind
    ability: Ability
    prompt_ids: tuple[int, ...]
    reply_ids: tuple[int, ...]


def held(env: Conventions, domain: str, fact: Fact, created_round: int) -> Entry:
    """A fact as the memory would hold it: at the level that carries it best, a tip where levels are unknown."""
    entry_id = uuid5_of("anchor", domain, fact.scope, fact.key, fact.value, str(created_round))
    content: Content = TipContent(text=fact.value, trigger=fact.key)
    if isinstance(env, Procedural):
        content = content_of(env, fact.scope, fact.key, fact.value, generator("anchor-entry", entry_id))
    return Entry(entry_id=entry_id, domain=domain, scope=fact.scope, content=content, created_round=created_round)


def _values(env: Conventions, fact: Fact, facts: Sequence[Fact]) -> list[str]:
    """Other values that the fact could have: any of its key where they are known, else those of other facts."""
    known = env.values(fact.key) if isinstance(env, Procedural) else {other.value for other in facts}
    return sorted({*known} - {fact.value})


class PlacedMemory:
    """Hand-placed memories: what each rollout's task finds, by task text and scope."""

    def __init__(self, placed: dict[tuple[str, str], Sequence[Entry]]) -> None:
        self._placed = placed

    def retrieve(
        self, query: str, *, domain: str, scope: str, limit: int, alpha: float, scope_filter: bool
    ) -> Sequence[tuple[Entry, float]]:
        """As `MemoryView.retrieve`; scores fall with the place."""
        found = self._placed.get((query, scope), ())[:limit]
        return [(entry, 1.0 / place) for place, entry in enumerate(found, start=1)]


def place(
    kind: Kind, task: Task, env: Conventions, others: Sequence[Fact], n: int, rng: np.random.Generator
) -> list[Entry]:
    """The memories of one anchor episode, in shown order.

    Args:
        kind: `read`: the needed facts are true; `override`: older entries lie beside newer ones that say something
            else, which half of the episodes' worlds agree with; `bare`: none of the needed facts.
        task: its needed facts are the environment's.
        env: knows the facts.
        others: facts of other scopes of the domain; distractors, and a source of other values.
        n: most entries.
        rng: the episode's generator.
    """
    needed = env.needed(task)
    keys = {fact.key for fact in needed}
    chosen: list[Entry] = []
    if kind != "bare":
        for fact in needed:
            # A first round has entries of round 1 only; an older one needs a round before it.
            newest = int(rng.integers(2 if kind == "override" else 1, MAX_ROUND + 1))
            values = _values(env, fact, (*others, *env.facts(task))) if kind == "override" else []
            if values:
                other = Fact(scope=fact.scope, key=fact.key, value=values[int(rng.integers(len(values)))])
                fact, stale = (fact, other) if rng.random() < 0.5 else (other, fact)
                chosen.append(held(env, task.domain, stale, int(rng.integers(1, newest))))
            chosen.append(held(env, task.domain, fact, newest))
    near = [fact for fact in env.facts(task) if fact.key not in keys]
    pool = [*near, *(others[int(i)] for i in rng.permutation(len(others))[:n])]
    wanted = int(rng.integers(0, max(n - len(chosen), 0) + 1))
    picked = [pool[int(i)] for i in rng.permutation(len(pool))[:wanted]]
    chosen += [held(env, task.domain, fact, int(rng.integers(1, MAX_ROUND + 1))) for fact in picked]
    return [chosen[int(i)] for i in rng.permutation(len(chosen))][:n]


def build(policy: Policy, load: Callable[[str], Environment], params: Params) -> list[Anchor]:
    """Anchors by the base policy, `slow.anchor_examples` at most, by `SHARES` and evenly over domains.

    Args:
        policy: the base policy; serves token ids.
        load: a fresh environment of a domain.
        params: resolved science parameters.

    Environments without `Conventions` give bare episodes only, those without `seed` tasks give none.
    """
    each, rest = divmod(params.slow.anchor_examples, sum(SHARES.values()))
    settings = EpisodeSettings.of(params).model_copy(update={"withhold_probability": 0.0})
    # A policy that selects well never acts beside a stale entry: to rehearse that, all that was placed is injected.
    injecting = settings.model_copy(update={"selector": "ranking", "candidates": settings.max_selected, "write": False})
    exploring = settings.model_copy(update={"read": False, "write": False})
    acting = {"read": injecting, "override": injecting, "bare": exploring}
    played: dict[tuple[Kind, bool], list[LedgerRow]] = {}
    anchors: list[Anchor] = []
    for number, ((kind, ability), parts) in enumerate(SHARES.items()):
        acts = ability == "act"
        if (kind, acts) not in played:
            # Some episodes find nothing to select among: half as many more make up for them.
            wanted = each + each // 2 + 1
            played[kind, acts] = _play(kind, policy, load, params, acting[kind] if acts else settings, wanted)
        anchors += _of(kind, ability, played[kind, acts])[: each * parts + (number < rest)]
    return anchors


def key(base_digest: str, params: Params) -> str:
    """Names the anchors of a base policy: of the parameters, those of later steps play no part in them."""
    kept = {name: part for name, part in params.science().items() if name not in _LATER}
    return digest_of([base_digest, canonical_json(kept), str(params.slow.anchor_examples)])[:16]


def write(policy: Policy, load: Callable[[str], Environment], params: Params, path: Path) -> str:
    """Build the anchors and write them durably; returns their digest."""
    return write_lines(path, build(policy, load, params))


def _play(
    kind: Kind,
    policy: Policy,
    load: Callable[[str], Environment],
    params: Params,
    settings: EpisodeSettings,
    wanted: int,
) -> list[LedgerRow]:
    domains = params.environments.domains
    placed: dict[tuple[str, str], Sequence[Entry]] = {}
    rollouts: list[Rollout] = []
    for domain in domains:
        env = load(domain)
        try:
            tasks = env.tasks("seed", -(-wanted // len(domains)), seed_of(params.seed, "anchor", kind) % 2**31)
            if isinstance(env, Conventions):
                facts = sorted({fact for task in tasks for fact in env.facts(task)}, key=str)
                for task in tasks:
                    others = [fact for fact in facts if fact.scope != task.scope]
                    rng = generator("anchor", params.seed, kind, task.task_id)
                    placed[task.text, task.scope] = place(kind, task, env, others, settings.candidates, rng)
            elif kind != "bare":
                continue
        finally:
            env.close()
        rollouts += [Rollout(rollout_id=f"anchor-{kind}-{task.task_id}", round=0, wave=0, task=task) for task in tasks]
    with EnvironmentPool(load) as pool:
        runner = Runner(policy, pool, PlacedMemory(placed), settings, outage_retries=params.fast.outage_retries)
        return [episode.row for episode in runner.run(rollouts, params.fast.microbatch_rollouts)]


def _of(kind: Kind, ability: Ability, rows: Sequence[LedgerRow]) -> list[Anchor]:
    """Calls of one ability, domains by turns; act calls only where memories were in the context, or were to be none."""
    by_domain: dict[str, list[Anchor]] = {}
    for row in rows:
        if ability == "act" and kind != "bare" and not row.injected:
            continue
        for call in row.calls:
            if call.ability == ability and call.reply_token_ids:
                by_domain.setdefault(row.domain, []).append(
                    Anchor(
                        anchor_id=f"{row.rollout_id}/{ability}/{call.turn}",
                        kind=kind,
                        ability=ability,
                        prompt_ids=call.prompt_token_ids,
                        reply_ids=call.reply_token_ids,
                    )
                )
    longest = max((len(anchors) for anchors in by_domain.values()), default=0)
    ordered = [by_domain[domain] for domain in sorted(by_domain)]
    return [anchors[i] for i in range(longest) for anchors in ordered if i < len(anchors)]
