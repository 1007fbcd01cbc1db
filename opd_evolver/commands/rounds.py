"""`opd rounds`: one row per round, or one JSON object."""

from __future__ import annotations

import argparse
import json

from opd_evolver.lineage import Run, open_run
from opd_evolver.steps import prepare


def rounds(given: argparse.Namespace) -> int:
    print_rounds(open_run(prepare.artifact_root(), given.name), as_json=given.json)
    return 0


def print_rounds(run: Run, *, as_json: bool) -> None:
    """The run's table, or the object that `opd rounds --json` promises."""
    from opd_evolver.benchmark.report import rounds_table
    from opd_evolver.steps.publish import rounds_tree

    tree = rounds_tree(run)
    if as_json:
        print(json.dumps(tree, ensure_ascii=False, indent=2))
        return
    print(rounds_table(tree))
    print(
        f"run: {run.paths.run}   versions: {run.paths.versions}   compare: mlflow ui --backend-store-uri sqlite:///mlflow.db"
    )
