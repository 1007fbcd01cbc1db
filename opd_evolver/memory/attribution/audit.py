"""Leave-one-out audit: does V say what removing an entry costs?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from opd_evolver.errors import SetupError
from opd_evolver.memory.attribution.estimate import Z_95
from opd_evolver.records import Attribution


class Audit(NamedTuple):
    """Spearman's rank correlation of V with the loss on removal.

    Attributes:
        n: entries with both; those without evidence (V None) are left out.
        rho: in [-1, 1], ties sharing their mean rank; None below 3 entries or where either side is constant.
        low, high: 95 % interval (Fisher's z with Bonett and Wright's error); None below 4 entries.
    """

    n: int
    rho: float | None
    low: float | None
    high: float | None


def leave_one_out(attributions: Mapping[str, Attribution], losses: Mapping[str, float]) -> Audit:
    """How well V ranks entries by what their removal costs.

    Args:
        attributions: V by entry id, of any variant.
        losses: entry id → return with the whole memory minus return without that entry, measured on the
            same tasks and seeds; any number of entries.

    Raises:
        SetupError: a loss of an entry that has no attribution, or that is not finite.
    """
    if unknown := sorted(losses.keys() - attributions.keys()):
        raise SetupError(f"a loss for {unknown[0]}", "entries with an attribution", "measure on the same snapshot")
    if wrong := sorted(name for name, loss in losses.items() if not np.isfinite(loss)):
        raise SetupError(f"loss {losses[wrong[0]]} for {wrong[0]}", "a finite return difference", "measure it again")
    pairs = [(value, losses[name]) for name in sorted(losses) if (value := attributions[name].value) is not None]
    values, measured = (np.array(side) for side in zip(*pairs, strict=True)) if pairs else (np.array([]),) * 2
    n = len(pairs)
    if n < 3 or np.ptp(values) == 0 or np.ptp(measured) == 0:
        return Audit(n, None, None, None)
    from scipy.stats import spearmanr

    rho = float(spearmanr(values, measured).statistic)
    if n < 4:
        return Audit(n, rho, None, None)
    half = Z_95 * float(np.sqrt((1.0 + rho**2 / 2.0) / (n - 3)))
    centre = float(np.arctanh(np.clip(rho, -1.0 + 1e-12, 1.0 - 1e-12)))
    return Audit(n, rho, float(np.tanh(centre - half)), float(np.tanh(centre + half)))
