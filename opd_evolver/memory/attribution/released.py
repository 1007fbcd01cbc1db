"""Variant `released`: what the authors' public code computes, kept for comparison only."""

from __future__ import annotations

from opd_evolver.memory.attribution.estimate import Estimate, cells_of, spread, sum_by_entry, totals
from opd_evolver.memory.attribution.evidence import Pairs


def released(pairs: Pairs, n_entries: int) -> Estimate:
    """A = mean over groups of rho_g * (mean R over O+ minus mean R over all candidates' rollouts).

    The pool holds the selected rollouts too, so that the bracket is (1 - rho_g) * Delta_g and each group
    gives rho_g * (1 - rho_g) * Delta_g. Unit: return, at most a quarter of Delta. A memory that is selected
    reliably is punished: selected in 9 of 10 with Delta 1 it has 0.09 where `paper` has 0.9. Groups with one
    side only, which would give exactly 0, are skipped as in `paper` instead of being averaged in.

    The 95 % interval is that of `paper`, with rho_g * (1 - rho_g) / G for rho_g.

    Paper: outcome-calibrated attribution, as in the released code.
    Differs: alpha, gamma and what counts as evidence are the same as in `paper`, so that A alone differs.
    """
    cells = cells_of(pairs)
    n_groups = totals(cells.entry, n_entries)
    share = cells.rho * (1.0 - cells.rho) / n_groups[cells.entry]
    error, quantile = spread(cells, share, n_entries)
    return Estimate(
        advantage=sum_by_entry(cells.entry, share * cells.delta, n_entries),
        error=error,
        quantile=quantile,
        n_plus=totals(cells.entry, n_entries, cells.n_plus),
        n_minus=totals(cells.entry, n_entries, cells.n_minus),
        entry=cells.entry,
        group=cells.group,
        delta=cells.delta,
    )
