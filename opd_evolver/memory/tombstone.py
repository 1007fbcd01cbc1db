"""What is left of an entry that was forgotten: its id, place and lineage, without a word of its text."""

from __future__ import annotations

from opd_evolver.records import Content, Entry, SkillContent, TipContent, ToolContent, TrajectoryContent

ERASED = "[erased]"


def blank(content: Content) -> Content:
    """A content of the same level that says nothing."""
    match content:
        case TrajectoryContent():
            return TrajectoryContent(
                task=ERASED, steps=(), outcome=content.outcome, episode_return=content.episode_return
            )
        case TipContent():
            return TipContent(text=ERASED, trigger=ERASED)
        case SkillContent():
            return SkillContent(description=ERASED, steps=())
        case ToolContent():
            return ToolContent(name=ERASED, language="", code="")


def tombstone(entry: Entry) -> Entry:
    """The entry without its text: id, level, place, lineage and counts stay."""
    return entry.model_copy(
        update={"content": blank(entry.content), "status": "erased", "retired_round": None, "retired_by": ""}
    )
