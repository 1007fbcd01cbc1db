"""Means over several seeds of one experiment: families and seeds are both resampled.

A family is drawn for all seeds at once, since its hidden structure is the same in each; a seed is drawn for all
families and domains at once, since one training made them. The two deviations are taken one at a time and added (the
main effects of Owen's two-way bootstrap), each widened for the number of its clusters, so that three or five seeds
count as three or five; what is made of them, also of fewer than five, says `intervals.py`. A seed without a value is no
seed. One seed: the interval is that of families alone.
Source: Owen 2007, The pigeonhole bootstrap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from opd_evolver.benchmark.intervals import Floats, Part, interval
from opd_evolver.benchmark.statistics import (
    SAMPLES,
    DomainEstimate,
    DomainSums,
    Estimate,
    Unit,
    bounds_of,
    check_same_tasks,
    clusters_of,
    counted,
    deviations,
    generator,
    mean_of,
    ratio_of,
    signed,
    signed_arrays,
)
from opd_evolver.errors import SetupError


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
    per_domain, every = {}, []
    centers: list[float | None] = []
    families: list[Part] = []
    between: list[Part] = []
    for name, first in clusters[0][0].items():
        sums = counted([_summed([one[name] for one in side]) for side in clusters])
        center, n = signed([ratio_of(one) for one in sums], signs), len(sums[0].families)
        part = Part(signed_arrays([deviations(name, one, samples) for one in sums], signs), n)
        seeds = None if draws is None else _between([[one[name] for one in side] for side in clusters], signs, draws)
        low, high = interval(center, [part], bounds_of(sums), seeds)
        per_domain[name] = DomainEstimate(mean=center, low=low, high=high, n_tasks=first.n_tasks, n_families=n)
        centers.append(center)
        families.append(part)
        between += [] if seeds is None else [seeds]
        every += sums
    mean = mean_of(centers)
    low, high = interval(mean, families, bounds_of(every, len(sides) > 1), _mean_over_domains(between))
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


def _between(sides: Sequence[Sequence[DomainSums]], signs: Sequence[float], draws: Floats) -> Part:
    """Deviations of the mean over drawn seeds that have a value, and how many have; not known where fewer than two."""
    values = [
        signed([ratio_of(one) for one in at_seed], signs) for at_seed in zip(*(side for side in sides), strict=True)
    ]
    known = {seed: value for seed, value in enumerate(values) if value is not None}
    n = len(known)
    if n < 2:
        return Part(None, n)
    mean = math.fsum(known.values()) / n
    total, weight = np.zeros((2, len(draws)), dtype=np.float64)
    for seed, value in known.items():  # in a fixed order: BLAS adds in one that depends on the processor
        total += draws[:, seed] * (value - mean)
        weight += draws[:, seed]
    if n < len(values):  # a resample that drew none of them says nothing
        total = np.divide(total, weight, out=np.zeros_like(total), where=weight > 0)
    return Part(total * math.sqrt(n / (n - 1)), n)


def _mean_over_domains(parts: Sequence[Part]) -> Part | None:
    """The same of the mean over domains, which has no more seeds than the domain that has fewest."""
    known = [part.moves for part in parts if part.moves is not None]
    if not parts:
        return None
    fewest = min(part.n for part in parts)
    return Part(np.asarray(sum(known)) / len(known) if len(known) == len(parts) else None, fewest)
