"""A forgetting request over a whole run: every lineage, round, live memory, waiting edit and cached byte.

It may be killed at any moment: the request is written down first, each part is rewritten at once, and doing it
again finishes what is left.
"""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack
from pathlib import Path

from opd_evolver import durable, lineage, versioning, writer
from opd_evolver.errors import SetupError
from opd_evolver.lineage import Run, RunPaths
from opd_evolver.memory import edits, erase, stores, vectors
from opd_evolver.memory.ledger import Ledger, fold_all
from opd_evolver.memory.levels import embed_text
from opd_evolver.memory.snapshot import SnapshotInfo, read_entries, read_manifest
from opd_evolver.memory.store import LEDGER_FOLDER, entry_of, reindex
from opd_evolver.records import Entry, Record, canonical_json
from opd_evolver.settings import load_settings
from opd_evolver.steps.fast import REJECTED

HOSTED = "hosted"
"""Below runs/<lineage>: what `opd memory copy --to STORE` made, a folder for each store."""


class Forgotten(Record):
    """What a request did.

    Attributes:
        rewritten: snapshots with new digests, `lineage/round-NNN` → entries digest.
        live: live memories rewritten.
        edits: waiting edits that held it.
        cached: objects removed from DVC's cache.
        first_round: the round it was created in; policies trained since may still know it.
        same: other entries that hold its text or come from its episodes.
    """

    entry_id: str
    rewritten: dict[str, str]
    live: int
    edits: int
    cached: int
    first_round: int
    same: tuple[str, ...]


def lineages(root: Path, name: str) -> list[Run]:
    """Every lineage of a run, the first one first."""
    found = []
    for folder in sorted((root / "runs").glob("*/run.json")):
        identity = lineage.read_identity(root, folder.parent.name)
        if identity.name == name:
            found.append(Run(root, identity))
    return found


def find(runs: list[Run], entry_id: str) -> list[Entry]:
    """The states of the entry in every version and live memory, by id or the start of one.

    Raises:
        SetupError: nothing, or several entries, begin so.
    """
    states = [one for run in runs for one in _entries(run) if entry_id and one.entry_id.startswith(entry_id)]
    ids = sorted({one.entry_id for one in states})
    if len(ids) != 1:
        seen = f"{len(ids)} entries begin with `{entry_id}`" if ids else f"no entry `{entry_id}` in any round"
        raise SetupError(seen, "the id of one entry", "`opd memory search TEXT` prints ids")
    return states


def _entries(run: Run) -> list[Entry]:
    """Every entry that some place of this lineage tells of."""
    found: list[Entry] = []
    for folder in _snapshots(run):
        found += read_entries(folder)
    for live in _lives(run.paths):
        ledger = Ledger(live / LEDGER_FOLDER, read_only=True)
        found += fold_all(ledger).values()
    for path in (run.paths.run / "edits").glob("round-*.jsonl"):
        round_ = int(path.stem.removeprefix("round-"))
        found += [entry_of(proposal, round_) for edit in edits.read(path) for proposal in edit.proposals]
    return found


def _snapshots(run: Run) -> list[Path]:
    """The lineage's own snapshots; one that only its pointer stands for is brought back first."""
    for pointer in sorted(run.paths.versions.glob("round-*/memory.dvc")):
        if not pointer.with_suffix("").is_dir():
            versioning.checkout(run.root, pointer)
    return [path for path in sorted(run.paths.versions.glob("round-*/memory")) if path.is_dir()]


def _lives(paths: RunPaths) -> list[Path]:
    """Live memories of rounds, views of snapshots, and what `opd memory copy` hosts."""
    return sorted(path.parent for kind in ("live", HOSTED) for path in (paths.run / kind).glob(f"*/{LEDGER_FOLDER}"))


def forget(root: Path, name: str, entry_id: str, reason: str) -> Forgotten:
    """Removes an entry's text everywhere in a run.

    Args:
        root: the artifact root.
        name: the run, or one of its lineages, which stands for all.
        entry_id: an id, or enough of its start.
        reason: kept with the id in runs/<name>/erasures.jsonl.

    Raises:
        SetupError: no such entry, a live writer, or a snapshot that can be found nowhere.
        CorruptionError: a snapshot does not match its digests; mend that first.
    """
    name = lineage.open_run(root, name).identity.name
    runs = lineages(root, name)
    mend = "stop it (Ctrl-C keeps finished rounds), erase, then: opd resume"
    with ExitStack() as held:
        for run in runs:
            held.enter_context(writer.writing(run, {"action": "erase"}, mend))
            _recover(run)
        return _forget(root, name, runs, entry_id, reason)


def _forget(root: Path, name: str, runs: list[Run], entry_id: str, reason: str) -> Forgotten:
    states = find(runs, entry_id)
    whole = states[0].entry_id
    erasure = edits.Erasure(entry_id=whole, reason=reason)
    durable.append_line(root / "runs" / name / edits.ERASURES, canonical_json(erasure))
    original = next((one for one in states if one.status != "erased"), None)
    same = {one.entry_id: None for run in runs if original for one in erase.saying_the_same(_entries(run), original)}
    # First: once the entry's text is gone, nobody knows which vector was its own.
    vectors.forget(vectors.folder_of(load_settings()), {embed_text(one) for one in states if one.status != "erased"})
    rewritten: dict[str, str] = {}
    n_live = n_edits = 0
    for run in runs:
        n_edits += _edits(run, whole)
        n_live += _live(run, whole)
        rewritten |= _versions(run, whole)
        _working_files(run)
    return Forgotten(
        entry_id=whole,
        rewritten=rewritten,
        live=n_live,
        edits=n_edits,
        cached=versioning.drop_cached(root, lambda files: _tells(files, whole)),
        first_round=min(one.created_round for one in states),
        same=tuple(sorted(same)),
    )


def _recover(run: Run) -> None:
    """What a killed request left: folders that it had moved away, and half-written ones, which show the text."""
    for kind in ("live", HOSTED):
        for live in (run.paths.run / kind).glob("*"):
            durable.recover(live / LEDGER_FOLDER)
    for version in run.paths.versions.glob("round-*"):
        durable.recover(version / "memory")
        for left in version.glob(f"{erase.WORKING}*"):
            shutil.rmtree(left)


def _edits(run: Run, entry_id: str) -> int:
    """Waiting and used edits lose the entry's proposal."""
    n = 0

    def without(found: list[edits.Edit]) -> list[edits.Edit]:
        nonlocal n
        kept = []
        for edit in found:
            proposals = tuple(one for one in edit.proposals if entry_of(one, 0).entry_id != entry_id)
            n += len(edit.proposals) - len(proposals)
            kept.append(edit.model_copy(update={"proposals": proposals}))
        return kept

    for path in sorted((run.paths.run / "edits").glob("round-*.jsonl")):
        edits.rewrite(path, without)
    return n


def _live(run: Run, entry_id: str) -> int:
    """What a round under way and other stores hold is rewritten; what finished rounds left can be made again."""
    n = 0
    finished = run.finished_rounds()
    for live in _lives(run.paths):
        if live.name.startswith("view-") or live.name in {f"round-{one:03d}" for one in finished}:
            stores.remove(live)
            continue
        for backup in live.glob(f"{LEDGER_FOLDER}.before-schema-*"):
            shutil.rmtree(backup)
        erase.rewrite_ledger(live / LEDGER_FOLDER, {entry_id})
        store = live.name if live.parent.name == HOSTED else run.params.memory.store
        reindex(live, run.params.memory.model_copy(update={"store": store}))
        n += 1
    return n


def _versions(run: Run, entry_id: str) -> dict[str, str]:
    """Snapshots get new bytes, summaries their new digests, DVC its new pointers."""
    changed: dict[str, SnapshotInfo] = {}
    folders = []
    for folder in _snapshots(run):
        info = erase.rewrite_snapshot(folder, {entry_id}, run.params.memory)
        if info is not None:
            changed[f"{run.lineage}/{folder.parent.name}"] = info
        _summary(run, folder)
        if versioning.pointer_of(folder).exists():
            folders.append(folder)
    versioning.add_pointers(run.root, folders)
    return {name: info.digest_entries for name, info in changed.items()}


def _tells(files: dict[str, Path], entry_id: str) -> bool:
    """Whether a cached snapshot has the entry's text."""
    path = files.get("entries.jsonl")
    if path is None or not path.exists():
        return False
    with path.open(encoding="utf-8") as file:
        return any(entry_id in line and Entry.model_validate_json(line).status != "erased" for line in file)


def _summary(run: Run, folder: Path) -> None:
    """The round's summary names the digests that its snapshot has now."""
    path = run.paths.summary(int(folder.parent.name.removeprefix("round-")))
    if not path.exists():
        return
    info = read_manifest(folder)
    tree = lineage.read_json(path)
    now = {**tree["digests"], "entries": info.digest_entries, "ledger": info.digest_ledger}
    if now != tree["digests"]:
        durable.write_text(path, json.dumps({**tree, "digests": now}, sort_keys=True, separators=(",", ":")) + "\n")


def _working_files(run: Run) -> None:
    """Micro-batches, example sets and Data Docs show the text; all that still needs them makes them again.

    So may what a step said on stderr, by a traceback.
    """
    for path in (run.paths.run / "steps").rglob("*.err"):
        path.unlink()
    for folder in (run.paths.run / "steps").glob("round-*/contracts/data_docs"):
        shutil.rmtree(folder)
    for folder in (run.paths.run / "steps").glob("round-*/wave-*/microbatches"):
        shutil.rmtree(folder)
    for path in (run.paths.run / "steps").glob(f"round-*/wave-*/barrier/{REJECTED}"):
        reasons = [line.split(":", 1)[0] for line in path.read_text(encoding="utf-8").splitlines()]
        durable.write_text(path, "".join(f"{reason}\n" for reason in reasons))
    for round_ in (run.paths.run / "steps").glob("round-*"):
        if run.paths.summary(int(round_.name.removeprefix("round-"))).exists():
            for name in ("examples.jsonl", "outcomes.jsonl"):
                (round_ / "examples" / name).unlink(missing_ok=True)
        else:
            # The snapshot step tells digests that its snapshot no longer has, a shard of files that are gone.
            for step in (round_ / "snapshot", round_ / "examples", *round_.glob("wave-*/shard-*")):
                shutil.rmtree(step, ignore_errors=True)
