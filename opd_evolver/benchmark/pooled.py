"""Means over several seeds of one experiment: families and seeds are both resampled.

A family is drawn for all seeds at once, since its hidden structure is the same in each; a seed is drawn for all
families and domains at once, since one training made them. The two deviations are taken one at a time and added (the
main effects of Owen's two-way bootstrap), each widened for the number of its clusters, so that three or five seeds
count as three or five. One seed: the interval is that of families alone.
Source: Owen 2007, The pigeonhole bootstrap; degrees of freedom by Satterthwaite's approximation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from opd_evolver.benchmark.statistics import (
    SAMPLES,
    DomainEstimate,
    DomainSums,
    Estimate,
    Unit,
    bounds_of,
    check_same_tasks,
    clusters_of,
    deviations,
    generator,
    interval,
    mean_arrays,
    mean_of,
    ratio_of,
    signed,
    signed_arrays,
)
from opd_evolver.errors import SetupError

Floats = npt.NDArray[np.float64]
Clusters = dict[str, DomainSums]


def pooled(seeds: Sequence[Sequence[Unit]], *, samples: int = SAMPLES) -> Estimate:
    """A ratio of sums, averaged over domains, over all seeds.

    Args:
        seeds: for each seed its units, of the same tasks.
        samples: bootstrap resamples.

    Raises:
        SetupError: no seed, or other tasks in one of them.
    """
    return _estimate([seeds], (1.0,), samples)


def pooled_difference(a: Sequence[Sequence[Unit]], b: Sequence[Sequence[Unit]], *, samples: int = SAMPLES) -> Estimate:
    """The ratio of `a` minus that of `b`, paired by task and seed.

    Raises:
        SetupError: other tasks, or another number of seeds.
    """
    if len(a) != len(b):
        raise SetupError(f"{len(a)} seeds against {len(b)}", "the same seeds on both sides", "measure the missing ones")
    return _estimate([a, b], (1.0, -1.0), samples)


def _estimate(sides: Sequence[Sequence[Sequence[Unit]]], signs: Sequence[float], samples: int) -> Estimate:
    if not sides[0]:
        raise SetupError("no seeds to take a mean of", "at least one", "--seeds 1")
    for side in sides:
        for units in side:
            check_same_tasks(sides[0][0], units)
    if not sides[0][0]:
        return Estimate(mean=None, low=None, high=None, n_tasks=0, n_families=0, per_domain={})
    clusters = [[clusters_of(units) for units in side] for side in sides]
    draws = _seed_draws(len(sides[0]), samples)
    per_domain, centers, families, between = {}, [], [], []
    for name in clusters[0][0]:
        sums = [_summed([one[name] for one in side]) for side in clusters]
        center = signed([ratio_of(one) for one in sums], signs)
        by_family = signed_arrays([deviations(name, one, samples) for one in sums], signs)
        by_seed = _between([[one[name] for one in side] for side in clusters], signs, draws)
        n_families = len(sums[0].families)
        low, high = _bounded(center, by_family, by_seed, n_families - 1, len(sides[0]) - 1, sums)
        n_tasks = clusters[0][0][name].n_tasks
        per_domain[name] = DomainEstimate(mean=center, low=low, high=high, n_tasks=n_tasks, n_families=n_families)
        centers.append(center)
        families.append(by_family)
        between.append(by_seed)
    freedom = sum(one.n_families - 1 for one in per_domain.values())
    every = [_summed([one[name] for one in side]) for side in clusters for name in per_domain]
    mean = mean_of(centers)
    low, high = _bounded(mean, mean_arrays(families), mean_arrays(between), freedom, len(sides[0]) - 1, every, signs)
    return Estimate(
        mean=mean,
        low=low,
        high=high,
        n_tasks=sum(one.n_tasks for one in per_domain.values()),
        n_families=sum(one.n_families for one in per_domain.values()),
        per_domain=per_domain,
    )


def _seed_draws(n: int, samples: int) -> Floats | None:
    """[samples, n] weights of the seeds in each resample; None for one seed."""
    if n < 2:
        return None
    return generator("seeds", str(n)).multinomial(n, np.full(n, 1.0 / n), size=samples) / n


def _summed(seeds: Sequence[DomainSums]) -> DomainSums:
    """The sums of every family over the seeds."""
    return seeds[0].model_copy(
        update={
            "numerators": tuple(math.fsum(column) for column in zip(*(one.numerators for one in seeds), strict=True)),
            "denominators": tuple(
                math.fsum(column) for column in zip(*(one.denominators for one in seeds), strict=True)
            ),
            "low": min(one.low for one in seeds),
            "high": max(one.high for one in seeds),
        }
    )


def _between(sides: Sequence[Sequence[DomainSums]], signs: Sequence[float], draws: Floats | None) -> Floats | None:
    """[samples] deviations of the mean over drawn seeds that have a value; None where fewer than two have one."""
    values = [
        signed([ratio_of(one) for one in at_seed], signs) for at_seed in zip(*(side for side in sides), strict=True)
    ]
    known = {seed: value for seed, value in enumerate(values) if value is not None}
    n = len(known)
    if draws is None or n < 2:
        return None
    mean = math.fsum(known.values()) / n
    total, weight = np.zeros((2, len(draws)), dtype=np.float64)
    for seed, value in known.items():  # in a fixed order: BLAS adds in one that depends on the processor
        total += draws[:, seed] * (value - mean)
        weight += draws[:, seed]
    if n < len(values):  # a resample that drew none of them says nothing
        total = np.divide(total, weight, out=np.zeros_like(total), where=weight > 0)
    return total * math.sqrt(n / (n - 1))


def _bounded(
    center: float | None,
    by_family: Floats | None,
    by_seed: Floats | None,
    family_freedom: int,
    seed_freedom: int,
    sums: Sequence[DomainSums],
    signs: Sequence[float] | None = None,
) -> tuple[float | None, float | None]:
    bounds = bounds_of(sums, None if signs is None else len(signs) > 1)
    if by_seed is None and seed_freedom > 0:  # of several seeds: how much they differ is not known
        return None, None
    if by_family is None or by_seed is None:
        return interval(center, by_family, family_freedom, bounds)
    family, seed = float(by_family.var()), float(by_seed.var())
    spread = family**2 / max(family_freedom, 1) + seed**2 / seed_freedom
    freedom = math.floor((family + seed) ** 2 / spread) if spread > 0 else family_freedom
    return interval(center, by_family + by_seed, max(1, freedom), bounds)
