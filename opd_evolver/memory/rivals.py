"""What the repository itself tells of its entries: redundancy, contradiction, staleness. No V, no gold.

Rivals are live entries with one topic: the same domain, scope and head. Maintenance reads these notes beside
each entry, and the teacher's redundancy marks are the same ones.
Paper: redundancy in the maintain view. Differs: contradiction and staleness are told, too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from opd_evolver.memory.levels import head, one_line
from opd_evolver.records import Entry, SkillContent, TipContent, ToolContent, TrajectoryContent

DUPLICATE, CONTRADICTED, STALE, POOR = "dup", "clash", "stale", "poor"
NOTES = (DUPLICATE, CONTRADICTED, STALE, POOR)
MIN_USES = 2
"""Fewer uses are no evidence for or against an entry."""
MARGIN = 0.15
"""Difference of smoothed success rates that counts."""
Topic = tuple[str, str, str]


def topic(entry: Entry) -> Topic:
    """What the entry is about."""
    return entry.domain, entry.scope, head(entry)


def claim(entry: Entry) -> tuple[str, ...]:
    """What it says about its topic: a log says which actions were rewarded, not how the world worded its answers."""
    match entry.content:
        case TipContent(text=text):
            return (one_line(text),)
        case SkillContent(preconditions=conditions, technique=technique, steps=steps):
            return tuple(map(one_line, (conditions, technique, *steps)))
        case ToolContent(language=language, code=code):
            return language, one_line(code)
        case TrajectoryContent(steps=taken, outcome=outcome):
            return outcome, *(one_line(step.action) for step in taken if step.reward > 0)


def usefulness(entry: Entry) -> float:
    """Smoothed success rate of the rollouts it was injected into; 0.5 for an unused entry."""
    return (entry.success_count + 1) / (entry.usage_count + 2)


def by_topic(entries: Iterable[Entry]) -> Mapping[Topic, list[Entry]]:
    """Entries by topic, older ones first."""
    found: dict[Topic, list[Entry]] = defaultdict(list)
    for entry in sorted(entries, key=lambda one: (one.learnt_round, one.entry_id)):
        found[topic(entry)].append(entry)
    return found


def notes(entries: Iterable[Entry]) -> dict[str, tuple[str, ...]]:
    """Notes on each entry, in the order of `NOTES`; entries without any are left out.

    - `dup`: an earlier rival says the same.
    - `clash`: a rival says something else.
    - `stale`: a newer rival has been used and is at least as useful.
    - `poor`: both have been used, and a rival is clearly more useful.

    Args:
        entries: the live entries; rivals outside of them are not seen.
    """
    found = {}
    for rivals in by_topic(entries).values():
        claims = [claim(entry) for entry in rivals]
        for place, entry in enumerate(rivals):
            others = [one for one in rivals if one is not entry]
            told = (
                (DUPLICATE, claims[place] in claims[:place]),
                (CONTRADICTED, any(said != claims[place] for said in claims)),
                (STALE, any(supersedes(one, entry) for one in others)),
                (POOR, any(_outdoes(one, entry) for one in others)),
            )
            if marks := tuple(note for note, holds in told if holds):
                found[entry.entry_id] = marks
    return found


def duplicates(shown: Sequence[Entry]) -> frozenset[str]:
    """Entries that say what an earlier one of their topic says."""
    return frozenset(entry_id for entry_id, marks in notes(shown).items() if DUPLICATE in marks)


def supersedes(newer: Entry, older: Entry) -> bool:
    """Whether a newer rival has been used and is at least as useful."""
    if newer.learnt_round <= older.learnt_round or newer.usage_count < MIN_USES:
        return False
    return usefulness(newer) >= usefulness(older)


def _outdoes(better: Entry, worse: Entry) -> bool:
    if min(better.usage_count, worse.usage_count) < MIN_USES:
        return False
    return usefulness(better) >= usefulness(worse) + MARGIN
