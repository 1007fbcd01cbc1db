"""Memory as the rest of the code sees it: the ledger and an index of it, as one.

A commit is a durable ledger segment, then an idempotent upsert, then a mark; what a crash left
unapplied is replayed at the next open. Paper: fast loop steps 1 (read) and 5 (repository update).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from opd_evolver.errors import CorruptionError, SetupError
from opd_evolver.memory.ledger import Ledger, fold_all
from opd_evolver.memory.lock import is_held
from opd_evolver.memory.replay import LedgerIndex, digest_entries, entry_of, replay
from opd_evolver.memory.segment import LedgerSegment, SegmentKey, fold, touched
from opd_evolver.memory.stores import clear, open_index
from opd_evolver.memory.tombstone import tombstone
from opd_evolver.params import MemoryParams
from opd_evolver.records import (
    LEVELS,
    Entry,
    MemoryOperation,
    uuid5_of,
)

__all__ = ["LedgerSegment", "Memory", "entry_of", "reindex"]

LEDGER_FOLDER = "ledger"
# So long a reader waits for a commit that is under way between ledger and index.
COMMIT_SECONDS = 30.0


class Memory:
    """A ledger and the index kept in step with it.

    Args:
        ledger: the truth.
        index: rebuilt from it at will.
        params: defaults of retrieval.
    """

    def __init__(self, ledger: Ledger, index: LedgerIndex, params: MemoryParams | None = None) -> None:
        self.ledger, self.index = ledger, index
        self.params = params or MemoryParams()
        # Ids that were erased where this memory may have no tombstone: it goes back to a round before them.
        self.forgotten: frozenset[str] = frozenset()
        self._behind = False

    @classmethod
    def open(cls, folder: Path, params: MemoryParams | None = None, read_only: bool = False) -> Memory:
        """Opens `folder`/ledger and its index; a writable open replays what is unapplied.

        Raises:
            SetupError: busy, missing (read-only), wrong embedder, or an index behind its ledger (read-only).
            CorruptionError: ledger or index unreadable; names the mend.
            SchemaError: written by a newer version.
        """
        params = params or MemoryParams()
        ledger = Ledger(folder / LEDGER_FOLDER, read_only=read_only)
        try:
            index = open_index(folder, params, read_only=read_only)
            memory = cls(ledger, index, params)
            try:
                memory._catch_up(read_only)
            except BaseException:
                index.close()
                raise
        except BaseException:
            ledger.close()
            raise
        return memory

    def _catch_up(self, read_only: bool) -> None:
        if not read_only:
            if self.ledger.migrated:
                self.index.clear()
            replay(self.ledger, self.index)
            return
        wanted, end = {key.name for key in self.ledger.segment_keys()}, time.monotonic() + COMMIT_SECONDS
        while True:
            held = is_held(self.ledger.folder)  # before the look, lest a commit end in between
            behind = wanted - set(self.index.applied())
            if not behind:
                return
            if not held or time.monotonic() > end:
                raise SetupError(
                    f"the index of {self.ledger.folder} lacks {min(behind)}",
                    "an index in step with its ledger",
                    "`opd resume`",
                )
            time.sleep(0.02)

    def close(self) -> None:
        """Closes the index and gives the ledger's lock back."""
        self.index.close()
        self.ledger.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ── reading ──────────────────────────────────────────────────────────────────────────────

    def retrieve(
        self,
        query: str,
        domain: str,
        scope: str,
        limit: int | None = None,
        alpha: float | None = None,
        scope_filter: bool | None = None,
    ) -> list[tuple[Entry, float]]:
        """The candidates C: searched per level, merged by score, best first.

        Args:
            query: the task text, never gold.
            domain: always a filter.
            scope: a filter when `scope_filter`.
            limit: most candidates over all levels; default `memory.candidates`.
            alpha: weight of the dense part; default `memory.alpha`.
            scope_filter: default `memory.scope_filter`.

        Paper: up to 50 candidates in all.
        """
        limit = self.params.candidates if limit is None else limit
        alpha = self.params.alpha if alpha is None else alpha
        within = self.params.scope_filter if scope_filter is None else scope_filter
        found = [
            (entry, score, number)
            for number, level in enumerate(LEVELS)
            for entry, score in self.index.search(
                query, level=level, limit=limit, domain=domain, scope=scope if within else None, alpha=alpha
            )
        ]
        found.sort(key=lambda one: (-one[1], one[2], one[0].entry_id))
        return [(entry, score) for entry, score, _ in found[:limit]]

    def get(self, entry_ids: Sequence[str]) -> list[Entry]:
        """Entries by id in the asked order, retired ones included; unknown ids are left out."""
        return self.index.get(entry_ids)

    def entries(self, *, live_only: bool = True) -> list[Entry]:
        """All entries, sorted by entry_id."""
        return self.index.entries(live_only=live_only)

    def counts_by_level(self) -> dict[str, int]:
        """Live entries of each level."""
        counts = {str(level): 0 for level in LEVELS}
        for entry in self.entries():
            counts[entry.level] += 1
        return counts

    def digest(self) -> str:
        """Digest of all entries, retired ones included, and of the embedder's identity."""
        return digest_entries(self.entries(live_only=False), self.index.embedder)

    # ── writing: the committer only ──────────────────────────────────────────────────────────

    def commit(self, segment: LedgerSegment, seconds: Mapping[str, float] | None = None) -> tuple[Entry, ...]:
        """Ledger first, then the index; returns the touched entries in their new state, by id.

        The same segment again changes nothing.

        Args:
            segment: finished rollouts, new entries (see `entry_of`) and operations of one wave.
            seconds: by rollout id; kept in a side file.

        Raises:
            SetupError: read-only, disk full, out of order, or a row injects an entry nobody knows.
        """
        if self._behind:
            replay(self.ledger, self.index)
            self._behind = False
        ids = touched(segment)
        before = {entry.entry_id: entry for entry in self.index.get(ids)}
        segment = self.without_forgotten(segment, before)
        new = {entry.entry_id for entry in segment.entries}
        unknown = [entry_id for entry_id in ids if entry_id not in before and entry_id not in new]
        if unknown:
            raise SetupError(
                f"{segment.key.name} uses entry {unknown[0]}", "entries of this memory", "report it as a bug"
            )
        self._behind = True
        head = self.ledger.append(segment, seconds)
        if head.key.name in self.index.applied():
            self._behind = False
            return tuple(before.values())
        after = fold(before, segment)
        self.index.upsert(after.values())
        self.index.mark_applied(head.key.name, head.digest)
        self._behind = False
        return tuple(after[entry_id] for entry_id in ids if entry_id in after)

    def without_forgotten(self, segment: LedgerSegment, before: Mapping[str, Entry] | None = None) -> LedgerSegment:
        """The segment as a commit writes it: of what was erased and is learnt again it says nothing.

        Args:
            segment: to be committed.
            before: the entries that it touches, where they are known.
        """
        if before is None:
            before = {entry.entry_id: entry for entry in self.get(touched(segment))}
        known = {entry_id for entry_id, entry in before.items() if entry.status == "erased"}
        erased = {entry.entry_id for entry in segment.entries} & (known | self.forgotten)
        if not erased:
            return segment
        from opd_evolver.memory.erase import redact_row  # which opens memories itself

        rows = tuple(row if erased.isdisjoint(row.created) else redact_row(row, erased) for row in segment.rows)
        entries = tuple(tombstone(one) if one.entry_id in erased else one for one in segment.entries)
        return segment.model_copy(update={"rows": rows, "entries": entries})

    def retire(self, ids: Sequence[str], by: str, round: int, lineage: str = "") -> MemoryOperation:
        """Takes entries out of search, keeping them with lineage.

        Args:
            ids: entries to retire.
            by: who asked; part of the operation's id.
            round: the round it counts to.
            lineage: defaults to the last segment's.

        Raises:
            SetupError: an id is unknown or retired already.
        """
        live = {entry.entry_id for entry in self.get(ids) if entry.status == "live"}
        wrong = sorted(set(ids) - live)
        if wrong or not ids:
            raise SetupError(
                f"cannot retire {wrong[0] if wrong else 'nothing'}", "ids of live entries", "`opd memory search TEXT`"
            )
        key: SegmentKey = self.ledger.next_operation_key(round)
        keys = self.ledger.segment_keys()
        operation = MemoryOperation(
            operation_id=f"{by}-{uuid5_of('retire', by, key.name, *sorted(ids))[:12]}",
            kind="delete",
            round=round,
            retired=tuple(sorted(set(ids))),
        )
        self.commit(
            LedgerSegment(
                lineage=lineage or (self.ledger.read(keys[-1]).lineage if keys else ""),
                round=key.round,
                wave=key.wave,
                part=key.part,
                operations=(operation,),
            )
        )
        return operation


def reindex(folder: Path, params: MemoryParams | None = None) -> int:
    """Rebuilds the index from the ledger; returns the number of entries. Mends a corrupt index.

    Raises:
        CorruptionError: the rebuilt index does not hold what the ledger tells.
    """
    ledger = Ledger(folder / LEDGER_FOLDER)
    try:
        wanted = fold_all(ledger).values()
        clear(folder)
    finally:
        ledger.close()
    with Memory.open(folder, params) as memory:
        seen, told = memory.digest(), digest_entries(wanted, memory.index.embedder)
        if seen != told:
            raise CorruptionError(f"the rebuilt index has digest {seen[:12]}", told[:12], "look at the store's log")
        return len(wanted)
