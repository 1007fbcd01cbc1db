"""Write samples: note every guess that turned out right; what memory held already is not written again."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from opd_evolver.abilities import write
from opd_evolver.environments import conventions as cv
from opd_evolver.environments.procedures import word_at
from opd_evolver.records import Entry, Message, TurnRecord
from opd_evolver.seed.course import Course, follows
from opd_evolver.seed.facts import (
    ENTRY_TOKEN_BUDGET,
    ERRORS,
    P_OTHER_LEVEL,
    VERDICT_THRESHOLD,
    Conversation,
    Noted,
    Reply,
    any_key,
    any_round,
    chance,
    content_of,
    distractors,
    entries,
    entry_of,
    other_level,
    parsed_action,
    pick,
    shuffled,
    turn,
    verdicts,
    wrong_value,
)
from opd_evolver.seed.replies import Belief, calls, followed, said

P_HINDSIGHT, P_CORRUPTED, P_ERROR, P_EVIDENCE, P_UP = 0.25, 0.12, 0.04, 0.85, 0.55
# What memory held of a key; and how often a guess is right: at the first attempt, at the second one.
P_KNOWN, P_MISTAKEN = 0.24, 0.06
P_TIP, P_TIP_SECOND = 0.35, 0.6
P_MOVE, P_SECOND = 0.5, 0.85


class Played(NamedTuple):
    """A scripted episode: its turns, their replies, what it revealed, in order; and how it ended."""

    turns: tuple[TurnRecord, ...]
    replies: tuple[str, ...]
    known: tuple[tuple[Noted, Entry], ...]
    revealed: tuple[Noted, ...]
    episode_return: float
    success: bool


def sample(domain: cv.Procedural, rng: np.random.Generator, lowest_round: int = 1) -> Conversation:
    """One write prompt of a fresh world, and the right reply; here facts were of any round from the beginning."""
    world = cv.random_world(domain.spec, rng)
    task = domain.demo(world, rng)
    played = _play(domain, world, task, rng)
    memories = _memories(domain, world, task, played, rng)
    wanted = [_form(domain, fact, rng) for fact in played.revealed]
    hint, begun = None, ""
    if chance(P_HINDSIGHT, rng):
        written, forms, marks = _judged(domain, played, rng)
        judged = {entry.entry_id: mark for entry, mark in zip(written, marks, strict=True) if mark}
        hint = write.hindsight(written, verdicts(judged), VERDICT_THRESHOLD)
        downs = {form for form, mark in zip(forms, marks, strict=True) if mark == "down"}
        ups = [form for form, mark in zip(forms, marks, strict=True) if mark == "up"]
        wanted = [form for form in wanted if form not in downs] + [form for form in ups if form not in wanted]
        if downs and chance(P_CORRUPTED, rng):
            begun = sorted(downs)[0]
    message = _message(task.text, played, memories, hint)
    text = " | ".join(wanted) or "none"
    if begun:
        full = f"{begun} | {text}" if wanted else begun
        return Conversation("write", ((message, Reply(full, n_masked_words=len(begun.split()))),))
    return Conversation("write", ((message, Reply(text)),))


def _form(domain: cv.Procedural, fact: Noted, rng: np.random.Generator) -> str:
    return write.written_form(content_of(domain, fact, rng))


def _message(task_text: str, played: Played, memories: list[Entry], hint: object) -> Message:
    return write.prompt(
        task_text,
        played.turns,
        played.replies,
        memories,
        episode_return=played.episode_return,
        success=played.success,
        token_budget=ENTRY_TOKEN_BUDGET,
        hindsight=hint,  # type: ignore[arg-type]
    ).messages[0]


def _play(domain: cv.Procedural, world: cv.World, task: cv.DemoTask, rng: np.random.Generator) -> Played:
    """Each key is known and right, known and wrong, or unknown; guesses are right at once, later or never."""
    turns: list[TurnRecord] = []
    replies: list[str] = []
    beliefs: dict[str, Belief | None] = {}
    known: list[tuple[Noted, Entry]] = []
    guessed: dict[str, None] = {}
    called: set[str] = set()
    course = Course(domain, task, lambda move, word: word == word_at(world.facts[move.key], move.stage), rng)
    n_won = 0

    while not course.over:
        move = course.move
        if move.key not in beliefs:
            fact = _remembered(domain, world, move.key, rng)
            beliefs[move.key] = None
            if fact is not None:
                entry = entry_of(domain, fact, rng)
                known.append((fact, entry))
                beliefs[move.key] = Belief(fact.marker, fact.value, entry)
        belief = beliefs[move.key]
        place = course.place
        if belief is not None and calls(domain, belief, move) and move.key not in called:
            called.add(move.key)
            reply, result = followed(domain, belief, world.scope, move), course.run(belief)
        elif belief is not None and move.key not in called and follows(belief, course):
            reply = followed(domain, belief, world.scope, move)
            result = course.attempt(word_at(belief.value, move.stage))
        else:
            word = _guess(world, course, rng)
            reply, result = said("guess", domain, world.scope, move, word), course.attempt(word)
            if course.place > place:
                guessed[move.key] = None
        if course.place == place and chance(P_ERROR, rng):
            words = reply.split()
            again = "" if course.over or not move.again else f" next {move.again}"
            reply, result = " ".join(words[: int(rng.integers(1, len(words)))]), pick(ERRORS, rng) + again
        n_won = course.place
        turns.append(turn(parsed_action(reply), result))
        replies.append(reply)
    solved = {move.key for move in task.subs[:n_won]} - {move.key for move in task.subs[n_won:]}
    revealed = [
        Noted(world.scope, key, 0, world.facts[key])
        for key in guessed
        if key in solved and key not in called and _noted(domain, key, task)
    ]
    share = n_won / len(task.subs)
    return Played(tuple(turns), tuple(replies), tuple(known), tuple(revealed), share, n_won == len(task.subs))


def _noted(domain: cv.Procedural, key: str, task: cv.DemoTask) -> bool:
    """A log serves the question that it begins with; anything else is noted wherever it came."""
    return domain.spec.level_of(key) != "trajectory" or task.subs[0].key == key


def _remembered(domain: cv.Procedural, world: cv.World, key: str, rng: np.random.Generator) -> Noted | None:
    kind = rng.random()
    if kind < P_KNOWN:
        return Noted(world.scope, key, any_round(rng), world.facts[key])
    if kind < P_KNOWN + P_MISTAKEN:
        return Noted(world.scope, key, any_round(rng), wrong_value(domain, key, world.facts[key], rng))
    return None


def _guess(world: cv.World, course: Course, rng: np.random.Generator) -> str:
    move = course.move
    right = word_at(world.facts[move.key], move.stage)
    first, second = (P_MOVE, P_SECOND) if move.stage else (P_TIP, P_TIP_SECOND)
    wrong = [word for word in course.choices if word != right and not course.known_wrong(word)]
    return right if not wrong or chance(second if course.refused else first, rng) else pick(wrong, rng)


def _memories(
    domain: cv.Procedural, world: cv.World, task: cv.DemoTask, played: Played, rng: np.random.Generator
) -> list[Entry]:
    """The selection of the episode: what was recited from memory, and sometimes more."""
    listed = [entry for _, entry in played.known]
    if listed or chance(0.35, rng):
        keys = list(dict.fromkeys(sub.key for sub in task.subs))
        n = int(rng.integers(0, 4))
        listed += entries(domain, distractors(domain, world.scope, keys, n, rng), rng)
        if domain.spec.levels == cv.TIPS_ONLY and chance(P_OTHER_LEVEL, rng):
            listed.append(other_level(domain, world.scope, rng))
    return shuffled(listed, rng)


def _judged(
    domain: cv.Procedural, played: Played, rng: np.random.Generator
) -> tuple[list[Entry], list[str], list[str]]:
    """What an episode wrote, mostly what it revealed: as memory words it, as it is written, and the verdicts on it
    (empty: no evidence)."""
    written = list(played.revealed)
    written += [fact for fact, _ in played.known if chance(0.15, rng)]
    if chance(0.1, rng):
        key = any_key(domain, rng)
        written.append(Noted("seed", key, 0, pick(domain.values(key), rng)))
    marks: list[str] = []
    for place in range(len(written)):
        mark = "up" if chance(P_UP if place < len(played.revealed) else 0.3, rng) else "down"
        marks.append(mark if chance(P_EVIDENCE, rng) else "")
    made = [
        entry_of(domain, fact._replace(scope="seed"), rng).model_copy(update={"entry_id": str(place)})
        for place, fact in enumerate(written)
    ]
    return made, [_form(domain, fact, rng) for fact in written], marks
