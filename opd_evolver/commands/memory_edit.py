"""`opd memory import FILE`, `undo OPERATION`, `waiting`, `withdraw EDIT`, `erase ID`: what a user changes by hand."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from opd_evolver import console, lineage
from opd_evolver.errors import SetupError
from opd_evolver.lineage import Run
from opd_evolver.memory import edits, importer
from opd_evolver.params import Params, load
from opd_evolver.steps import plan, prepare
from opd_evolver.steps import waiting as steps
from opd_evolver.steps.waiting import Waiting

N_LISTED = 20


def import_(given: argparse.Namespace) -> int:
    """Put a file's entries among the edits of the next round that has not begun; `--dry-run` only reads."""
    known = _params(given)
    found = importer.read(
        Path(given.file),
        domain=given.domain,
        scope=given.scope,
        domains=known.environments.domains if known else None,
        levels=known.memory.levels if known else None,
    )
    if not found.proposals and not found.rejected:
        raise SetupError(f"{given.file} holds no line", "one JSON object a line", "docs/import.md has the format")
    round_ = None if given.dry_run else _wait(given, found)
    levels = Counter(proposal.content.level for proposal in found.proposals)
    tree = {
        "file": given.file,
        "dry_run": given.dry_run,
        "round": round_,
        "accepted": len(found.proposals),
        "repeated": found.repeated,
        "by_level": dict(sorted(levels.items())),
        "rejected": [one.model_dump() for one in found.rejected],
    }
    console.result(tree, _told(found, given, round_), as_json=given.json)
    return 0 if found.proposals else 2


def _params(given: argparse.Namespace) -> Params | None:
    """Those of the run, or that it would be created with; None where a dry run has neither."""
    root = prepare.artifact_root()
    if lineage.exists(root, given.name):
        return lineage.open_run(root, given.name).params
    return load() if Path("params.yaml").exists() else None


def _wait(given: argparse.Namespace, found: importer.Import) -> int | None:
    if not found.proposals:
        return None
    run = _run(given)
    round_ = plan.next_unbegun(run)
    edits.add(
        edits.file_of(run.paths.run, round_),
        edits.Edit(kind="import", proposals=found.proposals, reason=Path(given.file).name),
    )
    return round_


def _run(given: argparse.Namespace) -> Run:
    """The run, created with the project's parameters when there is none yet."""
    root = prepare.artifact_root()
    if lineage.exists(root, given.name):
        return lineage.open_run(root, given.name)
    return prepare.open_for_work(root, given.name, preset=None, overrides={})


def _told(found: importer.Import, given: argparse.Namespace, round_: int | None) -> str:
    lines = [f"line {one.line}: rejected: {one.reason}" for one in found.rejected[:N_LISTED]]
    if len(found.rejected) > N_LISTED:
        lines.append(f"… and {len(found.rejected) - N_LISTED} more (--json lists all)")
    counts = f"{len(found.proposals)} accepted, {found.repeated} repeated, {len(found.rejected)} rejected"
    if given.dry_run:
        lines.append(f"{counts}; nothing was changed (--dry-run)")
    elif round_ is None:
        lines.append(f"{counts}; nothing was changed")
    else:
        lines.append(f"{counts}; they enter the memory when round {round_} begins")
    return "\n".join(lines)


def undo_operation(given: argparse.Namespace) -> int:
    """Put the inverse of one merge or deletion among the edits of the next round that has not begun."""
    from opd_evolver.steps import undo

    run = lineage.open_run(prepare.artifact_root(), given.name)
    done = undo.operation(run, given.operation, dry_run=given.dry_run)
    tree = {
        "lineage": run.lineage,
        "operation": done.of.operation_id,
        "kind": done.of.kind,
        "undo": done.inverse.operation_id,
        "round": done.inverse.round,
        "dry_run": given.dry_run,
        "back": list(done.inverse.created),
        "retired": list(done.inverse.retired),
        "kept": list(done.kept),
    }
    lines = [f"lives again: {one}" for one in done.inverse.created]
    lines += [f"is retired: {one}" for one in done.inverse.retired]
    lines += [f"stays as it is: {one} (written by others, too, or retired already)" for one in done.kept]
    when = "nothing was changed (--dry-run)" if given.dry_run else f"it enters when round {done.inverse.round} begins"
    lines.append(f"{done.of.kind} {done.of.operation_id} is undone by {done.inverse.operation_id}; {when}")
    console.result(tree, "\n".join(lines), as_json=given.json)
    return 0


def waiting(given: argparse.Namespace) -> int:
    """Imports and undone operations that the memory of the next round does not have yet, oldest first."""
    found = steps.waiting(lineage.open_run(prepare.artifact_root(), given.name))
    tree = [_edit(one) for one in found]
    lines = [
        f"{one.edit_id[: steps.N_ID]}  {_what(one)}, "
        + (f"round {one.taken} has begun with it" if one.taken else "enters when the next round begins")
        for one in found
    ]
    console.result(tree, "\n".join(lines) or "nothing waits", as_json=given.json)
    return 0


def withdraw(given: argparse.Namespace) -> int:
    """Take back an import or undone operation before a round begins with it."""
    run = lineage.open_run(prepare.artifact_root(), given.name)
    done = steps.withdraw(run, given.edit)
    console.result(_edit(done), f"{_what(done)} is withdrawn from `{run.lineage}`", as_json=given.json)
    return 0


def _edit(one: Waiting) -> dict[str, object]:
    edit = one.edit
    said = {"edit": one.edit_id, "kind": edit.kind, "reason": edit.reason, "round": one.round, "taken": one.taken}
    return {**said, "entries": len(edit.proposals), "operations": len(edit.operations)}


def _what(one: Waiting) -> str:
    n = len(one.edit.proposals)
    entries = f" ({n} {'entry' if n == 1 else 'entries'})" if n else ""
    return f"{one.edit.kind} {one.edit.reason}{entries}"


def erase(given: argparse.Namespace) -> int:
    """Remove an entry's text from index, ledger and all snapshots of a run, leaving a tombstone."""
    from opd_evolver.steps import forget

    if not given.reason.strip():
        raise SetupError("no reason", "a few words, kept with the id", "--reason 'asked for by …'")
    done = forget.forget(prepare.artifact_root(), given.name, given.entry_id, given.reason)
    lines = [f"{place}: new digest {digest[:12]}" for place, digest in sorted(done.rewritten.items())]
    lines.append(
        f"{done.entry_id} is forgotten: {len(done.rewritten)} snapshots, {done.live} live memories and "
        f"{done.edits} waiting edits rewritten, {done.cached} cached objects removed"
    )
    if done.same:
        lines.append(f"other entries that say it or come from its episodes: {', '.join(done.same)}")
    lines.append(
        f"not reached: policies trained in round {max(1, done.first_round)} or later (opd memory rollback goes back), "
        "DVC remotes (dvc gc --cloud), MLflow's tags (old digests, no text) and copies of Data Docs, and copies made "
        "elsewhere"
    )
    console.result(done.model_dump(mode="json"), "\n".join(lines), as_json=given.json)
    return 0
