"""Variant `paper`: the paper's estimator, and the default."""

from __future__ import annotations

from opd_evolver.memory.attribution.estimate import Estimate, cells_of, spread, sum_by_entry, totals
from opd_evolver.memory.attribution.evidence import Pairs


def paper(pairs: Pairs, n_entries: int) -> Estimate:
    """A = sum_g rho_g * Delta_g over the groups that have both sides.

    rho_g = |O+| / (|O+| + |O-|), Delta_g = mean R over O+ minus mean R over O-. Unit: return, summed
    over groups, hence unbounded by design. It compares rollouts in which the policy chose the entry with
    those in which it did not: where it chooses by what also decides the outcome (easy tasks), A is biased.

    The 95 % interval is Student's t with Var(A) = sum_g rho_g^2 * s^2 * (1/|O+_g| + 1/|O-_g|); counts are
    taken as given, and s^2 is the entry's variance of R within its cells (group and side), pooled over them and one
    pseudo-rollout of variance 1/4, as in `causal`: without it two equal outcomes would look certain. It is None
    where no cell has a second rollout: the variance then cannot be estimated.

    Paper: outcome-calibrated attribution.
    Differs: an entry that was selected but withheld by randomised inclusion counts as O-: it was not in
        the context. The rollouts that created an entry (see `creators`) are no evidence for it, nor are
        rollouts whose selection was a fallback.
    """
    cells = cells_of(pairs)
    error, quantile = spread(cells, cells.rho, n_entries)
    return Estimate(
        advantage=sum_by_entry(cells.entry, cells.rho * cells.delta, n_entries),
        error=error,
        quantile=quantile,
        n_plus=totals(cells.entry, n_entries, cells.n_plus),
        n_minus=totals(cells.entry, n_entries, cells.n_minus),
        entry=cells.entry,
        group=cells.group,
        delta=cells.delta,
    )
