"""From ledger to index: what an entry's id is, what a replay does, what an entries' digest covers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from opd_evolver.errors import CorruptionError
from opd_evolver.memory.database import REINDEX
from opd_evolver.memory.ledger import Ledger, fold_all
from opd_evolver.memory.protocol import Embedder, MemoryIndex
from opd_evolver.memory.segment import touched
from opd_evolver.records import Entry, Level, Proposal, canonical_json, digest_of, uuid5_of


class LedgerIndex(MemoryIndex, Protocol):
    """An index that a ledger can fill: it also remembers which segments are in."""

    @property
    def embedder(self) -> Embedder: ...

    def search(
        self,
        query: str,
        *,
        level: Level,
        limit: int,
        domain: str | None = None,
        scope: str | None = None,
        alpha: float | None = None,
    ) -> list[tuple[Entry, float]]: ...

    def applied(self) -> Mapping[str, str]: ...

    def mark_applied(self, segment: str, digest: str) -> None: ...

    def clear(self) -> None: ...


def entry_of(proposal: Proposal, round: int) -> Entry:
    """A proposal as an entry. Equal content in one domain and scope has one id, so it merges."""
    clean = Proposal.model_validate_json(canonical_json(proposal).encode("utf-8", "replace"))  # lone surrogates go
    return Entry(
        entry_id=uuid5_of(clean.content.level, clean.domain, clean.scope, canonical_json(clean.content)),
        domain=clean.domain,
        scope=clean.scope,
        content=clean.content,
        source_episodes=tuple(sorted(set(clean.source_episodes))),
        parents=tuple(sorted(set(clean.parents))),
        created_round=round,
    )


def replay(ledger: Ledger, index: LedgerIndex) -> int:
    """Applies to the index what the ledger holds and the index lacks; returns the number of segments.

    States are folded from the whole ledger, never added to what the index holds: applying twice is
    applying once, also for a store without transactions.

    Raises:
        CorruptionError: the index knows segments that the ledger lacks.
    """
    applied = dict(index.applied())
    heads = {head.key.name: head for head in ledger.segments()}
    strange = sorted(name for name, digest in applied.items() if name not in heads or heads[name].digest != digest)
    if strange:
        raise CorruptionError(
            f"the index of {ledger.folder} holds {strange[0]}, which the ledger lacks", "one history", REINDEX
        )
    missing = [head for name, head in heads.items() if name not in applied]
    if missing:
        state = fold_all(ledger)
        ids = {entry_id for head in missing for entry_id in touched(ledger.read(head.key))}
        index.upsert(state[entry_id] for entry_id in sorted(ids) if entry_id in state)
        for head in missing:
            index.mark_applied(head.key.name, head.digest)
    return len(missing)


def digest_entries(entries: Iterable[Entry], embedder: Embedder) -> str:
    """Digest of entries in id order and of the embedder's identity; vectors are left out."""
    ordered = sorted(entries, key=lambda entry: entry.entry_id)
    return digest_of([embedder.identity, *(canonical_json(entry) for entry in ordered)])
