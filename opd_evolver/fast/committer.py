"""The one committer: applies a finished wave in task order at the barrier.

Workers hand over proposals; here they become entries, `created` is filled into the rows, and
all of it is one ledger segment, then the index. Committing a wave again changes nothing.
Paper: the repository update after the write step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from opd_evolver.errors import SetupError
from opd_evolver.fast.microbatch import MicrobatchResult, check_complete
from opd_evolver.fast.wave import Wave
from opd_evolver.memory.confirm import confirmed
from opd_evolver.memory.segment import LedgerSegment, SegmentKey
from opd_evolver.memory.store import Memory, entry_of
from opd_evolver.records import Entry, Episode, LedgerRow, digest_of

WAVE_PART, MAINTENANCE_PART = 0, 1


@dataclass(frozen=True)
class CommitReport:
    """What a barrier did, for progress lines and metrics.

    Attributes:
        committed: False when the wave had been committed before.
        n_rollouts: rows in the segment.
        mean_return: mean R over its rollouts.
        n_proposed: entries proposed and readable.
        n_new: of these, entries that the memory did not have.
        rejected: why proposals were rejected, with counts.
    """

    committed: bool
    n_rollouts: int = 0
    mean_return: float = 0.0
    n_proposed: int = 0
    n_new: int = 0
    rejected: Mapping[str, int] = field(default_factory=dict)


def wave_key(wave: Wave) -> SegmentKey:
    """Place of the wave's segment in the ledger."""
    return SegmentKey(wave.round, wave.index, WAVE_PART)


def maintenance_key(wave: Wave, number: int = 0) -> SegmentKey:
    """Place of the segment that the episode of this number writes at the wave's barrier."""
    return SegmentKey(wave.round, wave.index, MAINTENANCE_PART + number)


def is_committed(memory: Memory, wave: Wave) -> bool:
    """Whether the wave is in the ledger: then its micro-batches need not be run or kept."""
    return wave_key(wave) in memory.ledger.segment_keys()


def maintenance_due(memory: Memory, wave: Wave, episodes: int = 1) -> list[int]:
    """The numbers of the episodes that this barrier has yet to play, of so many."""
    done = set(memory.ledger.segment_keys())
    return [n for n in range(episodes) if wave.maintain_after and maintenance_key(wave, n) not in done]


def memory_state(memory: Memory, wave: Wave) -> str:
    """Names the memory as it stands when `wave` begins; enters the key of its micro-batches.

    Raises:
        SetupError: the ledger is already at or past this wave.
    """
    keys = memory.ledger.segment_keys()
    if keys and keys[-1] >= wave_key(wave):
        raise SetupError(
            f"wave {wave.name} would read a memory that already holds {keys[-1].name}",
            "the memory as it stood when the wave began",
            "opd resume (a committed wave is not run again)",
        )
    return digest_of([memory.ledger.digest(), memory.index.embedder.identity])


def _row_and_entries(episode: Episode) -> tuple[LedgerRow, list[Entry]]:
    entries = [entry_of(proposal, episode.row.round) for proposal in episode.proposals]
    created = tuple(dict.fromkeys(entry.entry_id for entry in entries))
    return episode.row.model_copy(update={"created": created}), entries


def segment_of(wave: Wave, episodes: Sequence[Episode], lineage: str) -> LedgerSegment:
    """The wave's ledger segment: rows in task order and the entries they created."""
    rows: list[LedgerRow] = []
    entries: list[Entry] = []
    for episode in episodes:
        row, made = _row_and_entries(episode)
        rows.append(row)
        entries += made
    key = wave_key(wave)
    return LedgerSegment(
        lineage=lineage, round=key.round, wave=key.wave, part=key.part, rows=tuple(rows), entries=tuple(entries)
    )


def _confirmed(memory: Memory, segment: LedgerSegment, before: bool) -> tuple[Entry, ...]:
    """Entries with their confirmations; those of a wave that is in the ledger are what they were then."""
    if not before:
        return confirmed(memory, segment.entries, segment.round)
    then = {entry.entry_id: entry.confirmed_round for entry in memory.ledger.read(segment.key).entries}
    return tuple(entry.model_copy(update={"confirmed_round": then.get(entry.entry_id)}) for entry in segment.entries)


def rejections(results: Sequence[MicrobatchResult]) -> list[str]:
    """Why proposals of a wave were rejected, `reason: detail` in task order, a line each."""
    ordered = sorted(results, key=lambda result: result.index)
    return [" ".join(told.split()) for result in ordered for episode in result.episodes for told in episode.rejected]


def counted(rejected: Iterable[str]) -> dict[str, int]:
    """Rejections by reason, by name."""
    return dict(sorted(Counter(told.split(":", 1)[0] for told in rejected).items()))


def commit_wave(memory: Memory, wave: Wave, results: Sequence[MicrobatchResult], *, lineage: str = "") -> CommitReport:
    """Apply a finished wave. Durable when it returns; the same wave again is a no-op.

    Args:
        memory: open for writing, by this process alone.
        wave: from `plan_epoch`.
        results: all its micro-batches, in any order.
        lineage: stands in the segment's header only, in no digest.

    Raises:
        SetupError: micro-batches are missing, or the wave is in the ledger with other content.
    """
    episodes = check_complete(wave, results)
    segment = segment_of(wave, episodes, lineage)
    before = is_committed(memory, wave)
    segment = segment.model_copy(update={"entries": _confirmed(memory, segment, before)})
    made = {entry.entry_id for entry in segment.entries}
    known = {entry.entry_id for entry in memory.get(sorted(made))}
    memory.commit(segment, {episode.row.rollout_id: round(episode.seconds, 4) for episode in episodes})
    return CommitReport(
        committed=not before,
        n_rollouts=len(episodes),
        mean_return=sum(episode.row.episode_return for episode in episodes) / max(1, len(episodes)),
        n_proposed=len(segment.entries),
        n_new=len(made - known),
        rejected=counted(rejections(results)),
    )
