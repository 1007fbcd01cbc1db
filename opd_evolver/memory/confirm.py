"""Learning again what a newer entry contradicts: the fact holds anew, and its entry says since when.

Equal knowledge is one entry with the round in which it was first written. Where the world changes back, that round
would make the right entry look older than the wrong one, and the policy reads that the newest holds. What nothing
contradicts keeps its first round, and its bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from opd_evolver.memory.rivals import by_topic, claim, topic
from opd_evolver.memory.segment import LedgerSegment, SegmentKey
from opd_evolver.memory.store import Memory
from opd_evolver.records import Entry

Confirmations = Mapping[str, Sequence[tuple[SegmentKey, int]]]


def confirmed(memory: Memory, entries: Sequence[Entry], round_: int) -> tuple[Entry, ...]:
    """The entries of a segment before its commit; those that settle a contradiction carry `confirmed_round`.

    Args:
        memory: as it stands before the commit.
        entries: what the segment writes.
        round_: the round that learns it.
    """
    known = {entry.entry_id: entry for entry in memory.get(sorted({entry.entry_id for entry in entries}))}
    again = [entry for entry in known.values() if entry.learnt_round < round_ and entry.status != "erased"]
    marked = {entry.entry_id for entry in known.values() if entry.confirmed_round == round_}
    if again:
        asked = {topic(entry) for entry in again}
        # A new entry of this segment contradicts, too; what it says of a known one is the known one's affair.
        held = [*memory.entries(), *(entry for entry in entries if entry.entry_id not in known)]
        rivals = by_topic(entry for entry in held if topic(entry) in asked)
        marked |= {entry.entry_id for entry in again if _contradicted(entry, rivals.get(topic(entry), ()))}
    return tuple(
        entry.model_copy(update={"confirmed_round": round_}) if entry.entry_id in marked else entry for entry in entries
    )


def _contradicted(entry: Entry, rivals: Iterable[Entry]) -> bool:
    """Whether a rival that is at least as new says something else."""
    return any(one.learnt_round >= entry.learnt_round and claim(one) != claim(entry) for one in rivals)


def history(segments: Iterable[LedgerSegment]) -> Confirmations:
    """When which entry was confirmed: what a prompt said of it at an earlier wave."""
    found: dict[str, list[tuple[SegmentKey, int]]] = {}
    for segment in segments:
        for entry in segment.entries:
            if entry.confirmed_round is not None:
                found.setdefault(entry.entry_id, []).append((segment.key, entry.confirmed_round))
    return found


def as_read(entry: Entry, confirmations: Confirmations, wave: SegmentKey) -> Entry:
    """The entry as the episodes of a wave read it, before anything of that wave was committed."""
    told = confirmations.get(entry.entry_id)
    if told is None:
        return entry
    return entry.model_copy(
        update={"confirmed_round": max((round_ for key, round_ in told if key < wave), default=None)}
    )
