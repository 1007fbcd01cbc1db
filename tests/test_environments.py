"""Procedural domains: names, worlds, splits, tasks, seed data."""

from __future__ import annotations

import itertools
from collections import Counter
from hashlib import sha256

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opd_evolver.abilities import dialect
from opd_evolver.environments import conventions as cv
from opd_evolver.environments.apps import Apps
from opd_evolver.environments.sql import Sql
from opd_evolver.environments.tasks import subs_of
from opd_evolver.records import LEVELS, SPLITS, Level, Task
from tests.task_worlds import DOMAINS, AnyDomain, each_domain, is_installed, n_played

ALL_LEVELS: tuple[Level, ...] = ("tip", "skill", "tool", "trajectory")
# sha256 of the first 200 tasks of every split.
FIRST_TASKS = [
    (Sql, cv.TIPS_ONLY, "f9519a5add590a81d6ac68f58387a7eb8e20de043f6d4be8307c638148bfad45"),
    (Sql, ALL_LEVELS, "8a9703dc2d8aa46a17fd7930d5e25ad98b246c75573ba322a0da869d079c41a9"),
    (Apps, cv.TIPS_ONLY, "460988de6c4057be25e76edf09936e85d27cd3de30ce1861e5a661c615d4c85f"),
    (Apps, ALL_LEVELS, "0220f763877471b138856e3386c381e103ef0ad0f46755eae9b0934fb8b86b79"),
]


# ── names and worlds ──


def test_names_are_unambiguous_and_no_word_of_the_dialect() -> None:
    words = {*dialect.WORDS}
    for make in filter(is_installed, DOMAINS):
        words |= {word for word in make(levels=LEVELS).words() if word not in {*cv.FIRST, *cv.SECOND}}
    assert not words & {*cv.FIRST, *cv.SECOND}
    assert not set(cv.FIRST) & set(cv.SECOND)
    names = [a + b for a in cv.FIRST for b in cv.SECOND]
    assert not words & {*names}
    assert len(set(names)) == len(names)
    assert all("".join(cv.syllables(name)) == name for name in names)


def test_domains_share_no_word_that_carries_a_fact() -> None:
    found = {make.domain: fact_words(make.spec) for make in DOMAINS}
    for left, right in itertools.combinations(found.values(), 2):
        assert not left & right
    for make in DOMAINS:
        words = found[make.domain]
        assert not words & set(dialect.WORDS)
        for other in filter(is_installed, DOMAINS):
            if other is not make:
                assert not words & set(other(levels=LEVELS).words())


def fact_words(spec: cv.Domain) -> set[str]:
    words = [*spec.keys, *(value for value in spec.values if not value.isdigit()), *spec.steps]
    words += [key for one in spec.procedures for key in one.keys]
    assert len(set(words)) == len(words)
    return set(words)


def test_every_name_belongs_to_one_group_and_seed_holds_six_of_eight() -> None:
    groups = {group: set(cv.names(group)) for group in cv.GROUPS}
    for left, right in itertools.combinations(groups.values(), 2):
        assert not left & right
    total = sum(len(names) for names in groups.values())
    assert total == len(cv.FIRST) * len(cv.SECOND)
    assert len(groups["seed"]) / total > 0.7


@each_domain
def test_worlds_are_a_prefix_and_depend_on_the_world_seed(make: type[AnyDomain]) -> None:
    spec = make.spec
    assert cv.worlds(spec, "novel-test", 5) == cv.worlds(spec, "novel-test", 9)[:5]
    assert cv.worlds(spec, "deploy-train", 12) == cv.worlds(spec, "deploy-test", 12)
    assert cv.worlds(spec, "novel-test", 5, 0) != cv.worlds(spec, "novel-test", 5, 1)
    for world in cv.worlds(spec, "deploy-val", 12):
        assert len(world.facts) == cv.N_FACTS
        assert world.scope not in world.family


def test_deployed_names_of_the_domains_differ() -> None:
    assert len({make.spec.slot for make in DOMAINS}) == len(DOMAINS)
    for split in ("deploy-test", "novel-val", "novel-test"):
        scopes = [{world.scope for world in cv.worlds(make.spec, split, cv.N_FAMILIES[split])} for make in DOMAINS]
        for left, right in itertools.combinations(scopes, 2):
            assert not left & right


def test_every_slot_has_names_for_all_families() -> None:
    for group in cv.GROUPS[1:]:
        counts = Counter(cv.slot_of(name) for name in cv.names(group))
        assert sorted(counts) == list(range(cv.N_SLOTS))
        assert min(counts.values()) >= max(n for split, n in cv.N_FAMILIES.items() if split != "seed")


# ── tasks ──


@pytest.mark.parametrize(("make", "levels", "digest"), FIRST_TASKS)
def test_the_first_domains_keep_the_tasks_that_they_began_with(
    make: type[AnyDomain], levels: tuple[Level, ...], digest: str
) -> None:
    """Committed weights and runs were made on these bytes; a domain more must not move them."""
    environment, found = make(levels=levels), sha256()
    for split in SPLITS:
        for task in environment.tasks(split, 200):
            found.update(task.model_dump_json().encode() + b"\n")
    assert found.hexdigest() == digest


@each_domain
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), world_seed=st.integers(0, 50), n=st.integers(0, 150), more=st.integers(0, 40))
def test_splits_are_disjoint_prefixes(make: type[AnyDomain], seed: int, world_seed: int, n: int, more: int) -> None:
    environment = make(world_seed)
    listed = {split: environment.tasks(split, n + more, seed) for split in SPLITS}
    for split, tasks in listed.items():
        assert environment.tasks(split, n, seed) == tasks[:n]
        assert len({task.task_id for task in tasks}) == len(tasks)
    for left, right in itertools.combinations(SPLITS, 2):
        assert not {t.task_id for t in listed[left]} & {t.task_id for t in listed[right]}
        if left.startswith("deploy") and right.startswith("deploy"):
            assert not {t.text for t in listed[left]} & {t.text for t in listed[right]}
        else:
            assert not {t.scope for t in listed[left]} & {t.scope for t in listed[right]}
            assert not {t.family for t in listed[left]} & {t.family for t in listed[right]}


@each_domain
def test_tasks_cover_families_and_facts_evenly(make: type[AnyDomain]) -> None:
    tasks = make().tasks("deploy-test", 120)
    families = [task.family for task in tasks]
    assert families == families[:12] * 10
    assert sum(len(subs_of(task)) == 2 for task in tasks) / len(tasks) == pytest.approx(0.4)
    asked: dict[tuple[str, str], int] = {}
    for task in tasks:
        keys = [sub.key for sub in subs_of(task)]
        assert len(set(keys)) == len(keys)
        for key in keys:
            asked[task.scope, key] = asked.get((task.scope, key), 0) + 1
    assert len(asked) == 72
    assert max(asked.values()) - min(asked.values()) <= 1


@each_domain
def test_every_split_has_its_tasks_and_another_seed_draws_others(make: type[AnyDomain]) -> None:
    for split in SPLITS:
        assert len(make().tasks(split, 200)) == 200
    assert make().tasks("deploy-train", 60, 0) != make().tasks("deploy-train", 60, 1)


# ── seed data ──


@each_domain
def test_demo_tasks_are_real_tasks(make: type[AnyDomain]) -> None:
    environment = make()
    rng = cv.generator("demo", environment.domain)
    sizes = []
    for number in range(200):
        world = cv.random_world(environment.spec, rng)
        assert cv.group_of(*cv.syllables(world.scope)) == "seed"
        demo = environment.demo(world, rng)
        sizes.append(len(demo.subs))
        if number >= n_played(make, 200):
            continue
        task = Task(
            task_id="demo",
            domain=environment.domain,
            scope=world.scope,
            family="",
            split="seed",
            text=demo.text,
            gold={"subs": [[s.key, s.arg] for s in demo.subs], "facts": world.facts, "world_seed": 0},
        )
        environment.reset(task)
        for sub in demo.subs:
            step = environment.step(environment.action(sub, world.facts[sub.key]))
            assert step.observation.partition(" next ")[2] == sub.next_text
        assert step.info["success"]
        assert demo.text.startswith(f"{world.scope} ")
    assert np.mean(np.array(sizes) == 2) == pytest.approx(0.4, abs=0.1)


def test_random_worlds_take_given_names_and_are_counter_based() -> None:
    def drawn() -> list[cv.World]:
        rng = cv.generator("same")
        return [cv.random_world(Sql.spec, rng, ("zora", "malo")) for _ in range(20)]

    assert drawn() == drawn()
    assert {world.scope for world in drawn()} == {"zora", "malo"}
    assert len({tuple(world.facts.items()) for world in drawn()}) == 20
