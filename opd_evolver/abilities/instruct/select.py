"""Select, for chat models: candidates under handles, the reply a JSON object `{"use": ["m1", "m3"]}`.

Hindsight {(m, V(m)) : m in C}, negatives kept: a line `[m1] helped (value +0.42)` per candidate with evidence.
Paper: fast loop step 2 and the select view of the slow loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from opd_evolver.abilities.dialect import verdict
from opd_evolver.abilities.instruct import reading
from opd_evolver.abilities.instruct.wording import (
    entries_text,
    handle,
    hint,
    quoted,
    said_of,
    segment,
    system,
    user,
    value_text,
)
from opd_evolver.memory.levels import Count, n_words
from opd_evolver.records import Attribution, Entry, Prompt, Segment

SYSTEM = system(
    "You choose which notes from an agent's memory will help it with a task. A note is a tip, a skill, a tool or the "
    "record of an earlier attempt; it begins with its handle, such as [m1]. Choose notes that apply to this very "
    "task: its scope, its question. Where notes contradict each other, the one of the later round holds. Notes that "
    "do not apply do harm, so choose none of them, and nothing at all if none applies.\n\n"
    'Reply with one JSON object and nothing else, for example {"use": ["m1", "m3"]}, or {"use": []}.'
)


def prompt(
    task_text: str,
    candidates: Sequence[Entry],
    *,
    token_budget: int,
    count: Count = n_words,
    hindsight: Segment | None = None,
) -> Prompt:
    """The selector's prompt; see abilities/select.py."""
    listed = entries_text(candidates, token_budget=token_budget, handles=True, count=count)
    segments = [segment(f"Task: {quoted(task_text)}"), segment("\n\nNotes:\n"), segment(listed, "memory")]
    if hindsight is not None:
        segments.append(hindsight)
    return Prompt(ability="select", messages=(SYSTEM, user(*segments)))


def hindsight(candidates: Sequence[Entry], attributions: Mapping[str, Attribution], threshold: float) -> Segment | None:
    """V of every shown candidate with evidence, in shown order; None when there is nothing to tell."""
    lines = []
    for number, entry in enumerate(candidates, start=1):
        found = attributions.get(entry.entry_id)
        if sign := verdict(found, threshold):
            lines.append(f"{handle(number)} {said_of(sign)}{value_text(found)}")
    return hint(*lines)


def parse(reply: str, n_candidates: int, max_selected: int) -> list[int] | None:
    """Chosen places (0-based, in reply order, no repeats), or None when unreadable.

    The last object that names handles counts; without one, a last line that holds handles and nothing else.
    A handle that was not shown makes the answer unreadable, as in terse.
    """
    text = reading.said(reply)
    chosen: list[int] | None = None
    for tree in reading.values(text):
        if isinstance(tree, list):
            chosen = reading.handles(tree)
        elif any(str(key).lower() in _KEYS for key in tree):
            chosen = reading.handles(reading.field(tree, *_KEYS))
    if chosen is None:
        chosen = reading.bare_handles(reading.last_line(text)) if "{" not in text else None
    if chosen is None or any(not 1 <= number <= n_candidates for number in chosen):
        return None
    return [number - 1 for number in dict.fromkeys(chosen)][:max_selected]


_KEYS = ("use", "selected", "select", "selection", "notes", "entries", "handles")
