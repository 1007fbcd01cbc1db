"""Act replies of the seed data: what is recited of a memory, at its level, before the action."""

from __future__ import annotations

from typing import NamedTuple

from opd_evolver.environments import conventions as cv
from opd_evolver.environments.procedures import word_at
from opd_evolver.records import Entry, ToolContent, TrajectoryContent


class Belief(NamedTuple):
    """What a prompt tells of one key: by an entry, or by the turns of a won episode (then without one).

    `hinted`: by hindsight only, where no tool can be called.
    """

    marker: str
    value: str
    entry: Entry | None = None
    hinted: bool = False


def said(marker: str, domain: cv.Procedural, scope: str, sub: cv.DemoSub, value: str) -> str:
    """An act reply: recite, then act. `value` is the word of this one move."""
    place = f" s{sub.stage}" if sub.stage else ""
    return f"{scope} {sub.key}{place} {marker} {value} do {domain.action(sub, value)}"


def calls(domain: cv.Procedural, belief: Belief, sub: cv.DemoSub) -> bool:
    """Whether the belief is a tool that answers the whole order at once."""
    return domain.spec.level_of(sub.key) == "tool" and belief.entry is not None and not belief.hinted


def followed(domain: cv.Procedural, belief: Belief, scope: str, sub: cv.DemoSub) -> str:
    """The reply that follows a belief: its entry as rendered, as far as this move needs it, then the action."""
    word = word_at(belief.value, sub.stage)
    if belief.entry is None or sub.stage == 0:
        return said(belief.marker, domain, scope, sub, word)
    action, content = domain.action(sub, word), belief.entry.content
    if isinstance(content, TrajectoryContent):
        begun = content.steps[sub.stage - 1].action
        begun = begun[: begun.index(f" {word}") + len(word) + 1]
        return f"{scope} {sub.key} s{sub.stage} ; {begun} do {action}"
    if calls(domain, belief, sub):
        return f"{scope} {sub.key} {belief.marker} do run {sub.key} {sub.arg}"
    body = content.code if isinstance(content, ToolContent) else belief.value
    return f"{scope} {sub.key} {belief.marker} : {body} s{sub.stage} do {action}"
