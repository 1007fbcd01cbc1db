"""95 % intervals from bootstrap deviations, by how many clusters they come from.

From at least five clusters in every part: the expanded percentile interval. From fewer, resampled values are a handful
that never leave the range of what was seen, and their percentiles hold the truth in .6 to .9 of all cases. There the
interval is Student's t around the estimate, with the variance of the resampled values and Satterthwaite's degrees of
freedom; it holds the truth in .92 to .98 as far as clusters differ as normal values do. Clusters that come out equal
by chance give no width.
Source: Hesterberg 2015 (section 5.3) for the percentiles; Satterthwaite 1946.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

CONFIDENCE = 0.95
FEW = 5
Floats = npt.NDArray[np.float64]
Bounds = tuple[float, float]
Variance = tuple[float, float]  # and its degrees of freedom


class Part(NamedTuple):
    """What makes an estimate uncertain, apart from the other parts: families of a domain, or seeds.

    Attributes:
        moves: [samples] bootstrap deviations of the part's estimate; None: not known.
        n: clusters that were resampled.
    """

    moves: Floats | None
    n: int


def interval(
    center: float | None, domains: Sequence[Part], bounds: Bounds, seeds: Part | None = None
) -> tuple[float | None, float | None]:
    """The interval of a mean over domains; None where a spread is not known.

    Args:
        center: the mean.
        domains: of each domain its families.
        bounds: what the quantity cannot leave.
        seeds: of the mean itself; None: one seed.
    """
    families = [part.moves for part in domains if part.moves is not None]
    if center is None or len(families) < len(domains) or (seeds is not None and seeds.moves is None):
        return None, None
    every = [*domains, seeds] if seeds is not None else domains
    if any(part.n < FEW for part in every):
        half = _student_half(families, domains, seeds)
        low, high = -half, half
    else:
        low, high = _percentiles(families, domains, seeds)
    return max(bounds[0], center + low), min(bounds[1], center + high)


def _student_half(families: Sequence[Floats], domains: Sequence[Part], seeds: Part | None) -> float:
    n = len(domains)
    by_family = _together([(float(moves.var()) / n**2, of.n - 1) for moves, of in zip(families, domains, strict=True)])
    if seeds is None or seeds.moves is None:
        return _half(*by_family)
    by_seed = float(seeds.moves.var()), seeds.n - 1
    if seeds.n == 2 or [of.n for of in domains] == [2]:
        # Two clusters that are close by luck would leave Satterthwaite with the freedom of the other part alone.
        return math.hypot(_half(*by_family), _half(*by_seed))
    return _half(*_together([by_family, by_seed]))


def _together(parts: Sequence[Variance]) -> Variance:
    """The sum of independent variances, with Satterthwaite's degrees of freedom."""
    variance = math.fsum(one for one, _ in parts)
    spread = math.fsum(one**2 / freedom for one, freedom in parts)
    return variance, variance**2 / spread if spread > 0 else math.fsum(freedom for _, freedom in parts)


def _quantile(freedom: float) -> float:
    """Of Student's t, the one that leaves half of the rest above it."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.5 + CONFIDENCE / 2))


def _half(variance: float, freedom: float) -> float:
    return _quantile(freedom) * math.sqrt(variance)


def _percentiles(families: Sequence[Floats], domains: Sequence[Part], seeds: Part | None) -> tuple[float, float]:
    moves = np.asarray(sum(families)) / len(families)
    freedom = sum(part.n - 1 for part in domains)
    if seeds is not None and seeds.moves is not None:
        _, together = _together([(float(moves.var()), freedom), (float(seeds.moves.var()), seeds.n - 1)])
        freedom, moves = math.floor(together), moves + seeds.moves
    tail = NormalDist().cdf(-_quantile(freedom))
    low, high = np.quantile(moves, [tail, 1.0 - tail])
    return float(low), float(high)
