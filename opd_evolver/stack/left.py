"""What a killed flow without a deployment leaves: above all the server that Prefect had started for it.

Nobody else ends it: such a server sits in no service's record. So each child of the flow carries the flow's pid.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from opd_evolver.processes import alive, carrying, lives, me
from opd_evolver.stack import services

FLOW = "EVOLVER_FLOW"


def mark(project: Path) -> None:
    """Let every child of this process say whose it is. Children that outlive it are `behind`."""
    mine = me()
    os.environ[FLOW] = json.dumps({**mine, "project": str(project.resolve())})


def behind(project: Path) -> list[tuple[int, float]]:
    """(pid, start time) of each process in this project whose flow is gone."""
    found = []
    for pid, began, value in carrying(FLOW):
        if not value.startswith("{"):
            continue  # of an earlier version
        flow = json.loads(value)
        if flow["project"] == str(project.resolve()) and not lives(flow):
            found.append((pid, began))
    return found


def end(project: Path) -> list[int]:
    """End those; returns their pids."""
    found = behind(project)
    if found:
        services.end(lambda: [pair for pair in found if alive(*pair)])
    return [pid for pid, _ in found]
