"""The ledger: append-only, durable, the truth from which every index is rebuilt.

One file per committed wave. A file is whole or absent; the chain of digests shows a missing one.
Seconds live in side files (`telemetry-…`) and enter no digest.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from opd_evolver import durable
from opd_evolver.errors import CorruptionError, SetupError
from opd_evolver.memory.lock import LedgerLock
from opd_evolver.memory.segment import (
    MEND,
    MIGRATIONS,
    LedgerSegment,
    Migration,
    SegmentHead,
    SegmentKey,
    decode,
    encode,
    fold,
    head_of,
    migrate,
)
from opd_evolver.records import (
    SCHEMA_VERSION,
    Entry,
    LedgerRow,
    canonical_json,
    digest_of,
)

NAME = re.compile(r"segment-(\d{4,})-(\d{5,})-(\d{2,})\.jsonl")


class Ledger:
    """The segments in one folder.

    Args:
        folder: created unless `read_only`.
        read_only: takes no lock, writes nothing.
        migrations: schema version → migration of a segment's lines; older ledgers are migrated after a backup.

    Raises:
        SetupError: missing (read-only), not writable, or another live committer.
        CorruptionError: a segment is truncated, altered or missing.
        SchemaError: a segment was written by a newer version.
    """

    def __init__(
        self, folder: Path, *, read_only: bool = False, migrations: Mapping[int, Migration] = MIGRATIONS
    ) -> None:
        self.folder, self.read_only = folder, read_only
        self._heads: dict[SegmentKey, SegmentHead] = {}
        self._lock: LedgerLock | None = None
        self.migrated = False
        if read_only:
            if not folder.is_dir():
                raise SetupError(
                    f"no ledger at {folder}", "a folder of segments", "`opd resume`, or start one: `opd run`"
                )
            return
        with durable.explained(folder):
            if not folder.exists():
                durable.recover(folder)  # a rewriting that was killed had moved it away
            folder.mkdir(parents=True, exist_ok=True)
        self._lock = LedgerLock(folder)
        try:
            for left in folder.glob(".*.tmp"):
                left.unlink(missing_ok=True)
            self._migrate(migrations)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Gives the lock back."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    # ── reading ──────────────────────────────────────────────────────────────────────────────

    def segment_keys(self) -> list[SegmentKey]:
        """Which segments there are, in order, by file name alone."""
        found = (NAME.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted(SegmentKey(*map(int, match.groups())) for match in found if match)

    def segments(self) -> tuple[SegmentHead, ...]:
        """Every segment in order, each verified once and the chain each time.

        Raises:
            CorruptionError: a segment is truncated, altered or missing.
        """
        heads = []
        previous = ""
        for sequence, key in enumerate(self.segment_keys()):
            if key not in self._heads:
                self._heads[key] = head_of(self._bytes(key), self.folder / key.name)
            head = self._heads[key]
            if (head.key, head.sequence, head.previous) != (key, sequence, previous):
                raise CorruptionError(
                    f"ledger {self.folder}: the segment before {key.name} is missing or another one",
                    "an unbroken chain",
                    MEND,
                )
            heads.append(head)
            previous = head.digest
        return tuple(heads)

    def _bytes(self, key: SegmentKey) -> bytes:
        path = self.folder / key.name
        try:
            return path.read_bytes()
        except OSError as error:
            raise SetupError(f"cannot read {path}: {error.strerror}", "a readable file", f"chmod u+r {path}") from None

    def read(self, key: SegmentKey) -> LedgerSegment:
        """One segment as records."""
        return decode(self._bytes(key), self.folder / key.name)

    def read_all(self) -> Iterator[LedgerSegment]:
        """Every segment in order."""
        for head in self.segments():
            yield self.read(head.key)

    def rows(self, round: int | None = None) -> list[LedgerRow]:
        """Ledger rows in commit order; of one round when `round` is given."""
        return [
            row
            for head in self.segments()
            if round is None or head.key.round == round
            for row in self.read(head.key).rows
        ]

    def telemetry(self) -> dict[str, float]:
        """Seconds by rollout id, from the side files."""
        seconds: dict[str, float] = {}
        for path in sorted(self.folder.glob("telemetry-*.json")):
            seconds.update(json.loads(path.read_text(encoding="utf-8")))
        return seconds

    def data(self) -> bytes:
        """Every segment's bytes, in order: the canonical form that a snapshot keeps."""
        return b"".join(self._bytes(head.key) for head in self.segments())

    def digest(self) -> str:
        """Digest over what the segments say, without telemetry, lineage or migration history."""
        return digest_of(head.content_digest for head in self.segments())

    # ── writing ──────────────────────────────────────────────────────────────────────────────

    def next_operation_key(self, round: int) -> SegmentKey:
        """Where an operation outside a wave goes: behind the last segment."""
        keys = self.segment_keys()
        return keys[-1]._replace(part=keys[-1].part + 1) if keys else SegmentKey(round, 0, 1)

    def append(self, segment: LedgerSegment, seconds: Mapping[str, float] | None = None) -> SegmentHead:
        """Adds a segment; durable when it returns. The same segment again is a no-op.

        Args:
            segment: what the wave did.
            seconds: by rollout id; kept beside, in no digest.

        Raises:
            SetupError: read-only, disk full, out of order, or another content for a committed wave.
        """
        if self._lock is None:
            raise SetupError(
                f"ledger {self.folder} is open for reading", "a writable open", "commit in the committer only"
            )
        heads = self.segments()
        place = [head for head in heads if head.key == segment.key]
        sequence = place[0].sequence if place else len(heads)
        data = encode(segment, sequence, heads[sequence - 1].digest if sequence else "")
        head = self._readable(data, segment.key)
        if place:
            if place[0].content_digest != head.content_digest:
                raise SetupError(
                    f"{segment.key.name} is in ledger {self.folder} with other content",
                    "the same rows again, or the next wave",
                    "`opd memory rollback` to the round before",
                )
            return place[0]
        if heads and segment.key < heads[-1].key:
            raise SetupError(
                f"{segment.key.name} comes after {heads[-1].key.name} in ledger {self.folder}",
                "waves in rising order",
                "`opd memory rollback` to the round before",
            )
        if seconds:
            side = segment.key.name.replace("segment-", "telemetry-").replace(".jsonl", ".json")
            durable.write_text(self.folder / side, canonical_json(dict(seconds)) + "\n")
        durable.write_bytes(self.folder / segment.key.name, data)
        self._heads[segment.key] = head
        return head

    def _readable(self, data: bytes, key: SegmentKey) -> SegmentHead:
        """What cannot be read back must not be acknowledged (NaN becomes null on the way)."""
        where = self.folder / key.name
        try:
            decode(data, where)
        except CorruptionError as error:
            raise SetupError(
                f"cannot commit {key.name}: {error.seen}", "finite numbers and valid records", "report it as a bug"
            ) from None
        return head_of(data, where)

    def _migrate(self, migrations: Mapping[int, Migration]) -> None:
        backup = self.folder.with_name(f"{self.folder.name}.before-schema-{SCHEMA_VERSION}")
        heads = [head_of(self._bytes(key), self.folder / key.name) for key in self.segment_keys()]
        if all(head.schema_version == SCHEMA_VERSION for head in heads):
            self._heads = {head.key: head for head in heads}
            return
        previous, moved = "", {}
        for head in heads:
            path = self.folder / head.key.name
            moved[path.name] = migrate(self._bytes(head.key), path, previous, migrations)
            previous = head_of(moved[path.name], path).digest
        if not backup.exists():  # a killed migration starts again from a mixture: its backup is the first one
            with durable.new_folder(backup) as copy:
                shutil.copytree(self.folder, copy, dirs_exist_ok=True, ignore=shutil.ignore_patterns("lock", ".*"))
        for name, data in moved.items():
            durable.write_bytes(self.folder / name, data)
        self.migrated = True


def fold_all(ledger: Ledger) -> dict[str, Entry]:
    """The state of every entry, from the ledger alone."""
    state: dict[str, Entry] = {}
    for segment in ledger.read_all():
        state.update(fold(state, segment))
    return state
