"""Variant `uniform`: every entry that was ever shown counts alike. The control arm of attribution."""

from __future__ import annotations

import numpy as np

from opd_evolver.memory.attribution.estimate import Estimate
from opd_evolver.memory.attribution.evidence import Pairs


def uniform(pairs: Pairs, n_entries: int) -> Estimate:
    """A = 1 for every entry that was selected in some rollout, whatever came of it; no interval, no groups.

    Paper: none. V then says nothing about outcomes: what supervises is that an entry was chosen.
    """
    n_plus = np.bincount(pairs.entry[pairs.chosen], minlength=n_entries).astype(np.float64)
    nothing = np.zeros(0)
    return Estimate(
        advantage=np.ones(n_entries),
        error=np.full(n_entries, np.nan),
        quantile=np.full(n_entries, np.nan),
        n_plus=n_plus,
        n_minus=np.zeros(n_entries),
        entry=nothing.astype(np.int64),
        group=nothing.astype(np.int64),
        delta=nothing,
    )
