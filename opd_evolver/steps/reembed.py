"""Another embedder for a memory that has grown: a new lineage after the last finished round.

The embedder decides what is retrieved, so it is a science parameter: a lineage has one, and changing it silently is
refused. Re-embedding therefore rewrites nothing. Ledger, entries and policies of the finished rounds are the parent's,
bytes and digests; the new lineage records which embedders it has left behind, makes their vectors anew wherever it
restores a memory, and plays its next round with the new ones. `opd memory undo` goes back.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from opd_evolver import console, lineage, versioning, writer
from opd_evolver.errors import SetupError
from opd_evolver.lineage import Run
from opd_evolver.memory.embed import open_embedder
from opd_evolver.memory.levels import embed_text
from opd_evolver.memory.protocol import Embedder
from opd_evolver.memory.snapshot import SnapshotInfo, read_entries, read_manifest, restore, verify
from opd_evolver.params import Params
from opd_evolver.records import Record

CHUNK = 128


class Reembedded(Record):
    """What was done.

    Attributes:
        before: identities of the embedders that made the memories so far.
        digest_entries: of the last round's entries under the new identity.
    """

    lineage: str
    round: int
    before: tuple[str, ...]
    embedder: str
    identity: str
    dimension: int
    n_entries: int
    digest_entries: str


def reembed(root: Path, name: str, to: str | None) -> Reembedded:
    """Embeds the memories that the next round needs, checks them, and opens the lineage; in this order.

    Killed before it is opened, nothing has changed, and the same command goes on with the vectors that were made.

    Args:
        root: the artifact root.
        name: the run.
        to: for `memory.embedder`; None keeps the name, whose weights have changed.

    Raises:
        SetupError: no finished round, a live writer, or the embedder is the one that made the memory.
        CorruptionError: a snapshot does not match its digests.
        OutageError: an endpoint stayed down.
    """
    run = lineage.open_run(root, name)
    mend = "stop it (Ctrl-C keeps finished rounds), then: opd memory reembed"
    with writer.writing(run, {"action": "reembed"}, mend):
        return _reembed(root, name, run, to)


def _reembed(root: Path, name: str, run: Run, to: str | None) -> Reembedded:
    memory = run.params.memory.model_copy(update={"embedder": to or run.params.memory.embedder})
    embedder = open_embedder(memory.embedder)
    folders = _snapshots(run)
    before = {verify(folder).embedder for folder in folders}
    if _is_the_same(run, memory.embedder, embedder.identity, before):
        raise SetupError(
            f"`{run.lineage}` embeds by {embedder.identity} already",
            "another embedder",
            "--to EMBEDDER; `opd memory reindex` rebuilds an index",
        )
    embedder.ready()
    params = run.params.model_copy(update={"memory": memory})
    info = _checked(run, folders, embedder, params, {*before, *run.reembeds})
    reason = f"memory.embedder: {run.params.memory.embedder!r} → {memory.embedder!r} ({embedder.identity})"
    opened = lineage.branch(root, name, len(run.finished_rounds()), params, before, reason)
    return Reembedded(
        lineage=opened.lineage,
        round=info.round,
        before=tuple(sorted(before)),
        embedder=memory.embedder,
        identity=embedder.identity,
        dimension=embedder.dimension,
        n_entries=info.n_entries,
        digest_entries=info.digest_entries,
    )


def _is_the_same(run: Run, name: str, identity: str, before: set[str]) -> bool:
    """Whether the lineage has this embedder now: it made its own rounds, or will make the first of them."""
    own = before - set(run.reembeds)
    return own == {identity} if own else name == run.params.memory.embedder


def _snapshots(run: Run) -> list[Path]:
    """The champion's memory, which the next round starts from, and the last round's, which is looked into; it last."""
    finished = run.finished_rounds()
    if not finished:
        raise SetupError(
            f"run `{run.lineage}` has no finished round yet",
            "a memory to embed anew",
            "begin with the embedder: opd run --name NEW --set memory.embedder=EMBEDDER",
        )
    summary = run.summary(finished[-1]) or {}
    folders = []
    for round_ in sorted({int(summary["champion"]), finished[-1]} - {0}):
        folder = run.owner(round_).version(round_) / "memory"
        if not folder.exists():
            versioning.checkout(run.root, versioning.pointer_of(folder))
        folders.append(folder)
    return folders


def _checked(run: Run, folders: list[Path], embedder: Embedder, params: Params, left: set[str]) -> SnapshotInfo:
    """Makes the vectors, kept batch by batch, and rebuilds each memory with them once; what the last one came to."""
    texts = sorted({embed_text(entry) for folder in folders for entry in read_entries(folder)})
    with console.progress(len(texts), "embed") as bar:
        for start in range(0, len(texts), CHUNK):
            part = texts[start : start + CHUNK]
            embedder.embed(part)
            bar.advance(len(part))
    info = read_manifest(folders[-1])
    # Named as a view, so that after a kill `gc` and `erase` find it.
    view = run.paths.run / "live" / "view-reembedding"
    try:
        for folder in folders:
            info = restore(folder, view, params.memory.model_copy(update={"store": "embedded"}), left)
    finally:
        shutil.rmtree(view, ignore_errors=True)
    return info
