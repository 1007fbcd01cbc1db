"""`opd export`: the agent of a round as one folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from opd_evolver import lineage
from opd_evolver.console import result
from opd_evolver.steps import export as exporting
from opd_evolver.steps import plan, prepare


def export(given: argparse.Namespace) -> int:
    """Write weights or adapter, memory, parameters, prompts and card."""
    run = lineage.open_run(prepare.artifact_root(), given.name)
    round_ = plan.current(run).round if given.round is None else given.round
    card = exporting.export(run, round_, Path(given.to), given.form)
    tree = {**card.model_dump(mode="json", exclude={"params"}), "folder": given.to}
    text = f"{given.to}: round {round_} of `{run.lineage}`, weights {card.form}, digest {card.policy_digest[:12]}"
    result(tree, text, as_json=given.json)
    return 0
