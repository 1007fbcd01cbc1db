"""What every variant gives, and the sums they share.

Sums over groups are taken small terms first, and pairs come in the order of the rollout ids: neither
the order of the rows nor the names of the groups change a single bit.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from opd_evolver.memory.attribution.evidence import Bools, Floats, Ints, Pairs

Z_95 = 1.959963984540054
MOST_VARIANCE = 0.25  # of a return in [0, 1]


class Estimate(NamedTuple):
    """The advantage A-hat of every entry, before alpha and gamma.

    Attributes:
        advantage: [E] A-hat; meaningless where `n_plus` is 0.
        error: [E] its standard error, nan where the variance cannot be estimated.
        quantile: [E] how many standard errors half a 95 % interval is wide.
        n_plus: [E] rollouts with the entry, over the contributing groups; 0 = no evidence.
        n_minus: [E] rollouts without it, over the same groups.
        entry, group, delta: [C] one element per contributing (entry, group): the difference there.
    """

    advantage: Floats
    error: Floats
    quantile: Floats
    n_plus: Floats
    n_minus: Floats
    entry: Ints
    group: Ints
    delta: Floats


class Estimator(Protocol):
    """One way to value entries by outcomes: the numeric part, on arrays."""

    def __call__(self, pairs: Pairs, n_entries: int) -> Estimate:
        """The estimate for each of `n_entries` entries, those without evidence included."""
        ...


class Cells(NamedTuple):
    """One element per (entry, group) that has both sides."""

    entry: Ints
    group: Ints
    n_plus: Floats
    n_minus: Floats
    rho: Floats
    delta: Floats
    squares: Floats


def cell_of(entry: Ints, group: Ints, n_groups: int) -> tuple[Ints, Ints]:
    """Keys entry * n_groups + group, sorted, and the place of each pair's key among them."""
    keys, cell = np.unique(entry * max(n_groups, 1) + group, return_inverse=True)
    return keys, cell


def totals(place: Ints, n: int, weights: Floats | None = None) -> Floats:
    """[n] sum of the weights, or the count, at each place."""
    return np.bincount(place, weights=weights, minlength=n).astype(np.float64)


def cells_of(pairs: Pairs) -> Cells:
    """Counts, means and squared deviations of both sides of every (entry, group)."""
    n_groups = max(len(pairs.groups), 1)
    keys, cell = cell_of(pairs.entry, pairs.group, n_groups)
    side = cell * 2 + pairs.chosen
    count = totals(side, 2 * len(keys))
    total = totals(side, 2 * len(keys), pairs.outcome)
    mean = np.divide(total, count, out=np.zeros_like(total), where=count > 0)
    deviation = totals(side, 2 * len(keys), (pairs.outcome - mean[side]) ** 2)
    n_minus, n_plus = count[0::2], count[1::2]
    both: Bools = (n_minus > 0) & (n_plus > 0)
    return Cells(
        entry=keys[both] // n_groups,
        group=keys[both] % n_groups,
        n_plus=n_plus[both],
        n_minus=n_minus[both],
        rho=n_plus[both] / (n_plus[both] + n_minus[both]),
        delta=mean[1::2][both] - mean[0::2][both],
        squares=deviation[0::2][both] + deviation[1::2][both],
    )


def sum_by_entry(entry: Ints, weights: Floats, n_entries: int) -> Floats:
    """Sums per entry, small terms first: the order of the groups does not matter, not even in the last bit."""
    order = np.lexsort((weights, entry))
    return totals(entry[order], n_entries, weights[order])


def student(freedom: Floats) -> Floats:
    """[N] 97.5 % quantile of Student's t; nan without a degree of freedom."""
    from scipy.special import stdtrit

    found: Floats = stdtrit(np.where(freedom > 0, freedom, np.nan), 0.975)
    return found


def spread(cells: Cells, factor: Floats, n_entries: int) -> tuple[Floats, Floats]:
    """[E] standard error of sum_g factor_g Delta_g, and how many of it half a 95 % interval is wide.

    The variance of R is pooled over the entry's cells (group and side) and takes in one pseudo-rollout of the greatest
    variance, lest few equal outcomes look certain; counts are taken as given. Both are nan where no cell has a
    second rollout: the variance then cannot be estimated.
    """
    freedom = totals(cells.entry, n_entries, cells.n_plus + cells.n_minus - 2.0)
    squares = sum_by_entry(cells.entry, cells.squares, n_entries)
    within = np.where(freedom > 0, (squares + MOST_VARIANCE) / (freedom + 1.0), np.nan)
    weights = sum_by_entry(cells.entry, factor**2 * (1.0 / cells.n_plus + 1.0 / cells.n_minus), n_entries)
    return np.sqrt(within * weights), student(freedom)
