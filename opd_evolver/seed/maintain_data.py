"""Maintain conversations: which of the listed entries to delete, which to merge, and when to finish.

What the notes say decides (memory/rivals.py): what is poor or says nothing new goes, what is stale is merged into
what superseded it, everything else stays. A verdict of hindsight counts more: `down` and `dup` go, `up` stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from opd_evolver.abilities import maintain, write
from opd_evolver.environments import conventions as cv
from opd_evolver.environments.procedures import words_of
from opd_evolver.memory import rivals
from opd_evolver.records import Entry, Message, Segment
from opd_evolver.seed.facts import (
    ENTRY_TOKEN_BUDGET,
    VERDICT_THRESHOLD,
    Conversation,
    Noted,
    Reply,
    any_key,
    any_round,
    chance,
    entry_of,
    near_name,
    pick,
    verdicts,
    wrong_value,
)

P_HINDSIGHT, P_PAST, P_EVIDENCE = 0.35, 0.4, 0.6
MAX_SHOWN = 8
P_UNUSED, P_RIVAL, P_SAME_SCOPE = 0.3, 0.6, 0.5
MAX_ENTRIES, MAX_USES = 400, 120


def sample(domains: Sequence[cv.Procedural], rng: np.random.Generator) -> Conversation:
    """One maintenance episode over entries of any domain."""
    shown = listing_of(domains, rng)
    notes = rivals.notes(shown)
    marks: dict[str, str] = {}
    hint: Segment | None = None
    if chance(P_HINDSIGHT, rng):
        marks = _marks(shown, notes, rng)
        commands = commands_of(shown, notes, marks)
        past = commands[: int(rng.integers(1, len(commands) + 1))] if commands and chance(P_PAST, rng) else []
        judged = {entry_id: mark for entry_id, mark in marks.items() if mark != "dup"}
        twice = frozenset(entry_id for entry_id, mark in marks.items() if mark == "dup")
        hint = maintain.hindsight(shown, verdicts(judged), twice, VERDICT_THRESHOLD, past)
    first = maintain.first_message(
        len(shown) + int(rng.integers(0, MAX_ENTRIES)),
        shown,
        token_budget=ENTRY_TOKEN_BUDGET,
        notes=notes,
        hindsight=hint,
    )
    turns: list[tuple[Message, Reply]] = []
    message = first
    for command in [*commands_of(shown, notes, marks), "finish"]:
        turns.append((message, Reply(command)))
        message = maintain.result_message(maintain.DONE)
    return Conversation("maintain", tuple(turns))


def commands_of(shown: Sequence[Entry], notes: Mapping[str, Sequence[str]], marks: Mapping[str, str]) -> list[str]:
    """One deletion of all that goes, then the merges, as they stand in the list."""
    handles = {entry.entry_id: number for number, entry in enumerate(shown, start=1)}
    gone = [entry for entry in shown if _goes(entry, notes.get(entry.entry_id, ()), marks.get(entry.entry_id, ""))]
    left = [entry for entry in shown if entry not in gone]
    merges: list[str] = []
    for members in rivals.by_topic(left).values():
        kept = next((one for one in reversed(members) if _superseded(one, members, marks)), None)
        if kept is None:
            continue
        old = _superseded(kept, members, marks)
        if kept.level == "trajectory":
            gone += old
            continue
        said = " ".join(f"h{handles[entry.entry_id]}" for entry in [*old, kept])
        merges.append(f"merge {said} : {write.written_form(kept.content)}")
    deleted = " ".join(f"h{number}" for number in sorted(handles[entry.entry_id] for entry in gone))
    return [*([f"delete {deleted}"] if deleted else []), *merges][: MAX_SHOWN - 1]


def _superseded(newer: Entry, members: Sequence[Entry], marks: Mapping[str, str]) -> list[Entry]:
    """What is merged into `newer`: older ones that no verdict keeps."""
    return [entry for entry in members if rivals.supersedes(newer, entry) and marks.get(entry.entry_id) != "up"]


def _goes(entry: Entry, notes: Sequence[str], mark: str) -> bool:
    if mark in ("down", "dup"):
        return True
    return mark != "up" and (rivals.POOR in notes or rivals.DUPLICATE in notes)


def listing_of(domains: Sequence[cv.Procedural], rng: np.random.Generator) -> list[Entry]:
    """A listing: groups of rivals, the largest first."""
    n = int(rng.integers(1, MAX_SHOWN + 1))
    scope = pick(cv.names("seed"), rng)
    found: list[Entry] = []
    while len(found) < n:
        domain = domains[int(rng.integers(len(domains)))]
        if not chance(P_SAME_SCOPE, rng):
            scope = near_name(scope, rng) if chance(0.5, rng) else pick(cv.names("seed"), rng)
        key = any_key(domain, rng)
        fact = Noted(scope, key, any_round(rng), pick(domain.values(key), rng))
        found.append(_used(domain, fact, rng))
        while len(found) < n and chance(P_RIVAL, rng):
            found.append(_used(domain, _rival(domain, fact, rng), rng))
    unique = {(rivals.topic(entry), rivals.claim(entry), entry.created_round): entry for entry in found}
    numbered = [entry.model_copy(update={"entry_id": f"{place:02d}"}) for place, entry in enumerate(unique.values())]
    groups = sorted(rivals.by_topic(numbered).items(), key=lambda group: (-len(group[1]), group[0]))
    return [entry for _, members in groups for entry in members]


def _rival(domain: cv.Procedural, fact: Noted, rng: np.random.Generator) -> Noted:
    """The same topic: said again in another round, or said otherwise."""
    again = len(words_of(fact.value)) > 1 and chance(0.3, rng)
    value = fact.value if again else wrong_value(domain, fact.key, fact.value, rng)
    near = max(1, fact.round + int(rng.integers(-3, 4)))
    return fact._replace(round=near, value=value)


def _used(domain: cv.Procedural, fact: Noted, rng: np.random.Generator) -> Entry:
    uses = 0
    if not chance(P_UNUSED, rng):
        uses = int(rng.integers(1, MAX_USES if chance(0.3, rng) else 13))
    won = int(rng.binomial(uses, float(rng.choice((0.0, 0.2, 0.5, 0.8, 1.0)))))
    return entry_of(domain, fact, rng).model_copy(update={"usage_count": uses, "success_count": won})


def _marks(shown: Sequence[Entry], notes: Mapping[str, Sequence[str]], rng: np.random.Generator) -> dict[str, str]:
    marks: dict[str, str] = {}
    for entry in shown:
        told = notes.get(entry.entry_id, ())
        if rivals.DUPLICATE in told:
            marks[entry.entry_id] = "dup"
        elif chance(P_EVIDENCE, rng):
            marks[entry.entry_id] = "down" if chance(0.8 if rivals.POOR in told else 0.3, rng) else "up"
    return marks
