"""Words of the terse dialect that more than one ability uses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from opd_evolver.memory.levels import Count, n_words, one_line, render
from opd_evolver.records import Attribution, Entry, Message, Segment, SegmentKind, TurnRecord

RENDERER = "terse-1"
SEPARATOR = " | "
HINT = "hint"
# Every word the abilities themselves can put into a prompt or a reply (the domains add theirs).
WORDS: tuple[str, ...] = (
    "select",
    "act",
    "write",
    "maintain",
    "mem",
    "task",
    "hint",
    "do",
    "guess",
    "none",
    "got",
    "win",
    "part",
    "fail",
    "up",
    "down",
    "dup",
    "clash",
    "stale",
    "poor",
    "tip",
    "skill",
    "tool",
    "traj",
    "|",
    ":",
    ";",
    "…",
    "r",
    "h",
    "lookup",
    "merge",
    "delete",
    "finish",
    "entries",
    "found",
    "used",
    "won",
    "error",
)


def segment(text: str, kind: SegmentKind = "text") -> Segment:
    return Segment(kind=kind, text=text)


def user(*segments: Segment) -> Message:
    return Message(role="user", segments=segments)


def entries_text(entries: Sequence[Entry], *, token_budget: int, handles: bool = False, count: Count = n_words) -> str:
    """Entries joined by the separator; `handles` numbers them from 1."""
    return SEPARATOR.join(
        render(entry, handle=number if handles else None, token_budget=token_budget, count=count)
        for number, entry in enumerate(entries, start=1)
    )


def turns_segments(turns: Iterable[TurnRecord], replies: Sequence[str]) -> tuple[Segment, ...]:
    """History of an episode as droppable segments: `| reply got observation`."""
    return tuple(
        segment(f"| {one_line(reply)} got {one_line(turn.result)}", "history")
        for reply, turn in zip(replies, turns, strict=True)
    )


def verdict(attribution: Attribution | None, threshold: float) -> str | None:
    """`up`, `down`, or None where there is no evidence or no clear sign."""
    if attribution is None or attribution.value is None or abs(attribution.value) < threshold:
        return None
    return "up" if attribution.value > 0 else "down"
