"""Hand a finished round to MLflow (comparison) and DVC (versions)."""

from __future__ import annotations

from opd_evolver.lineage import Run


def round_(run: Run, number: int) -> None:
    """Log a round to MLflow; the same round again changes nothing."""


def pointers(run: Run) -> None:
    """`dvc add` every finished round's folders, pointer beside them."""
