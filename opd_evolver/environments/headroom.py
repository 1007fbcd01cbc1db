"""Headroom: what a deployment holds that only outcomes can teach, so that a policy perfect at the mechanics can grow.

misleading  for some keys of tips, always the same ones in a domain, the convention is another one in some tasks; the
            task's last word says so, but no entry does: what is noted there has the right scope and key, is newer, and
            is wrong everywhere else.
drift       after so many tasks of deploy-train a share of the deployed tips holds no more; all later tasks, and those
            of deploy-val and deploy-test, go by the new ones.
one_off     some questions of deploy-train are about a key that the family has not: no other split asks for it, and
            few of them for the same one. With `fast.write_limit` what is noted of them takes the place of what recurs.
wording     a share of the tips is noted in the words of the house, in templates that no seed data ever had.

Two more need no switch here: the levels (`environments.levels`) and the budget of the context
(`memory.candidates`, `memory.max_selected`). Only the tasks of deployed families have headroom, those of others are
what they were; but what an agent notes about these is worded by the house like all else.
All draws are counter-based, and nothing of it is shown but the word of the context.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from opd_evolver.environments.conventions import CONTEXTS, World, draw_below, generator, uniform
from opd_evolver.environments.domain import Domain, Sub
from opd_evolver.records import Content, Split, TipContent

KINDS = ("misleading", "drift", "one_off", "wording")
TEMPLATES = (
    *("please note {}", "{} agreed", "usually {}", "confirmed {} today"),
    *("owner says {}", "{} per ticket", "settled: {}", "support: {}"),
)
"""The words of the house. They stand neither in the seed data nor in the probe of unseen wording."""


def is_deployed(split: Split) -> bool:
    return split.startswith("deploy")


def misleads(spec: Domain, key: str) -> bool:
    """Whether a key of tips has exceptions: a fixed share of the domain's keys, whatever the family."""
    return key in _misleading(spec)


@functools.cache
def _misleading(spec: Domain) -> frozenset[str]:
    ranked = sorted(spec.keys, key=lambda one: uniform("misleading", spec.name, one))
    return frozenset(ranked[: round(spec.headroom.misleading * len(spec.keys))])


def context_of(spec: Domain, world: World, split: Split, keys: Sequence[str], *draw: object) -> str:
    """The word that ends the task's text, in some tasks that ask a misleading key; else empty."""
    if not is_deployed(split) or not any(misleads(spec, key) for key in keys):
        return ""
    if uniform("exception", spec.name, world.world_seed, world.scope, split, *draw) >= spec.headroom.exceptions:
        return ""
    return CONTEXTS[draw_below(len(CONTEXTS), "context", spec.name)]


def drifts(spec: Domain, world: World, key: str) -> bool:
    """Whether the convention of a tip changes during deployment."""
    if spec.level_of(key) != "tip":
        return False
    return uniform("drift", spec.name, world.world_seed, world.scope, key) < spec.headroom.drift


def facts_at(spec: Domain, world: World, split: Split, i: int) -> dict[str, str]:
    """The conventions of a family when task `i` of a split comes."""
    facts = dict(world.facts)
    if is_deployed(split) and (split != "deploy-train" or i >= spec.headroom.drift_after):
        for key in world.facts:
            if drifts(spec, world, key):
                facts[key] = _other(spec, world, key, world.facts[key], "drifted")
    return facts


def in_context(spec: Domain, world: World, facts: dict[str, str], keys: Sequence[str]) -> dict[str, str]:
    """The conventions that hold in the context: the misleading ones among `keys` are others, always the same."""
    changed = {
        key: _other(spec, world, key, facts[key], "exceptional")
        for key in keys
        if key in world.facts and misleads(spec, key)
    }
    return {**facts, **changed}


def one_off(spec: Domain, world: World, split: Split, subs: Sequence[Sub], *draw: object) -> tuple[Sub, str] | None:
    """A question in the place of the last of several, of a key that the family has not; and its answer."""
    if split != "deploy-train" or len(subs) < 2:
        return None
    rng = generator("one-off", spec.name, world.world_seed, world.scope, *draw)
    if rng.random() >= spec.headroom.one_off:
        return None
    keys = [key for key in spec.keys if key not in world.facts]
    key = keys[int(rng.integers(len(keys)))]
    taken = set(world.facts.values()) if spec.distinct else set()
    values = [value for value in spec.values if value not in taken]
    args = spec.args_of(key)
    return Sub(key, args[int(rng.integers(len(args)))]), values[int(rng.integers(len(values)))]


def is_worded(spec: Domain, scope: str, key: str) -> bool:
    """Whether tips about this key of a family are noted in the words of the house."""
    return uniform("house-wording", spec.name, scope, key) < spec.headroom.wording


def noted(spec: Domain, scope: str, content: Content) -> Content:
    """What an agent wrote as the deployment keeps it: some tips in the words of the house."""
    if not isinstance(content, TipContent) or not is_worded(spec, scope, content.trigger):
        return content
    template = TEMPLATES[draw_below(len(TEMPLATES), "house-template", spec.name, scope, content.trigger)]
    return content.model_copy(update={"text": template.format(content.text)})


def kinds_of(spec: Domain, world: World, split: Split, subs: Sequence[Sub]) -> list[str]:
    """Which kinds of headroom a task of a deployed family meets: what a report has a row for."""
    if not is_deployed(split):
        return []
    keys = [sub.key for sub in subs]
    tips = [key for key in keys if spec.level_of(key) == "tip"]
    met = {
        "misleading": any(misleads(spec, key) for key in keys),
        "drift": any(key in world.facts and drifts(spec, world, key) for key in keys),
        "one_off": any(key not in world.facts for key in keys),
        "wording": any(is_worded(spec, world.scope, key) for key in tips),
    }
    return [kind for kind in KINDS if met[kind]]


def _other(spec: Domain, world: World, key: str, now: str, what: str) -> str:
    """Another value of a tip, the same one every time; unlike all that the family began with where those differ."""
    taken = {now, *(world.facts.values() if spec.distinct else ())}
    values = [value for value in spec.values if value not in taken]
    return values[draw_below(len(values), what, spec.name, world.world_seed, world.scope, key)]
