"""Which entries maintenance sees first: those in doubt, the most redundant, the least useful. No V, no gold."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from opd_evolver.memory.levels import embed_text
from opd_evolver.memory.rivals import DUPLICATE, POOR, STALE, Topic, by_topic, notes, usefulness
from opd_evolver.records import Entry

NEIGHBOURS = 8
DOUBTS = frozenset({DUPLICATE, POOR, STALE})


def _overlap(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / len(one | other) if one or other else 0.0


def similarities(entries: Iterable[Entry]) -> dict[str, float]:
    """Each entry's greatest word overlap (Jaccard) with a neighbour of its domain and scope.

    Neighbours are the next few in the order of their text, so that the cost stays linear.
    """
    texts = sorted((entry.domain, entry.scope, embed_text(entry), entry.entry_id) for entry in entries)
    words = [frozenset(text.split()) for _, _, text, _ in texts]
    best = {entry_id: 0.0 for *_, entry_id in texts}
    for at, (domain, scope, _, entry_id) in enumerate(texts):
        for near in range(at + 1, min(len(texts), at + 1 + NEIGHBOURS)):
            if texts[near][:2] != (domain, scope):
                break
            shared = _overlap(words[at], words[near])
            best[entry_id] = max(best[entry_id], shared)
            best[texts[near][3]] = max(best[texts[near][3]], shared)
    return best


def in_doubt(entries: Iterable[Entry], told: Mapping[str, Collection[str]]) -> list[Entry]:
    """Entries of the topics in which `rivals.notes` tells that something should go."""
    groups = by_topic(entries).values()
    return [e for members in groups if any(_doubted(one, told) for one in members) for e in members]


def _doubted(entry: Entry, told: Mapping[str, Collection[str]]) -> bool:
    return not DOUBTS.isdisjoint(told.get(entry.entry_id, ()))


def first_shown(
    entries: Sequence[Entry], limit: int, seen: Collection[str] = (), told: Mapping[str, Collection[str]] | None = None
) -> list[Entry]:
    """At most `limit` live entries; those that say something about the same thing stand side by side.

    Args:
        entries: the repository's live entries.
        limit: `memory.candidates`.
        seen: ids of entries that have had their turn.
        told: `rivals.notes` of the repository, where the caller has them.
    """
    similar = similarities(entries)
    told = notes(entries) if told is None else told
    groups = by_topic(entry for entry in entries if entry.entry_id not in seen)

    def rank(place: Topic) -> tuple[int, int, float, float, Topic]:
        members = groups[place]
        return (
            -sum(_doubted(entry, told) for entry in members),
            -len(members),
            -max(similar[entry.entry_id] for entry in members),
            min(usefulness(entry) for entry in members),
            place,
        )

    return [entry for place in sorted(groups, key=rank) for entry in groups[place]][:limit]
