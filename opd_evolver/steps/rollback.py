"""The way back: memory, policy and MLflow's alias of a finished round together, in a new lineage.

Everything is fetched and verified before the one line in HEAD.jsonl that makes it so: a crash leaves the old state
or the new one. Where MLflow does not answer, the next round that is promoted moves the alias.
"""

from __future__ import annotations

from pathlib import Path

from opd_evolver import lineage, tracking
from opd_evolver.console import say
from opd_evolver.errors import OutageError, SetupError
from opd_evolver.lineage import Run
from opd_evolver.memory import edits
from opd_evolver.settings import load_settings
from opd_evolver.steps import plan, snapshots


def to_round(root: Path, name: str, round_: int) -> Run:
    """Opens a lineage that goes on from a finished round; nothing is rewritten.

    Raises:
        SetupError: that round has not finished, or its bytes are nowhere.
        CorruptionError: memory or policy do not match the round's digests; nothing was changed.
    """
    run = lineage.open_run(root, name)
    summary = run.summary(round_)
    if summary is not None:
        for held in sorted({round_, int(summary["champion"])} - {0}):
            snapshots.sound(run, held)
    branched = lineage.branch(root, name, round_)
    _alias(branched)
    return branched


def undo(root: Path, name: str) -> Run:
    """Returns to the lineage before the last rollback or fork, alias included.

    Raises:
        SetupError: there is nothing to undo.
    """
    waited = _waiting(lineage.open_run(root, name))
    run = lineage.undo(root, name)
    _alias(run)
    waits = _waiting(run)
    edits.say_left([edit for edit in waited if edit not in waits], run.lineage, len(run.finished_rounds()))
    return run


def _waiting(run: Run) -> list[edits.Edit]:
    """Edits by hand that no finished round has taken."""
    return edits.read_all(run.edit_files(len(run.finished_rounds())).values())


def _alias(run: Run) -> None:
    """MLflow's `champion` is the policy that the next round starts from."""
    uri = load_settings().mlflow_tracking_uri
    if uri is None and not (run.root / "mlflow.db").exists():
        return
    held = plan.champion(run, len(run.finished_rounds()) + 1)
    digest = held.policy_digest if held.round else None
    try:
        moved = tracking.open_tracker(run.root, uri).set_champion(run.identity.name, digest)
        if digest is not None and not moved:
            say(f"MLflow's alias `champion` was not moved: it knows no policy {digest[:12]} of {run.identity.name}")
    except (OutageError, SetupError) as error:
        say(f"MLflow's alias `champion` was not moved; the next promoted round moves it: {error}")
