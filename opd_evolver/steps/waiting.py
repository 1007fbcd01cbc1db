"""Edits by hand that the memory of the next round does not have yet, and the way to take one back before it enters."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from opd_evolver import writer
from opd_evolver.errors import SetupError
from opd_evolver.lineage import Run
from opd_evolver.memory import edits
from opd_evolver.memory.edits import Edit
from opd_evolver.records import canonical_json, digest_of
from opd_evolver.steps import plan

N_ID = 12


class Waiting(NamedTuple):
    """One edit and where it lies.

    Attributes:
        edit_id: digest of the edit; the same edit asked for twice has one.
        round: whose file it lies in; it enters that round, or the one behind a refusal.
        taken: the round under way that has begun with it, if one has.
    """

    edit_id: str
    round: int
    taken: int | None
    path: Path
    edit: Edit


def waiting(run: Run) -> list[Waiting]:
    """Oldest first: also those of refused rounds, which enter again.

    Raises:
        CorruptionError, SchemaError: as `edits.read`.
    """
    next_ = len(run.finished_rounds()) + 1
    begun = plan.next_unbegun(run) > next_
    return [
        Waiting(_id(edit), round_, next_ if begun and round_ <= next_ else None, path, edit)
        for round_, path in run.edit_files(run.held(next_)).items()
        for edit in edits.read(path)
    ]


def withdraw(run: Run, edit_id: str) -> Waiting:
    """Takes back an edit that no round has begun with; nothing else is touched.

    Args:
        run: the current lineage.
        edit_id: an id, or enough of its start.

    Raises:
        SetupError: no such edit, several, one that a round has begun with or that another edit needs, or another
            process writes to the run.
    """
    with writer.writing(run, {"action": "withdraw"}, "stop it (Ctrl-C keeps finished rounds), then withdraw again"):
        found = waiting(run)
        chosen = _chosen(run, found, edit_id)
        for one in found:
            if one.edit_id == chosen.edit_id:
                edits.rewrite(one.path, lambda kept: [edit for edit in kept if edit != chosen.edit])
    return chosen


def _id(edit: Edit) -> str:
    return digest_of([canonical_json(edit)])


def _chosen(run: Run, found: list[Waiting], edit_id: str) -> Waiting:
    fitting = {one.edit_id: one for one in found if edit_id and one.edit_id.startswith(edit_id)}
    if len(fitting) != 1:
        known = sorted({one.edit_id[:N_ID] for one in found})
        raise SetupError(
            f"{'several edits' if fitting else 'no edit'} `{edit_id}` among what waits for `{run.lineage}`",
            f"one of {', '.join(known)}" if known else "an edit that waits: there is none",
            "opd memory waiting",
        )
    chosen = next(iter(fitting.values()))
    name = run.identity.name
    for one in found:
        if one.edit_id == chosen.edit_id and one.taken is not None:
            raise SetupError(
                f"round {one.taken} of `{run.lineage}` has begun with {chosen.edit.kind} {chosen.edit.reason}",
                "an edit of a round that has not begun",
                f"opd memory rollback {one.taken - 1} --name {name} (the round begins anew), then withdraw again",
            )
        if one.edit.reason in {operation.operation_id for operation in chosen.edit.operations}:
            raise SetupError(
                f"undo {one.edit_id[:N_ID]}, which waits too, undoes {chosen.edit_id[:N_ID]}",
                "an edit that no other one needs",
                f"opd memory withdraw {one.edit_id[:N_ID]} --name {name}",
            )
    return chosen
