"""`opd memory …`: what is in the memory of a run, and the way back to an earlier round."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from filelock import FileLock

from opd_evolver import lineage, writer
from opd_evolver.errors import SetupError
from opd_evolver.memory import views
from opd_evolver.memory.embed import check_made_by, open_embedder
from opd_evolver.memory.snapshot import read_manifest, restore, verify
from opd_evolver.memory.store import Memory
from opd_evolver.memory.store import reindex as rebuild
from opd_evolver.steps import prepare, snapshots
from opd_evolver.steps import rollback as way_back
from opd_evolver.steps.waiting import N_ID


@contextmanager
def opened(name: str, round_: int | None = None) -> Iterator[Memory]:
    """The memory of a finished round, by default the last one, opened from its snapshot's copy under live/."""
    run = lineage.open_run(prepare.artifact_root(), name)
    folder = snapshots.folder_of(run, snapshots.last_finished(run) if round_ is None else round_)
    info = verify(folder)
    # Looking needs no server: the embedded index serves, whatever the run's store.
    embedded = run.params.memory.model_copy(update={"store": "embedded"})
    view = run.paths.run / "live" / f"view-{info.digest_entries[:8]}{info.digest_ledger[:8]}"
    if not view.exists():
        view.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(view.with_name(".views.lock")):  # of two commands at once one builds it
            if not view.exists():
                restore(folder, view, embedded, run.reembeds)
    with Memory.open(view, embedded, read_only=True) as memory:
        yield memory


def _table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Rows as aligned plain text."""
    lines = [list(columns)] + [[str(row[column]) for column in columns] for row in rows]
    widths = [max(len(line[at]) for line in lines) for at in range(len(columns))]
    return "\n".join(
        "  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _print(tree: Any, text: str, given: argparse.Namespace) -> int:
    print(json.dumps(tree, ensure_ascii=False, indent=2) if given.json else text)
    return 0


def log(given: argparse.Namespace) -> int:
    """Commits of the memory, oldest first."""
    with opened(given.name) as memory:
        tree = views.log(memory)
    columns = ("round", "wave", "part", "rollouts", "successes", "written", "seen_again", "retired")
    lines = [_table(tree, columns)]
    lines += [
        f"round {commit['round']}: {one['kind']} {one['id']}: {_ids(one['retired'])} -> {_ids(one['created'])}"
        for commit in tree
        for one in commit["operations"]
    ]
    return _print(tree, "\n".join(lines), given)


def _ids(ids: Sequence[str]) -> str:
    """Entries by the start of their ids, which every command takes."""
    return " ".join(one[:N_ID] for one in ids) or "nothing"


def show(given: argparse.Namespace) -> int:
    """One entry and its uses."""
    with opened(given.name) as memory:
        tree = views.show(memory, given.entry_id)
    return _print(tree, json.dumps(tree, ensure_ascii=False, indent=2), given)


def search(given: argparse.Namespace) -> int:
    """Live entries nearest to a text."""
    with opened(given.name) as memory:
        tree = views.search(memory, given.text, limit=given.limit, scope=given.scope)
    columns = ("id", "level", "domain", "scope", "created_round", "used", "won", "text")
    return _print(tree, _table(tree, columns) if tree else "nothing found", given)


def rollback(given: argparse.Namespace) -> int:
    """Open a lineage whose memory and policy are those of a finished round; verified first."""
    root = prepare.artifact_root()
    run = lineage.open_run(root, given.name)
    branched = way_back.to_round(root, given.name, given.round)
    tree = {"lineage": branched.lineage, "from": {"lineage": run.lineage, "round": given.round}}
    opened = f"lineage `{branched.lineage}` opened from round {given.round} of `{run.lineage}`"
    text = f"{opened}; go on with: opd resume {given.name}"
    return _print(tree, text, given)


def reindex(given: argparse.Namespace) -> int:
    """Rebuild the index of the newest live memory from its ledger; mends a corrupt or outdated index."""
    run = lineage.open_run(prepare.artifact_root(), given.name)
    live = run.paths.run / "live"
    with writer.writing(run, {"action": "reindex"}, "stop it (Ctrl-C keeps finished rounds), then: opd memory reindex"):
        for view in live.glob("view-*"):
            shutil.rmtree(view)
        newest = max(live.glob("round-*/ledger"), default=None)
        if newest is None:
            tree: dict[str, Any] = {"lineage": run.lineage, "folder": None, "entries": 0}
            told = f"`{run.lineage}` has no live memory: the next round builds it from its snapshot"
            return _print(tree, told, given)
        _same_embedder(run)
        n_entries = rebuild(newest.parent, run.params.memory)
        with Memory.open(newest.parent, run.params.memory, read_only=True) as memory:
            digest = memory.digest()
    tree = {"lineage": run.lineage, "folder": str(newest.parent), "entries": n_entries, "digest_entries": digest}
    return _print(tree, f"{n_entries} entries from the ledger of {newest.parent}, digest {digest[:12]}", given)


def _same_embedder(run: lineage.Run) -> None:
    """A rebuilt index takes any embedder; where the weights have changed, that would go unseen."""
    finished = run.finished_rounds()
    folder = run.owner(finished[-1]).version(finished[-1]) / "memory" if finished else None
    if folder is not None and folder.exists():
        info = read_manifest(folder)
        if info.embedder not in run.reembeds:
            embedder = open_embedder(run.params.memory.embedder)
            check_made_by(embedder, info.embedder, str(info.dimension), f"snapshot {folder}")


def undo(given: argparse.Namespace) -> int:
    """Without an operation: return to the lineage before the last rollback, reembed or fork; nothing is deleted."""
    if given.operation is not None:
        from opd_evolver.commands.memory_edit import undo_operation

        return undo_operation(given)
    if given.dry_run:
        raise SetupError("--dry-run without an operation", "the id of one", "opd memory log prints them")
    root = prepare.artifact_root()
    run = way_back.undo(root, given.name)
    return _print({"lineage": run.lineage}, f"current lineage: `{run.lineage}`", given)
