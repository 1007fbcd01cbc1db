"""The rehearsal anchor: seed families only, hand-placed memories, the base policy's own replies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rollout_world import Toy, small
from slow_world import Played, Puppet, agent

from opd_evolver.environments import registry
from opd_evolver.environments.conventions import group_of, syllables
from opd_evolver.environments.domain import TIPS_ONLY
from opd_evolver.environments.protocol import Conventions
from opd_evolver.params import EnvironmentParams
from opd_evolver.policy.local import LocalPolicy
from opd_evolver.records import Entry, TipContent
from opd_evolver.slow import anchor
from opd_evolver.slow.examples import read_lines

PARAMS = small(slow__anchor_examples=120)
KINDS: tuple[anchor.Kind, ...] = ("read", "override", "bare")


@pytest.fixture(scope="module")
def local(world: Played) -> LocalPolicy:
    return world.local


@pytest.fixture(scope="module")
def anchors(local: LocalPolicy) -> list[anchor.Anchor]:
    return anchor.build(Puppet(local, agent), registry.loader(EnvironmentParams(levels=TIPS_ONLY)), PARAMS)


def scopes(local: LocalPolicy, found: anchor.Anchor) -> str:
    words = local.decode(found.prompt_ids).split()
    return words[words.index("task") + 1] if "task" in words else words[1]


def test_anchors_are_balanced_over_kinds_and_domains(anchors: list[anchor.Anchor]) -> None:
    counts = dict.fromkeys(anchor.SHARES, 0)
    for one in anchors:
        counts[(one.kind, one.ability)] += 1
    assert counts == {share: 12 * parts for share, parts in anchor.SHARES.items()}
    for share in anchor.SHARES:
        domains = [one.anchor_id.split("-")[2] for one in anchors if (one.kind, one.ability) == share]
        assert domains.count("sql") == domains.count("apps")


def test_anchors_come_from_seed_families_only(local: LocalPolicy, anchors: list[anchor.Anchor]) -> None:
    for one in anchors:
        assert group_of(*syllables(scopes(local, one))) == "seed"
        assert "-seed-" in one.anchor_id


def test_acting_is_rehearsed_beside_all_that_was_placed_and_without_memory(
    local: LocalPolicy, anchors: list[anchor.Anchor]
) -> None:
    for one in anchors:
        if one.ability == "act":
            prompt, reply = local.decode(one.prompt_ids), local.decode(one.reply_ids).split()
            assert (" mem " in prompt) == (one.kind != "bare")
            if one.kind == "read" and "guess" in reply:  # what the selection left out must be guessed
                assert " ".join(reply[:2]) not in prompt[: prompt.index(" task ")]


def test_the_same_seed_gives_the_same_anchors(local: LocalPolicy, anchors: list[anchor.Anchor], tmp_path: Path) -> None:
    digest = anchor.write(
        Puppet(local, agent), registry.loader(EnvironmentParams(levels=TIPS_ONLY)), PARAMS, tmp_path / anchor.ANCHORS
    )
    assert read_lines(tmp_path / anchor.ANCHORS, anchor.Anchor, digest) == anchors


def told(entries: list[Entry], scope: str, key: str) -> list[str]:
    """What tips about a key say."""
    found = [(entry.scope, entry.content) for entry in entries if isinstance(entry.content, TipContent)]
    return [content.text for where, content in found if where == scope and content.trigger == key]


def newest(entries: list[Entry], scope: str, key: str) -> str | None:
    """What the newest entry about a key says."""
    about = [e for e in entries if e.scope == scope and isinstance(e.content, TipContent) and e.content.trigger == key]
    latest = max(about, key=lambda entry: entry.created_round, default=None)
    return latest.content.text if latest and isinstance(latest.content, TipContent) else None


@pytest.mark.parametrize("domain", ["sql", "apps"])
def test_placed_memories(domain: str) -> None:
    env = registry.load(domain, TIPS_ONLY)
    assert isinstance(env, Conventions)
    tasks = env.tasks("seed", 40)
    obeyed: list[bool] = []
    for number, task in enumerate(tasks):
        needed = {fact.key: fact.value for fact in env.needed(task)}
        others = [fact for other in tasks if other.scope != task.scope for fact in env.facts(other)]
        shown = {kind: anchor.place(kind, task, env, others, 8, np.random.default_rng(number)) for kind in KINDS}
        assert all(len(entries) <= 8 for entries in shown.values())

        for key, value in needed.items():
            assert newest(shown["read"], task.scope, key) == value
            values = told(shown["override"], task.scope, key)
            assert len(set(values)) == 2 and value in values
            obeyed.append(newest(shown["override"], task.scope, key) == value)
            assert newest(shown["bare"], task.scope, key) is None
    assert 0.3 < np.mean(obeyed) < 0.7  # a world that agrees with the newer entry, or with the older


def test_a_domain_without_conventions_gives_bare_episodes_only(local: LocalPolicy) -> None:
    params = PARAMS.model_copy(update={"environments": PARAMS.environments.model_copy(update={"domains": ("toy",)})})
    found = anchor.build(Puppet(local, agent), lambda domain: Toy(), params)
    assert {(one.kind, one.ability) for one in found} == {("bare", "write"), ("bare", "act")}
