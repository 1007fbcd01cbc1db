"""Forgetting: an entry's text leaves ledger, index and snapshots; a tombstone with its id stays.

What showed the text goes with it: the entry itself wherever a segment tells of it, the tokens and replies of
every generation that had it in its prompt or wrote it, and the turns of the episodes that wrote it or were
brought it. What attribution needs (who was a candidate, chosen, withheld; returns) stays, so the value of the
other entries is unchanged. Rewriting gives new digests; doing it again changes nothing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from opd_evolver import durable
from opd_evolver.errors import CorruptionError
from opd_evolver.memory import stores
from opd_evolver.memory.embedded import EmbeddedIndex
from opd_evolver.memory.ledger import Ledger
from opd_evolver.memory.levels import embed_text
from opd_evolver.memory.replay import replay
from opd_evolver.memory.segment import LedgerSegment, encode, head_of
from opd_evolver.memory.snapshot import SnapshotInfo, read_entries, segments_of, verify, write_snapshot
from opd_evolver.memory.store import LEDGER_FOLDER, Memory
from opd_evolver.memory.tombstone import ERASED, tombstone
from opd_evolver.params import MemoryParams
from opd_evolver.records import MAINTAIN, CallRecord, Entry, LedgerRow

WORKING = ".erasing-"
"""Beside a snapshot that is being rewritten."""


def _silent(call: CallRecord) -> CallRecord:
    return call.model_copy(update={"prompt_token_ids": (), "reply_token_ids": (), "logprobs": (), "reply_text": ""})


def redact_row(row: LedgerRow, ids: Collection[str]) -> LedgerRow:
    """A row without the text of `ids`; the row itself when it never showed one of them."""
    # A prompt of maintenance may list any entry, looked-up ones included.
    used = not set(ids).isdisjoint((*row.injected, *row.created)) or row.group == MAINTAIN
    shown = not set(ids).isdisjoint(one.entry_id for one in row.candidates)
    if not used and not shown:
        return row
    calls = tuple(_silent(call) if used or call.ability == "select" else call for call in row.calls)
    if not used:
        return row.model_copy(update={"calls": calls})
    turns = tuple(
        turn.model_copy(update={"observation": ERASED, "action": ERASED, "result": ERASED}) for turn in row.turns
    )
    return row.model_copy(update={"calls": calls, "turns": turns})


def redact(segment: LedgerSegment, ids: Collection[str]) -> LedgerSegment:
    """A segment without the text of `ids`."""
    return segment.model_copy(
        update={
            "rows": tuple(redact_row(row, ids) for row in segment.rows),
            "entries": tuple(tombstone(one) if one.entry_id in ids else one for one in segment.entries),
        }
    )


def _written(segments: Iterable[LedgerSegment], ids: Collection[str], folder: Path) -> None:
    """The redacted segments as a ledger's files, chained anew."""
    previous = ""
    for sequence, segment in enumerate(segments):
        data = encode(redact(segment, ids), sequence, previous)
        (folder / segment.key.name).write_bytes(data)
        previous = head_of(data, folder / segment.key.name).digest


def rewrite_ledger(folder: Path, ids: Collection[str]) -> None:
    """Rewrites a live ledger at once; its index must be rebuilt afterwards (`store.reindex`).

    Args:
        folder: the `ledger` folder of a live memory.
        ids: entries to forget.

    Raises:
        SetupError: another committer is alive, or the disk is full; the ledger is as it was.
    """
    ledger = Ledger(folder)
    try:
        segments = list(ledger.read_all())
        sides = {path.name: path.read_bytes() for path in folder.glob("telemetry-*.json")}
    finally:
        ledger.close()
    with durable.new_folder(folder) as building:
        _written(segments, ids, building)
        for name, data in sides.items():
            (building / name).write_bytes(data)


def rewrite_snapshot(folder: Path, ids: Collection[str], params: MemoryParams) -> SnapshotInfo | None:
    """Rewrites a snapshot at once; None when it never held any of `ids`, or has been rewritten.

    Args:
        folder: `versions/<lineage>/round-NNN/memory`.
        ids: entries to forget.
        params: of the run. Neither its store nor its embedder is asked: nothing is searched here.

    Raises:
        CorruptionError: the snapshot does not match its digests, or the rewritten one would differ otherwise.
    """
    info = verify(folder)
    before = read_entries(folder)
    if not any(entry.entry_id in ids and entry.status != "erased" for entry in before):
        return None
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=WORKING) as temporary:
        live = Path(temporary)
        (live / LEDGER_FOLDER).mkdir()
        _written(segments_of(folder), ids, live / LEDGER_FOLDER)
        with _unsearched(live, info, params) as memory:
            wanted = [tombstone(one) if one.entry_id in ids else one for one in before]
            if memory.entries(live_only=False) != wanted:
                raise CorruptionError(
                    f"forgetting in {folder} would change other entries", "tombstones alone", "report it as a bug"
                )
            return write_snapshot(memory, folder, info.round, info.lineage)


class _Nothing:
    """Stands for the embedder that made a snapshot, whose weights or server forgetting must not wait for."""

    def __init__(self, identity: str, dimension: int) -> None:
        self.identity, self.dimension = identity, dimension

    def expect(self, dimension: int) -> None:
        """Its index is thrown away."""

    def ready(self) -> None:
        """Always."""

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """[N, dimension] of zeros."""
        return np.zeros((len(texts), self.dimension), dtype=np.float32)


def _unsearched(live: Path, info: SnapshotInfo, params: MemoryParams) -> Memory:
    """A memory from the ledger in a folder, with the snapshot's identity and vectors of zeros."""
    ledger = Ledger(live / LEDGER_FOLDER)
    index = EmbeddedIndex(live / stores.INDEX_FILE, _Nothing(info.embedder, info.dimension))
    replay(ledger, index)
    return Memory(ledger, index, params)


def saying_the_same(entries: Iterable[Entry], erased: Entry) -> list[Entry]:
    """Other entries that hold the erased one's text word for word, or come from one of its episodes."""
    text, episodes = embed_text(erased), set(erased.source_episodes)
    return [
        one
        for one in entries
        if one.entry_id != erased.entry_id
        and one.status != "erased"
        and (text in embed_text(one) or not episodes.isdisjoint(one.source_episodes))
    ]
