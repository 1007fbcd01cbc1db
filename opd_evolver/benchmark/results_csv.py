"""Pooled results as CSV: every number of the page."""

from __future__ import annotations

import csv
import io
from typing import Any

from opd_evolver.benchmark.results import Results
from opd_evolver.benchmark.rows import Row
from opd_evolver.benchmark.statistics import Estimate


def table(found: Results, champion: Results | None = None) -> str:
    """Every number as CSV: kind, name, seed (empty: pooled), domain (empty: mean over domains), mean, low, high.

    Args:
        found: of the last round.
        champion: of the rounds that the gate left to use, where they are others; their kinds begin with `champion`.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["kind", "name", "seed", "domain", "mean", "low", "high"])
    _asked(writer, found, "")
    for kind, each in found.kinds.items():
        _kind(writer, kind, each)
    for one in found.seeds:
        for round_, (alone, together) in enumerate(one.curve):
            writer.writerow(["alone", f"round {round_}", one.seed, "", alone, "", ""])
            writer.writerow(["with memory", f"round {round_}", one.seed, "", together, "", ""])
    if champion is not None:
        _asked(writer, champion, "champion ")
    return out.getvalue()


def _asked(writer: Any, found: Results, whose: str) -> None:
    for name, estimate in found.means.items():
        _rows(writer, whose + "column", name, estimate)
        for one, value in zip(found.seeds, found.values[name], strict=True):
            writer.writerow([whose + "column", name, one.seed, "", value, "", ""])
    for verdict in found.verdicts:
        name = f"{verdict.claim.of} - {verdict.claim.against}"
        _rows(writer, whose + "difference", name, verdict.found)
        for one, value in zip(found.seeds, verdict.values, strict=True):
            writer.writerow([whose + "difference", name, one.seed, "", value, "", ""])
    for retained in found.retained:
        for one, value in zip(found.seeds, retained.shares, strict=True):
            writer.writerow([whose + "retained", retained.metric, one.seed, "", value, "", ""])


def _kind(writer: Any, kind: str, each: Row) -> None:
    for name, estimate in each.success.items():
        _rows(writer, kind, name, estimate)
    _rows(writer, kind, "last_memory - base_memory", each.gain)
    for mark, by_side, gain in (
        ("selection F1", each.select, each.select_gain),
        ("selection F1 of what is asked", each.needed, each.needed_gain),
    ):
        for side, estimate in by_side.items():
            _rows(writer, kind, f"{mark} {side}", estimate)
        _rows(writer, kind, f"{mark} last - base", gain)


def _rows(writer: Any, kind: str, name: str, found: Estimate) -> None:
    writer.writerow([kind, name, "", "", found.mean, found.low, found.high])
    for domain, one in found.per_domain.items():
        writer.writerow([kind, name, "", domain, one.mean, one.low, one.high])
