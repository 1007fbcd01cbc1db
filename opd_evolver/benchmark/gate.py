"""The gate: promote a round's policy and memory together, or keep the champion's together and say why.

Promote iff, on `deploy-val`, the lower 95 % bound of (new - champion) > -margin, and the same on
`novel-val` for each retention metric with its own margin; a margin of 1 refuses nothing that was
measured. What is chosen on these splits is never reported on them.
Differs: the paper has no gate. A distillation that buys success with retention is a regression.
"""

from __future__ import annotations

from collections.abc import Mapping

from opd_evolver.benchmark.statistics import Estimate
from opd_evolver.params import GateParams
from opd_evolver.records import SCHEMA_VERSION, Record

SUCCESS = "success"
# Higher is better for each. Drift and steps per success are reported, not gated: drift is measured on deployed
# families, where internalising a rule is what was asked for (docs/decisions.md).
RETENTION_METRICS = ("memory_use", "override", "select_f1", "write_exact")


class Check(Record):
    """One comparison with the champion."""

    metric: str
    mean: float | None
    low: float | None
    high: float | None
    margin: float
    passed: bool
    reason: str


class Verdict(Record):
    """What the gate decided.

    Attributes:
        promoted: the new policy and memory become the champion.
        reason: in words; of a refusal, what failed and by how much.
        checks: every comparison.
        refusals: refusals in a row, this one included; 0 after a promotion.
        exhausted: as many refusals as `gate.max_refusals`: the run stops.
    """

    schema_version: int = SCHEMA_VERSION
    promoted: bool
    reason: str
    checks: tuple[Check, ...]
    refusals: int
    exhausted: bool


def decide(differences: Mapping[str, Estimate], params: GateParams, refusals_before: int = 0) -> Verdict:
    """The verdict on a round.

    Args:
        differences: new minus champion: `success` on deploy-val, and those of `RETENTION_METRICS` that were
            measured on novel-val.
        params: margins and the number of refusals that stop a run.
        refusals_before: refusals in a row just before this round.
    """
    names = [SUCCESS, *(name for name in RETENTION_METRICS if name in differences)]
    checks = tuple(
        _check(name, differences[name], params.margin if name == SUCCESS else params.retention_margin) for name in names
    )
    failed = [check for check in checks if not check.passed]
    refusals = refusals_before + 1 if failed else 0
    if failed:
        reason = "refused: " + "; ".join(check.reason for check in failed)
    else:
        reason = f"promoted: no worse than the champion on {', '.join(check.metric for check in checks)}"
        if len(checks) == 1:
            reason += " (retention not measured)"
    return Verdict(
        promoted=not failed,
        reason=reason,
        checks=checks,
        refusals=refusals,
        exhausted=refusals >= params.max_refusals,
    )


def _check(metric: str, found: Estimate, margin: float) -> Check:
    """One lower bound against its margin. Without an interval (one family) the mean decides, and the reason says so."""
    bound, called = (found.low, "lower bound") if found.low is not None else (found.mean, "mean (no interval)")
    if bound is None:
        passed, reason = False, f"{metric} could not be measured"
    else:
        passed = bound > -margin or margin >= 1.0  # nothing falls by more
        sign = ">" if bound > -margin else "≤"
        reason = f"{metric}: {called} of new - champion {bound:+.3f} {sign} {-margin:+.3f}"
    return Check(
        metric=metric, mean=found.mean, low=found.low, high=found.high, margin=margin, passed=passed, reason=reason
    )
