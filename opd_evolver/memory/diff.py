"""What changed in the memory between two rounds: entries added, retired, forgotten, used, and their value."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from opd_evolver.memory.levels import render
from opd_evolver.records import LEVELS, Entry, Record

BUDGET = 32


class Change(Record):
    """One entry that differs. `uses` and `wins` are what the later round has more; values are V, None: no evidence."""

    entry_id: str
    kind: str
    level: str
    domain: str
    scope: str
    text: str
    uses: int = 0
    wins: int = 0
    value_before: float | None = None
    value_after: float | None = None


def changes(
    before: Sequence[Entry],
    after: Sequence[Entry],
    values: tuple[Mapping[str, float | None], Mapping[str, float | None]] = ({}, {}),
) -> list[Change]:
    """Every entry that differs, by kind and id: added, retired, revived, erased, gone, used.

    Args:
        before: entries of the earlier round, retired ones included.
        after: of the later one.
        values: V by entry id in both rounds.
    """
    old, new = ({entry.entry_id: entry for entry in one} for one in (before, after))
    found = []
    for entry_id in sorted(old.keys() | new.keys()):
        kind = _kind(old.get(entry_id), new.get(entry_id))
        if kind is None:
            continue
        then, shown = old.get(entry_id), new.get(entry_id) or old[entry_id]
        found.append(
            Change(
                entry_id=entry_id,
                kind=kind,
                level=shown.level,
                domain=shown.domain,
                scope=shown.scope,
                text=render(shown, token_budget=BUDGET),
                uses=shown.usage_count - (then.usage_count if then else 0),
                wins=shown.success_count - (then.success_count if then else 0),
                value_before=values[0].get(entry_id),
                value_after=values[1].get(entry_id),
            )
        )
    return sorted(found, key=lambda one: (one.kind, one.entry_id))


def _kind(then: Entry | None, now: Entry | None) -> str | None:
    if now is None:
        return "gone"
    if then is None:
        return "added" if now.status == "live" else f"added and {now.status}"
    if then.status != now.status:
        return "revived" if now.status == "live" else now.status
    return "used" if then.usage_count != now.usage_count else None


def counts(found: Sequence[Change]) -> dict[str, dict[str, int]]:
    """kind → level → entries."""
    table: dict[str, Counter[str]] = {}
    for one in found:
        table.setdefault(one.kind, Counter())[one.level] += 1
    return {kind: {level: of[level] for level in LEVELS if of[level]} for kind, of in sorted(table.items())}
