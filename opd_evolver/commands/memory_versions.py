"""`opd memory diff R1 R2`, `why ID`, `gc`: what changed between rounds, why an entry is there, what can be freed."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from opd_evolver import console, lineage, writer
from opd_evolver.commands.memory import opened
from opd_evolver.errors import SetupError
from opd_evolver.lineage import Run
from opd_evolver.memory import stores, story, views
from opd_evolver.memory.diff import changes, counts
from opd_evolver.memory.snapshot import read_entries, verify
from opd_evolver.records import Attribution, Entry
from opd_evolver.steps import prepare, snapshots

N_LISTED = 20


def _round_of(name: str, told: str) -> tuple[Run, int]:
    """`2` is a round of the current lineage, `name~2:1` of another one."""
    of, _, number = told.rpartition(":")
    if not number.isdigit():
        raise SetupError(f"round `{told}`", "a number, or lineage:number", "for example: opd memory diff 1 2")
    return lineage.open_run(prepare.artifact_root(), of or name), int(number)


def _entries(run: Run, round_: int) -> list[Entry]:
    if round_ == 0:
        return []
    if run.summary(round_) is None:
        raise SetupError(
            f"round {round_} of `{run.lineage}` has not finished", f"one of {run.finished_rounds()}", "opd rounds"
        )
    folder = snapshots.folder_of(run, round_)
    verify(folder)
    return read_entries(folder)


def _values(run: Run, round_: int) -> dict[str, Attribution] | None:
    """V as attributed at the end of a round; None when the step's file is gone."""
    path = run.owner(round_).step(round_, "examples") / "attributions.jsonl"
    if not path.exists():
        return None
    found = [Attribution.model_validate_json(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {one.entry_id: one for one in found}


def diff(given: argparse.Namespace) -> int:
    """Entries added, retired, used between two rounds."""
    sides = [_round_of(given.name, told) for told in (given.before, given.after)]
    before, after = ({key: one.value for key, one in (_values(*side) or {}).items()} for side in sides)
    found = changes(_entries(*sides[0]), _entries(*sides[1]), (before, after))
    tree = {
        "before": {"lineage": sides[0][0].lineage, "round": sides[0][1]},
        "after": {"lineage": sides[1][0].lineage, "round": sides[1][1]},
        "counts": counts(found),
        "changes": [one.model_dump(mode="json") for one in found],
    }
    lines = [
        f"{kind}: {sum(of.values())} ({', '.join(f'{level} {n}' for level, n in of.items())})"
        for kind, of in counts(found).items()
    ]
    told = [one for one in found if one.kind != "used"]
    lines += [f"{one.kind}  {one.entry_id}  {one.level}  {one.text}" for one in told[:N_LISTED]]
    if len(told) > N_LISTED:
        lines.append(f"… and {len(told) - N_LISTED} more (--json lists all)")
    console.result(tree, "\n".join(lines) or "nothing changed", as_json=given.json)
    return 0


def why(given: argparse.Namespace) -> int:
    """The story of one entry."""
    run = lineage.open_run(prepare.artifact_root(), given.name)
    with opened(given.name) as memory:
        entry = views.find(memory, given.entry_id)
        values: dict[int, Attribution | None] = {}
        for round_ in run.finished_rounds():
            known = _values(run, round_)
            if known is None or entry.entry_id in known:
                values[round_] = None if known is None else known[entry.entry_id]
        tree = story.tell(memory, entry, values)
    console.result(tree, story.text_of(tree), as_json=given.json)
    return 0


def gc(given: argparse.Namespace) -> int:
    """What nothing needs any more: views, live memories, micro-batches and checkpoints of finished rounds."""
    root = prepare.artifact_root()
    run = lineage.open_run(root, given.name)
    with writer.writing(run, {"action": "gc"}, "wait for it"):
        found = [(path, _size(path)) for path in _unneeded(run)]
        if given.yes:
            for path, _ in found:
                stores.remove(path) if path.parent.name == "live" else shutil.rmtree(path)
    total = sum(size for _, size in found)
    tree = {
        "lineage": run.lineage,
        "removed": given.yes,
        "bytes": total,
        "paths": [{"path": str(path.relative_to(root)), "bytes": size} for path, size in found],
    }
    lines = [f"{size / 1e6:8.1f} MB  {path.relative_to(root)}" for path, size in found]
    done = "removed" if given.yes else "can be removed: opd memory gc --yes"
    lines.append(f"{total / 1e6:.1f} MB in {len(found)} folders {done}")
    console.result(tree, "\n".join(lines), as_json=given.json)
    return 0


def _unneeded(run: Run) -> list[Path]:
    """Of finished rounds only; versions, ledgers of a round under way and HEAD are never among them."""
    finished = {round_ for round_ in run.finished_rounds() if run.owner(round_).lineage == run.lineage}
    found = sorted((run.paths.run / "live").glob("view-*"))
    found += [run.paths.live(round_) for round_ in sorted(finished) if run.paths.live(round_).exists()]
    for round_ in sorted(finished):
        folder = run.paths.step(round_, "")
        found += sorted(folder.glob("wave-*/microbatches"))
        found += sorted(folder.glob("distil/checkpoints"))
    return found


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
