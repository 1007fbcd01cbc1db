"""`python -m flows.report`: the table of rounds as plain text, what `dvc repro` ends with."""

from __future__ import annotations

import argparse
import sys

from opd_evolver import lineage
from opd_evolver.errors import OpdError
from opd_evolver.steps import prepare, publish


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m flows.report", description=__doc__)
    parser.add_argument("--name", default="default")
    given = parser.parse_args()
    try:
        path = publish.table(lineage.open_run(prepare.artifact_root(), given.name))
    except OpdError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(path.read_text(encoding="utf-8"), end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
