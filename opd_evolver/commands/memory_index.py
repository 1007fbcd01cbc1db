"""`opd memory copy --to STORE` and `reembed --to EMBEDDER`: the same entries in another store, by other vectors."""

from __future__ import annotations

import argparse

from opd_evolver import console, lineage
from opd_evolver.memory import stores
from opd_evolver.memory.snapshot import restore
from opd_evolver.memory.store import Memory
from opd_evolver.steps import prepare, snapshots
from opd_evolver.steps.forget import HOSTED


def copy(given: argparse.Namespace) -> int:
    """Rebuild the index from the ledger in `--to`; counts and digests must be those of the snapshot."""
    run = lineage.open_run(prepare.artifact_root(), given.name)
    round_ = snapshots.last_finished(run)
    params = run.params.memory.model_copy(update={"store": given.to})
    folder = run.paths.run / HOSTED / given.to
    info = restore(snapshots.folder_of(run, round_), folder, params, run.reembeds)
    with Memory.open(folder, params, read_only=True) as memory:
        by_level = memory.counts_by_level()
    tree = {
        "lineage": run.lineage,
        "round": round_,
        "store": given.to,
        "folder": str(folder),
        "memory": stores.name_of(folder),
        "entries": info.n_entries,
        "by_level": by_level,
        "digest_entries": info.digest_entries,
        "digest_ledger": info.digest_ledger,
    }
    named = f" as memory {tree['memory']}" if tree["memory"] else ""
    text = f"round {round_} of `{run.lineage}`: {info.n_entries} entries in {given.to}{named}, digests equal; {folder}"
    console.result(tree, text, as_json=given.json)
    return 0


def reembed(given: argparse.Namespace) -> int:
    """Embed the memory with another embedder, in a new lineage; nothing is rewritten."""
    from opd_evolver.steps import reembed as anew

    done = anew.reembed(prepare.artifact_root(), given.name, given.to)
    text = (
        f"lineage `{done.lineage}`: {done.n_entries} entries of round {done.round} embedded by {done.identity} "
        f"({done.dimension} dimensions), before by {', '.join(done.before)}; entries and ledger are the same\n"
        f"go on with: opd resume {given.name} (or set memory.embedder: {done.embedder} in params.yaml for `opd run`); "
        f"back with: opd memory undo --name {given.name}"
    )
    console.result(done.model_dump(mode="json"), text, as_json=given.json)
    return 0
