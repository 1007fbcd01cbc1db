"""A fact as the memory level that carries it best would hold it: for seed data and probes, never for an agent."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from opd_evolver.environments import conventions as cv
from opd_evolver.environments.procedures import JOINT, word_at, words_of
from opd_evolver.records import Content, SkillContent, TipContent, ToolContent, TrajectoryContent, TrajectoryStep


def content_of(domain: cv.Procedural, scope: str, key: str, value: str, rng: np.random.Generator) -> Content:
    """What an agent writes of the fact.

    Args:
        domain: gives levels, actions and observations.
        scope: the family's name.
        key: what the fact is about.
        value: a word, or an order of words.
        rng: draws the argument and the answers of a log.
    """
    match domain.spec.level_of(key):
        case "tip":
            return TipContent(trigger=key, text=value)
        case "skill":
            return SkillContent(description=key, steps=words_of(value))
        case "tool":
            return ToolContent(name=key, language="actions", code=code_of(domain, key, value))
        case "trajectory":
            return logged(domain, scope, {key: value}, rng)


def code_of(domain: cv.Procedural, key: str, value: str) -> str:
    """The actions of an order, with the argument left open."""
    return JOINT.join(domain.action(cv.Move(key, "$1"), word) for word in words_of(value))


def logged(
    domain: cv.Procedural, scope: str, facts: Mapping[str, str], rng: np.random.Generator, n_won: int | None = None
) -> TrajectoryContent:
    """The log of an episode that asked for `facts` in this order, with any arguments, as `abilities.write` keeps it.

    Args:
        domain: gives actions and observations.
        scope: the family's name.
        facts: key to value.
        rng: draws arguments and answers.
        n_won: moves that were answered; all when None.
    """
    spec = domain.spec
    subs = []
    for key in facts:
        args = spec.args_of(key)
        subs.append(cv.Sub(key, args[int(rng.integers(len(args)))]))
    task = cv.demo_of(spec, cv.World(spec.name, scope, "", dict(facts)), subs)
    n_won = len(task.subs) if n_won is None else n_won
    # An episode that missed at first was asked again: refused turns are not kept, what they led to is.
    missed = rng.random() < 0.5
    steps = tuple(
        TrajectoryStep(
            observation="" if place else domain.observation(move, False, False, rng) if missed else move.again,
            action=domain.action(move, word_at(facts[move.key], move.stage)),
            result=domain.observation(move, True, not move.next_text, rng),
            reward=1.0 / len(task.subs),
        )
        for place, move in enumerate(task.subs[:n_won])
    )
    won = n_won == len(task.subs)
    return TrajectoryContent(
        task=task.text, steps=steps, outcome="success" if won else "partial", episode_return=n_won / len(task.subs)
    )
