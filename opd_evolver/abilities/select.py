"""Select: which of the retrieved entries to bring. S = Sel(x, C).

Student prompt `select <task> | <entry h1> | <entry h2> …`; reply `zora late h1 zora held none`.
Hindsight {(m, V(m)) : m in C}, negatives kept: `hint h1 up h2 down`.
Paper: fast loop step 2 and the select view of the slow loop.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from opd_evolver.abilities.dialect import HINT, entries_text, segment, user, verdict
from opd_evolver.memory.levels import Count, n_words
from opd_evolver.records import Attribution, Entry, Prompt, Segment

HANDLE = re.compile(r"(?<!\S)h(\d{1,3})(?!\S)")


def prompt(
    task_text: str,
    candidates: Sequence[Entry],
    *,
    token_budget: int,
    count: Count = n_words,
    hindsight: Segment | None = None,
) -> Prompt:
    """The selector's prompt; the teacher's when `hindsight` is given.

    Args:
        task_text: what the agent is asked.
        candidates: C in shown order; the handle is the 1-based place.
        token_budget: most tokens an entry may take.
        count: tokens of a text.
        hindsight: from `hindsight()`; None for the student.
    """
    listed = entries_text(candidates, token_budget=token_budget, handles=True, count=count)
    segments = [segment(f"select {task_text}"), segment("|"), segment(listed, "memory")]
    if hindsight is not None:
        segments.append(hindsight)
    return Prompt(ability="select", messages=(user(*segments),))


def hindsight(candidates: Sequence[Entry], attributions: Mapping[str, Attribution], threshold: float) -> Segment | None:
    """V of every shown candidate with evidence, in shown order; None when there is nothing to tell."""
    marks = [
        f"h{number} {mark}"
        for number, entry in enumerate(candidates, start=1)
        if (mark := verdict(attributions.get(entry.entry_id), threshold))
    ]
    return segment(f"{HINT} {' '.join(marks)}", "hindsight") if marks else None


def parse(reply: str, n_candidates: int, max_selected: int) -> list[int] | None:
    """Chosen places (0-based, in reply order, no repeats), or None when unreadable.

    `none` is a valid answer. A handle that was not shown makes the answer unreadable: the
    caller falls back to the top of the ranking, logs it and keeps it out of attribution.
    """
    handles = [int(found) for found in HANDLE.findall(reply)]
    if not handles:
        return [] if "none" in reply.split() else None
    if any(not 1 <= handle <= n_candidates for handle in handles):
        return None
    return [handle - 1 for handle in dict.fromkeys(handles)][:max_selected]
