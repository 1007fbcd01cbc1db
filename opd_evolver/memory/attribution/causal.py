"""Variant `causal`: what putting an entry into the context does, from randomised inclusion."""

from __future__ import annotations

import numpy as np

from opd_evolver.memory.attribution.estimate import (
    MOST_VARIANCE,
    Estimate,
    cell_of,
    student,
    sum_by_entry,
    totals,
)
from opd_evolver.memory.attribution.evidence import Bools, Floats, Ints, Pairs


def causal(pairs: Pairs, n_entries: int) -> Estimate:
    """A = mean effect of one use: return with the entry in the context minus without, where the policy chose it.

    Of the rollouts in which the policy selected the entry, each kept it with a recorded probability p
    (0 < p < 1; others are left out: they were not randomised). Per group the difference of the
    Hájek-normalised means, weights 1/p for kept and 1/(1 - p) for withheld. Whatever made the policy choose
    the entry is the same on both sides, so that nothing confounds the difference.

    Groups are averaged, not summed: with n_g uses, weight n_g / P_g, where
    P_g = 1 - prod p - prod (1 - p) is the known probability that group g has both sides. A sum would grow with
    the luck of the draw (which groups got a withheld rollout at all); the division by P_g undoes that luck,
    so that A estimates the effect averaged over all uses in groups with at least two. Unit: return per use,
    within [-1, 1] for returns in [0, 1]; `n_plus` counts kept, `n_minus` withheld uses in groups with both.

    The 95 % interval: Var(A) = sum_g w_g^2 (s1^2 k_g + s0^2 l_g), w normalised to 1, k_g and l_g the sums of
    squared normalised inclusion weights of the two sides (1/n where p is constant). s1^2 is the variance of
    kept rollouts within groups; s0^2 that of withheld ones around (kept mean of their group) - A, since
    most groups hold a single one; each takes in one pseudo-rollout of variance 1/4, the most a return in [0, 1]
    has, lest few equal outcomes look certain. Half a width is Student's t with min(kept, withheld) degrees
    of freedom, the pseudo-rollout being one; None with a single withheld (or kept) rollout. Effects that
    differ between groups widen it. Inclusion is drawn for each rollout by itself, hence no clustering.

    Paper: none. Differs: randomised inclusion is an addition; alpha and gamma are applied as in `paper`.
    """
    randomised = (pairs.propensity > 0.0) & (pairs.propensity < 1.0)
    outcome, kept = pairs.outcome[randomised], ~pairs.withheld[randomised]
    chance = pairs.propensity[randomised]
    n_groups = max(len(pairs.groups), 1)
    keys, cell = cell_of(pairs.entry[randomised], pairs.group[randomised], n_groups)
    weight = 1.0 / np.where(kept, chance, 1.0 - chance)
    side, n_sides = cell * 2 + kept, 2 * len(keys)
    count, mass = totals(side, n_sides), totals(side, n_sides, weight)
    total = totals(side, n_sides, weight * outcome)
    mean = np.divide(total, mass, out=np.zeros_like(total), where=mass > 0)
    both = (count[0::2] > 0) & (count[1::2] > 0)
    entry, group, delta = keys[both] // n_groups, keys[both] % n_groups, (mean[1::2] - mean[0::2])[both]
    share = (count[0::2] + count[1::2])[both] / _supported(cell, chance, len(keys))[both]
    advantage = _ratio(sum_by_entry(entry, share * delta, n_entries), sum_by_entry(entry, share, n_entries))
    n_minus, n_plus = totals(entry, n_entries, count[0::2][both]), totals(entry, n_entries, count[1::2][both])

    centre = np.where(kept, mean[side], mean[2 * cell + 1] - advantage[keys[cell] // n_groups])
    squares = totals(side, n_sides, (outcome - centre) ** 2)
    unevenness = _ratio(totals(side, n_sides, weight**2), mass**2)
    within_plus = _variance(entry, squares[1::2][both], n_plus - totals(entry, n_entries), n_entries)
    within_minus = _variance(entry, squares[0::2][both], n_minus - 1.0, n_entries)
    terms = within_plus[entry] * unevenness[1::2][both] + within_minus[entry] * unevenness[0::2][both]
    variance = _ratio(sum_by_entry(entry, share**2 * terms, n_entries), sum_by_entry(entry, share, n_entries) ** 2)
    freedom = np.minimum(n_plus, n_minus)
    return Estimate(
        advantage=advantage,
        error=np.where(freedom > 1, np.sqrt(variance), np.nan),
        quantile=student(freedom),
        n_plus=n_plus,
        n_minus=n_minus,
        entry=entry,
        group=group,
        delta=delta,
    )


def _supported(cell: Ints, chance: Floats, n_cells: int) -> Floats:
    """[C] probability that a group has a kept and a withheld rollout."""
    all_kept = np.exp(totals(cell, n_cells, np.log(chance)))
    none_kept = np.exp(totals(cell, n_cells, np.log1p(-chance)))
    return 1.0 - all_kept - none_kept


def _variance(entry: Ints, squares: Floats, freedom: Floats, n_entries: int) -> Floats:
    """[E] pooled variance with one pseudo-rollout of the greatest variance."""
    pooled: Floats = (sum_by_entry(entry, squares, n_entries) + MOST_VARIANCE) / (np.maximum(freedom, 0.0) + 1.0)
    return pooled


def _ratio(above: Floats, below: Floats) -> Floats:
    some: Bools = below > 0
    return np.divide(above, below, out=np.zeros_like(above), where=some)
