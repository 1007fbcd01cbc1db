"""Maintain: every Q tasks an episode over the repository with lookup, merge, delete and finish.

Student prompt `maintain 12 entries | zora late h1 r3 4 used 5 won 4 clash | …`; one command a reply:
`lookup zora late` · `merge h1 h2 : tip late 4` · `delete h3` · `finish`. Handles stay valid for the
whole episode. Merged and deleted entries are retired with lineage, never lost; nonsense changes nothing.
Notes on redundancy, contradiction and staleness (memory/rivals.py) follow the usage of an entry.
Hindsight: V (which holds gamma) and redundancy of each entry, and good past maintenance, that is the commands
of this episode that V confirms: `hint h1 up h3 down h4 dup | delete h3`.
Paper: fast loop step 5 and the maintain view of the slow loop (the authors' code has none of it).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from opd_evolver.abilities import write
from opd_evolver.abilities.dialect import HINT, SEPARATOR, segment, user, verdict
from opd_evolver.abilities.select import HANDLE
from opd_evolver.memory.levels import Count, n_words, one_line, render
from opd_evolver.records import Attribution, Content, Entry, Message, Prompt, Segment

DONE, ERROR, NOTHING = "ok", "error", "found none"
"""What a command is answered with, unless entries are listed."""


class Command(NamedTuple):
    """One parsed reply. `places` are 0-based into the handles shown so far."""

    kind: Literal["lookup", "merge", "delete", "finish", "unreadable"]
    places: tuple[int, ...] = ()
    query: str = ""
    content: Content | None = None


Notes = Mapping[str, Sequence[str]]


def listing(
    entries: Sequence[Entry], first_handle: int, *, token_budget: int, count: Count = n_words, notes: Notes
) -> str:
    """Entries with handle, usage statistics and notes by entry id."""
    return SEPARATOR.join(
        " ".join(
            (
                render(entry, handle=first_handle + number, token_budget=token_budget, count=count),
                f"used {entry.usage_count} won {entry.success_count}",
                *notes.get(entry.entry_id, ()),
            )
        )
        for number, entry in enumerate(entries)
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
    segments = [segment(f"maintain {n_entries} entries |")]
    segments.append(segment(listing(shown, 1, token_budget=token_budget, count=count, notes=notes), "memory"))
    if hindsight is not None:
        segments.append(hindsight)
    return user(*segments)


def result_message(text: str) -> Message:
    return user(segment(one_line(text) if "|" not in text else text, "history"))


def prompt(first: Message, history: Sequence[Message] = ()) -> Prompt:
    return Prompt(ability="maintain", messages=(first, *history))


def hindsight(
    shown: Sequence[Entry],
    attributions: Mapping[str, Attribution],
    redundant: frozenset[str],
    threshold: float,
    past: Sequence[str] = (),
) -> Segment | None:
    """V and redundancy of each shown entry, then good past commands; None when no entry has a mark.

    Args:
        shown: the entries of the opening message, in their order.
        attributions: V by entry id.
        redundant: ids of entries that repeat another one.
        threshold: `attribution.threshold`.
        past: commands that turned out well.
    """
    marks = []
    for number, entry in enumerate(shown, start=1):
        mark = "dup" if entry.entry_id in redundant else verdict(attributions.get(entry.entry_id), threshold)
        if mark:
            marks.append(f"h{number} {mark}")
    told = SEPARATOR.join((" ".join(marks), *map(one_line, past)))
    return segment(f"{HINT} {told}", "hindsight") if marks else None


def parse(reply: str, n_shown: int) -> Command:
    """One command; anything else, or a handle that was not shown, is `unreadable` and changes nothing."""
    words = reply.split()
    if not words:
        return Command("unreadable")
    kind, rest = words[0], words[1:]
    if kind == "finish" and not rest:
        return Command("finish")
    if kind == "lookup" and rest:
        return Command("lookup", query=" ".join(rest))
    cut = rest.index(":") if ":" in rest else len(rest)
    handles = [int(found) for found in HANDLE.findall(" ".join(rest[:cut]))]
    places = tuple(dict.fromkeys(handle - 1 for handle in handles))
    readable = len(handles) == cut and places and all(0 <= place < n_shown for place in places)
    if kind == "delete" and readable and cut == len(rest):
        return Command("delete", places)
    if kind == "merge" and readable and len(places) > 1 and cut < len(rest):
        made = write.parse(" ".join(rest[cut + 1 :]), limit=1)
        if len(made.contents) == 1 and not made.rejected:
            return Command("merge", places, content=made.contents[0])
    return Command("unreadable")
