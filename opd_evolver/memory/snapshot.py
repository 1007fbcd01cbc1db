"""Snapshots: the memory of one round as a canonical folder, and the way back from it.

`entries.jsonl` (by id), `ledger.jsonl` (every segment in order), `manifest.json` with the digests.
Byte-identical whatever the order of insertion; database files are never part of it.
Paper: the snapshot M_r of a round.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator
from pathlib import Path

from pydantic import ValidationError

from opd_evolver import durable
from opd_evolver.errors import CorruptionError, SchemaError, SetupError
from opd_evolver.memory import stores
from opd_evolver.memory.embed import check_made_by, open_embedder
from opd_evolver.memory.lock import LedgerLock
from opd_evolver.memory.protocol import Embedder
from opd_evolver.memory.replay import digest_entries
from opd_evolver.memory.segment import LedgerSegment, SegmentHead, decode, head_of
from opd_evolver.memory.store import LEDGER_FOLDER, Memory
from opd_evolver.params import MemoryParams
from opd_evolver.records import LEVELS, SCHEMA_VERSION, Entry, LedgerRow, Record, canonical_json, digest_of

MANIFEST, ENTRIES, LEDGER = "manifest.json", "entries.jsonl", "ledger.jsonl"
MEND = "fetch it again: `dvc checkout` of its pointer, or roll back to another round: `opd memory rollback`"


class SnapshotInfo(Record):
    """What a snapshot's manifest says. Digests leave out lineage, seconds and vectors."""

    schema_version: int = SCHEMA_VERSION
    lineage: str
    round: int
    embedder: str
    dimension: int
    n_entries: int
    n_segments: int
    n_by_level: dict[str, int]
    digest_entries: str
    digest_ledger: str
    files: dict[str, str]


def write_snapshot(memory: Memory, folder: Path, round: int, lineage: str) -> SnapshotInfo:
    """Writes the memory as it stands; durable and whole when it returns. Equal bytes stay untouched.

    Args:
        memory: the live memory, between two commits.
        folder: `versions/<lineage>/round-NNN/memory`.
        round: the round that ends here.
        lineage: whose round it is.

    Raises:
        SetupError: disk full or not writable; the old folder is untouched.
    """
    entries = memory.entries(live_only=False)
    parts = {
        ENTRIES: "".join(canonical_json(entry) + "\n" for entry in entries).encode("utf-8", "replace"),
        LEDGER: memory.ledger.data(),
    }
    n_by_level = {str(level): 0 for level in LEVELS}
    for entry in entries:
        n_by_level[entry.level] += entry.status == "live"
    info = SnapshotInfo(
        lineage=lineage,
        round=round,
        embedder=memory.index.embedder.identity,
        dimension=memory.index.embedder.dimension,
        n_entries=len(entries),
        n_segments=len(memory.ledger.segment_keys()),
        n_by_level=n_by_level,
        digest_entries=digest_entries(entries, memory.index.embedder),
        digest_ledger=memory.ledger.digest(),
        files={name: hashlib.sha256(data).hexdigest() for name, data in parts.items()},
    )
    parts[MANIFEST] = (json.dumps(info.model_dump(mode="json"), indent=2, sort_keys=True) + "\n").encode()
    if _same(folder, parts):
        return info
    with durable.new_folder(folder) as building:
        for name, data in parts.items():
            (building / name).write_bytes(data)
    return info


def _same(folder: Path, parts: dict[str, bytes]) -> bool:
    return all((folder / name).is_file() and (folder / name).read_bytes() == data for name, data in parts.items())


def read_manifest(folder: Path) -> SnapshotInfo:
    """What a snapshot says about itself.

    Raises:
        SetupError: there is none.
        SchemaError: written by a newer version.
        CorruptionError: unreadable.
    """
    path = folder / MANIFEST
    try:
        tree = json.loads(path.read_bytes())
        version = int(tree["schema_version"])
    except FileNotFoundError:
        raise SetupError(
            f"no snapshot at {folder}", f"a folder with {MANIFEST}", f"`dvc checkout {folder}.dvc`"
        ) from None
    except PermissionError:
        raise SetupError(f"no permission to read {path}", "a readable file", f"chmod u+r {path}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptionError(f"snapshot manifest {path} is unreadable ({error})", "JSON", MEND) from None
    if version > SCHEMA_VERSION:
        raise SchemaError(
            f"snapshot {folder} has schema {version}",
            f"schema {SCHEMA_VERSION} or older",
            "upgrade: pip install -U opd-evolver",
        )
    try:
        return SnapshotInfo.model_validate(tree)
    except ValidationError as error:
        raise CorruptionError(f"snapshot manifest {path} is malformed: {error.errors()[0]['msg']}", "", MEND) from None


def verify(folder: Path) -> SnapshotInfo:
    """Checks every byte against the manifest, and the digests against what the files say.

    Raises:
        CorruptionError: something does not match; names the file and the mend.
    """
    info = read_manifest(folder)
    for name, expected in info.files.items():
        path = folder / name
        seen = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "nothing"
        if seen != expected:
            raise CorruptionError(f"{path} has digest {seen[:12]}", expected[:12], MEND)
    lines = (folder / ENTRIES).read_bytes().decode().split("\n")[:-1]
    heads = [head for _, head in _segments(folder)]
    told = (digest_of([info.embedder, *lines]), digest_of(head.content_digest for head in heads))
    if told != (info.digest_entries, info.digest_ledger):
        raise CorruptionError(f"the manifest of {folder} does not tell of its files", "their digests", MEND)
    return info


def _segments(folder: Path) -> Iterator[tuple[bytes, SegmentHead]]:
    """The segments inside ledger.jsonl: bytes and head."""
    path = folder / LEDGER
    lines: list[bytes] = []
    for line in path.read_bytes().splitlines(keepends=True):
        lines.append(line)
        if line.startswith(b'{"content_digest"'):
            data = b"".join(lines)
            yield data, head_of(data, path)
            lines = []
    if lines:
        raise CorruptionError(f"{path} ends inside a segment", "an end line", MEND)


def segments_of(folder: Path) -> Iterator[LedgerSegment]:
    """A snapshot's ledger segments, in order."""
    for data, _ in _segments(folder):
        yield decode(data, folder / LEDGER)


def read_entries(folder: Path) -> list[Entry]:
    """A snapshot's entries, retired ones included, by id."""
    with (folder / ENTRIES).open(encoding="utf-8") as file:
        return [Entry.model_validate_json(line) for line in file]


def read_rows(folder: Path, round: int | None = None) -> list[LedgerRow]:
    """A snapshot's ledger rows in commit order; of one round when `round` is given."""
    return [
        row
        for data, head in _segments(folder)
        if round is None or head.key.round == round
        for row in decode(data, folder / LEDGER).rows
    ]


def restore(
    folder: Path, live_folder: Path, params: MemoryParams | None = None, reembeds: Collection[str] = ()
) -> SnapshotInfo:
    """Rebuilds a live memory (ledger and index) from a snapshot, verified before and after.

    Entries and ledger are the snapshot's to the byte. Vectors are made here, by the embedder of `params`.

    What was in `live_folder` is replaced, at once and only when the new one is whole.

    Args:
        folder: the snapshot.
        live_folder: where `Memory.open` will find it.
        params: must name the snapshot's embedder, or another one where `reembeds` has the snapshot's.
        reembeds: identities of embedders whose snapshots may be embedded anew: those that a lineage opened by
            `opd memory reembed` has left behind. What is returned then has the new identity and digest.

    Raises:
        CorruptionError: the snapshot does not match its digests; `live_folder` is untouched.
        SetupError: another embedder, disk full, or another process writes to `live_folder`.
    """
    params = params or MemoryParams()
    info = verify(folder)
    info = _made_by(open_embedder(params.embedder), info, folder, reembeds)
    if (live_folder / LEDGER_FOLDER).exists():
        LedgerLock(live_folder / LEDGER_FOLDER).release()  # refuses while a committer lives
    replaced = stores.name_of(live_folder)
    for left in durable.leftovers(live_folder):
        stores.discard(left)  # what a killed restore has on a server is found by this folder alone
    with durable.new_folder(live_folder) as building:
        try:
            _rebuild(folder, info, building, params)
        except BaseException:
            stores.discard(building)
            raise
    if replaced is not None:
        stores.drop_memory(replaced)
    return info


def _made_by(embedder: Embedder, info: SnapshotInfo, folder: Path, reembeds: Collection[str]) -> SnapshotInfo:
    """What a rebuilt memory must come to: the snapshot's own digests, or those of the same entries embedded anew."""
    if info.embedder not in reembeds or embedder.identity == info.embedder:
        check_made_by(embedder, info.embedder, str(info.dimension), f"snapshot {folder}")
        return info
    return info.model_copy(
        update={
            "embedder": embedder.identity,
            "dimension": embedder.dimension,
            "digest_entries": digest_entries(read_entries(folder), embedder),
        }
    )


def _rebuild(folder: Path, info: SnapshotInfo, building: Path, params: MemoryParams) -> None:
    (building / LEDGER_FOLDER).mkdir()
    for data, head in _segments(folder):
        durable.write_bytes(building / LEDGER_FOLDER / head.key.name, data)
    with Memory.open(building, params) as memory:
        rebuilt = (memory.digest(), memory.ledger.digest())
    if rebuilt != (info.digest_entries, info.digest_ledger):
        raise CorruptionError(f"the ledger of {folder} does not rebuild its entries", "equal digests", MEND)
