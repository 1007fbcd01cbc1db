"""Maintain, for chat models: an episode over the repository, one JSON command a reply.

`{"command": "lookup", "query": "…"}` · `{"command": "merge", "entries": ["m1", "m2"], "into": {entry}}` ·
`{"command": "delete", "entries": ["m3"]}` · `{"command": "finish"}`. Handles stay valid for the whole episode.
Notes on redundancy, contradiction and staleness (memory/rivals.py) stand in the first line of an entry.
Hindsight: V and redundancy of each entry shown first, and the commands of this episode that V confirms.
Paper: fast loop step 5 and the maintain view of the slow loop (the authors' code has none of it).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from opd_evolver.abilities.dialect import verdict
from opd_evolver.abilities.instruct import reading, write
from opd_evolver.abilities.instruct.wording import (
    entry_text,
    handle,
    hint,
    quoted,
    said_of,
    segment,
    system,
    user,
    value_text,
)
from opd_evolver.abilities.maintain import Command, Notes
from opd_evolver.memory import rivals
from opd_evolver.memory.acceptance import fault
from opd_evolver.memory.levels import Count, n_words
from opd_evolver.policy.thinking import without_thinking
from opd_evolver.records import Attribution, Entry, Message, Prompt, Segment

SYSTEM = system(
    "You keep an agent's memory in order. Each note begins with its handle, such as [m1], and says how often it was "
    "used and won. Delete notes that are wrong or no longer hold, merge notes of one scope that say the same or "
    "belong together, look up others by a query, and finish when nothing is left to do. Leave good notes alone: a "
    "note that was never used may still be right.\n\n"
    "Reply with one JSON object, one command at a time, and nothing else:\n"
    '{"command": "lookup", "query": "words"}\n'
    '{"command": "delete", "entries": ["m3"]}\n'
    '{"command": "merge", "entries": ["m1", "m2"], "into": {"level": "tip", "trigger": "…", "text": "…"}}\n'
    '{"command": "finish"}\n\n'
    "A merged note has one of these forms:\n" + "\n".join(write.FORMS.split("\n")[:3])
)
_NOTES = {
    rivals.DUPLICATE: "repeats an earlier one",
    rivals.CONTRADICTED: "contradicts another one",
    rivals.STALE: "a newer one has replaced it",
    rivals.POOR: "another one does clearly better",
}


def listing(
    entries: Sequence[Entry], first_handle: int, *, token_budget: int, count: Count = n_words, notes: Notes
) -> str:
    """Entries with handle, usage statistics and notes by entry id; begins on a line of its own."""
    return "".join(
        "\n"
        + entry_text(
            entry,
            number=number,
            token_budget=token_budget,
            count=count,
            more="; ".join(
                (
                    f"; used {entry.usage_count} times, won {entry.success_count}",
                    *(_NOTES[note] for note in notes.get(entry.entry_id, ())),
                )
            ),
        )
        for number, entry in enumerate(entries, start=first_handle)
    )


def first_message(
    n_entries: int,
    shown: Sequence[Entry],
    *,
    token_budget: int,
    count: Count = n_words,
    notes: Notes,
    hindsight: Segment | None = None,
) -> Message:
    """The opening message over the snapshot M; the teacher's when `hindsight` is given."""
    segments = [segment(f"The memory holds {n_entries} notes. These are shown:")]
    segments.append(segment(listing(shown, 1, token_budget=token_budget, count=count, notes=notes), "memory"))
    if hindsight is not None:
        segments.append(hindsight)
    return user(*segments)


def result_message(text: str) -> Message:
    """`text` is the harness's own: a word, or a listing whose entries are quoted already."""
    return user(segment(f"Result: {text}", "history"))


def prompt(first: Message, history: Sequence[Message] = ()) -> Prompt:
    return Prompt(ability="maintain", messages=(SYSTEM, first, *history))


def hindsight(
    shown: Sequence[Entry],
    attributions: Mapping[str, Attribution],
    redundant: frozenset[str],
    threshold: float,
    past: Sequence[str] = (),
) -> Segment | None:
    """V and redundancy of each shown entry, then good past commands; see abilities/maintain.py."""
    lines = []
    for number, entry in enumerate(shown, start=1):
        found = attributions.get(entry.entry_id)
        if entry.entry_id in redundant:
            lines.append(f"{handle(number)} {_NOTES[rivals.DUPLICATE]}")
        elif sign := verdict(found, threshold):
            lines.append(f"{handle(number)} {said_of(sign)}{value_text(found)}")
    if not lines:
        return None
    return hint(*lines, *(f"Good: {quoted(without_thinking(command))}" for command in past))


def parse(reply: str, n_shown: int) -> Command:
    """One command; anything else, or a handle that was not shown, is `unreadable` and changes nothing.

    Several commands in one reply are unreadable, too: their results would have come too late.
    """
    text = reading.said(reply)
    trees = [tree for tree in reading.values(text) if isinstance(tree, dict)]
    if not trees:
        return _bare(text, n_shown)
    commands = [_command(tree, n_shown) for tree in trees if reading.text_of(tree, *_NAMES)]
    return commands[0] if len(commands) == 1 else Command("unreadable")


_NAMES = ("command", "action", "tool", "name")


def _command(tree: dict[str, Any], n_shown: int) -> Command:
    kind = reading.text_of(tree, *_NAMES).lower()
    inner = reading.field(tree, "arguments", "parameters", "args")
    tree = inner if isinstance(inner, dict) else tree
    if kind == "finish":
        return Command("finish")
    if kind == "lookup" and (query := " ".join(reading.text_of(tree, "query", "text").split())):
        return Command("lookup", query=query)
    chosen = reading.handles(reading.field(tree, "entries", "notes", "handles", "ids"))
    if not chosen or any(not 1 <= number <= n_shown for number in chosen):
        return Command("unreadable")
    places = tuple(dict.fromkeys(number - 1 for number in chosen))
    if kind == "delete":
        return Command("delete", places)
    if kind == "merge" and len(places) > 1:
        content = write.content_of(reading.field(tree, "into", "entry", "content"))
        if content is not None and fault(content) is None:
            return Command("merge", places, content=content)
    return Command("unreadable")


def _bare(text: str, n_shown: int) -> Command:
    """A reply of one line without JSON: `finish`, `lookup words`, `delete m3`."""
    line = text.strip().strip("*`_. ")
    kind, _, rest = line.partition(" ")
    if "\n" in line:
        return Command("unreadable")
    if kind.lower() == "finish" and not rest:
        return Command("finish")
    if kind.lower() == "lookup" and rest.strip():
        return Command("lookup", query=" ".join(rest.split()))
    if kind.lower() == "delete" and (chosen := reading.bare_handles(rest)):
        return _command({"command": "delete", "entries": chosen}, n_shown)
    return Command("unreadable")
