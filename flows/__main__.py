"""What `dvc repro` calls, and `opd run` where there is no Prefect server: a flow or a report without a deployment.

Prefect is imported for a run that has something left to do, after its home was chosen, and never for a report.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from opd_evolver import lineage, processes
from opd_evolver.errors import OpdError
from opd_evolver.params import parse_set
from opd_evolver.stack import home, left
from opd_evolver.steps import prepare, publish


def build_parser() -> argparse.ArgumentParser:
    """One command for each stage of dvc.yaml but the seed policy."""
    parser = argparse.ArgumentParser(prog="python -m flows", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    coevolve = commands.add_parser("coevolve", help="begin, resume or extend a run")
    coevolve.add_argument("--preset")
    coevolve.add_argument("--set", action="append", default=[], metavar="key=value", dest="pairs")
    coevolve.add_argument("--fork", action="store_true")
    coevolve.add_argument("--resume", action="store_true", help="with the parameters it was begun with")
    coevolve.add_argument("--local", action="store_true", help="with a Prefect server of its own, whatever is set")
    curves = commands.add_parser("benchmark", help="every column of every finished round, as rounds.csv")
    table = commands.add_parser("report", help="the table of rounds as plain text")
    for one, function in ((coevolve, _coevolve), (curves, _benchmark), (table, _report)):
        one.add_argument("--name", default="default", help="name of the run (default: default)")
        one.set_defaults(function=function)
    return parser


def _coevolve(given: argparse.Namespace) -> None:
    overrides = parse_set(given.pairs)
    if not given.resume:  # resuming needs no parameters beside those of the run
        root = prepare.artifact_root()
        run = prepare.finished_run(root, given.name, preset=given.preset, overrides=overrides, fork=given.fork)
        if run is not None:
            print(f"run `{run.lineage}`: all {run.params.rounds} rounds are finished; nothing to do")
            publish.reports(run) if publish.is_published(run) else publish.versions(run)
            return
    processes.share_cores()
    project = Path.cwd()
    home.settle(project)
    left.end(project)
    left.mark(project)
    for name, value in home.SERVERLESS.items():
        os.environ.setdefault(name, value)
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows.coevolve import coevolve

    # An empty address would be no answer: Prefect takes it for a server's, and loses every event over it.
    with temporary_settings(restore_defaults={PREFECT_API_URL} if given.local else None):
        coevolve(given.name, given.preset, overrides, given.fork, given.resume)


def _benchmark(given: argparse.Namespace) -> None:
    print(publish.curves(lineage.open_run(prepare.artifact_root(), given.name)))


def _report(given: argparse.Namespace) -> None:
    path = publish.table(lineage.open_run(prepare.artifact_root(), given.name))
    print(path.read_text(encoding="utf-8"), end="")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes as those of `opd`."""
    given = build_parser().parse_args(argv)
    try:
        given.function(given)
    except OpdError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
