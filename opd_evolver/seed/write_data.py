"""Write samples: note every guess that turned out right; what memory held already is not written again."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from opd_evolver.abilities import write
from opd_evolver.environments import conventions as cv
from opd_evolver.records import Attribution, Entry, Message, TipContent, TurnRecord
from opd_evolver.seed.facts import (
    ENTRY_TOKEN_BUDGET,
    ERRORS,
    P_OTHER_LEVEL,
    Conversation,
    Noted,
    Reply,
    any_round,
    chance,
    distractors,
    other,
    other_level,
    parsed_action,
    pick,
    said,
    shuffled,
    tip,
    turn,
)

P_HINDSIGHT, P_CORRUPTED, P_ERROR, P_EVIDENCE, P_UP = 0.2, 0.12, 0.04, 0.85, 0.55
# How a sub-question goes: known and right, known and wrong, guessed at once, at the second attempt, never.
COURSES = (0.24, 0.06, 0.24, 0.28, 0.18)
_VALUE = 0.5


class Played(NamedTuple):
    """A scripted episode: its turns, their replies, what it revealed, in order; and how it ended."""

    turns: tuple[TurnRecord, ...]
    replies: tuple[str, ...]
    known: tuple[Noted, ...]
    revealed: tuple[tuple[str, str], ...]
    solved: int
    n_subs: int


def sample(domain: cv.Procedural, rng: np.random.Generator) -> Conversation:
    """One write prompt of a fresh world, and the right reply."""
    world = cv.random_world(domain.spec, rng)
    task = domain.demo(world, rng)
    played = _play(domain, world, task, rng)
    memories = _memories(domain, world, task, played, rng)
    wanted = list(played.revealed)
    hint, begun = None, ""
    if chance(P_HINDSIGHT, rng):
        written, marks = _judged(domain, played, rng)
        hint = write.hindsight(written, *_attributions(written, marks))
        downs = {_fact(entry) for entry, mark in zip(written, marks, strict=True) if mark == "down"}
        ups = [_fact(entry) for entry, mark in zip(written, marks, strict=True) if mark == "up"]
        wanted = [fact for fact in wanted if fact not in downs] + [fact for fact in ups if fact not in wanted]
        if downs and chance(P_CORRUPTED, rng):
            begun = _text(sorted(downs)[:1])
    message = _message(task.text, played, memories, hint)
    text = _text(wanted)
    if begun:
        full = f"{begun} | {text}" if wanted else begun
        return Conversation("write", ((message, Reply(full, n_masked_words=len(begun.split()))),))
    return Conversation("write", ((message, Reply(text)),))


def _message(task_text: str, played: Played, memories: list[Entry], hint: object) -> Message:
    success = played.solved == played.n_subs
    return write.prompt(
        task_text,
        played.turns,
        played.replies,
        memories,
        episode_return=played.solved / played.n_subs,
        success=success,
        token_budget=ENTRY_TOKEN_BUDGET,
        hindsight=hint,  # type: ignore[arg-type]
    ).messages[0]


def _text(facts: list[tuple[str, str]]) -> str:
    return " | ".join(write.written_form(TipContent(trigger=key, text=value)) for key, value in facts) or "none"


def _fact(entry: Entry) -> tuple[str, str]:
    content = entry.content
    return (content.trigger, content.text) if isinstance(content, TipContent) else ("", "")


def _play(domain: cv.Procedural, world: cv.World, task: cv.DemoTask, rng: np.random.Generator) -> Played:
    turns: list[TurnRecord] = []
    replies: list[str] = []
    known: list[Noted] = []
    revealed: list[tuple[str, str]] = []
    solved = 0

    def attempt(sub: cv.DemoSub, marker: str, value: str, right: bool) -> None:
        reply = said(marker, domain, world.scope, sub, value)
        result = domain.observation(sub, right, not sub.next_text, rng)
        if not right and chance(P_ERROR, rng):
            words = reply.split()
            reply, result = " ".join(words[: int(rng.integers(1, len(words)))]), pick(ERRORS, rng)
        turns.append(turn(parsed_action(reply), result))
        replies.append(reply)

    for sub in task.subs:
        value = world.facts[sub.key]
        wrong = other(domain.values(sub.key), [value], rng)
        course = int(np.searchsorted(np.cumsum(COURSES), rng.random()))
        fact = Noted(world.scope, sub.key, any_round(rng), value if course == 0 else wrong)
        if course <= 1:
            known.append(fact)
        if course == 0:
            attempt(sub, fact.marker, value, True)
        else:
            if course != 2:
                attempt(sub, fact.marker if course == 1 else "guess", wrong, False)
            right = course == 2 or (course == 1 and chance(0.5, rng)) or course == 3
            attempt(sub, "guess", value if right else other(domain.values(sub.key), [wrong, value], rng), right)
            if not right:
                break
            revealed.append((sub.key, value))
        solved += 1
    return Played(tuple(turns), tuple(replies), tuple(known), tuple(revealed), solved, len(task.subs))


def _memories(
    domain: cv.Procedural, world: cv.World, task: cv.DemoTask, played: Played, rng: np.random.Generator
) -> list[Entry]:
    """The selection of the episode: what was recited from memory, and sometimes more."""
    listed = [tip(domain, fact) for fact in played.known]
    if listed or chance(0.35, rng):
        keys = [sub.key for sub in task.subs]
        n = int(rng.integers(0, 4))
        listed += [tip(domain, fact) for fact in distractors(domain, world.scope, keys, n, rng)]
        if chance(P_OTHER_LEVEL, rng):
            listed.append(other_level(domain, world.scope, rng))
    return shuffled(listed, rng)


def _judged(domain: cv.Procedural, played: Played, rng: np.random.Generator) -> tuple[list[Entry], list[str]]:
    """What an episode wrote, mostly what it revealed, and the verdicts on it (empty: no evidence)."""
    written = [Noted("", key, 0, value) for key, value in played.revealed]
    written += [fact for fact in played.known if chance(0.15, rng)]
    if chance(0.1, rng):
        key = pick(domain.spec.keys, rng)
        written.append(Noted("", key, 0, pick(domain.values(key), rng)))
    marks: list[str] = []
    revealed = set(played.revealed)
    for fact in written:
        sound = (fact.key, fact.value) in revealed
        mark = "up" if chance(P_UP if sound else 0.3, rng) else "down"
        marks.append(mark if chance(P_EVIDENCE, rng) else "")
    made = [
        tip(domain, fact).model_copy(update={"entry_id": str(place), "scope": "seed"})
        for place, fact in enumerate(written)
    ]
    return made, marks


def _attributions(written: list[Entry], marks: list[str]) -> tuple[dict[str, Attribution], float]:
    found = {
        entry.entry_id: Attribution(
            entry_id=entry.entry_id,
            value=_VALUE if mark == "up" else -_VALUE,
            low=None,
            high=None,
            advantage=None,
            n_selected=1,
            n_withheld=1,
        )
        for entry, mark in zip(written, marks, strict=True)
        if mark
    }
    return found, _VALUE / 2
