"""Means with honest intervals: paired bootstrap, clustered by family and stratified by domain.

Tasks of a family share hidden structure, so families, not tasks, are what is resampled. Every
quantity is a ratio of sums (a success rate: successes over tasks; micro-F1; steps per success),
and the mean over domains counts each domain alike.
Source: cluster bootstrap; the expanded percentile interval is Hesterberg 2015 (section 5.3), which
mends the too narrow intervals that few clusters give.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist
from typing import Literal

import numpy as np
import numpy.typing as npt

from opd_evolver.errors import SetupError
from opd_evolver.records import Record

CONFIDENCE = 0.95
SAMPLES = 2000
Metric = Literal["success", "episode_return", "steps", "tokens", "steps_per_success"]


class Outcome(Record):
    """What one benchmark episode came to. `family` is latent: it clusters intervals and nothing else.

    `candidates` and `selected` are ids of entries, in shown order; empty without a memory.
    """

    task_id: str
    family: str
    domain: str
    success: bool
    episode_return: float
    steps: int
    tokens: int
    candidates: tuple[str, ...] = ()
    selected: tuple[str, ...] = ()


class Unit(Record):
    """One task's share of a ratio: the quantity is the sum of numerators over the sum of denominators."""

    task_id: str
    family: str
    domain: str
    numerator: float
    denominator: float = 1.0


class DomainEstimate(Record):
    """A ratio within one domain."""

    mean: float | None
    low: float | None
    high: float | None
    n_tasks: int
    n_families: int


class Estimate(Record):
    """A mean over domains with its 95 % interval; None where the data cannot tell (one family, no denominator)."""

    mean: float | None
    low: float | None
    high: float | None
    n_tasks: int
    n_families: int
    per_domain: dict[str, DomainEstimate]


def units_of(outcomes: Sequence[Outcome], metric: Metric = "success") -> tuple[Unit, ...]:
    """Outcomes as units of one metric."""
    value: Callable[[Outcome], float] = {
        "success": lambda one: float(one.success),
        "episode_return": lambda one: one.episode_return,
        "steps": lambda one: float(one.steps),
        "tokens": lambda one: float(one.tokens),
        "steps_per_success": lambda one: float(one.steps),
    }[metric]
    return tuple(
        Unit(
            task_id=one.task_id,
            family=one.family,
            domain=one.domain,
            numerator=value(one),
            denominator=float(one.success) if metric == "steps_per_success" else 1.0,
        )
        for one in outcomes
    )


def mean_interval(outcomes: Sequence[Outcome], metric: Metric = "success", *, samples: int = SAMPLES) -> Estimate:
    """Mean of a metric over domains, with its clustered interval.

    Args:
        outcomes: one per task; their order does not matter.
        metric: which quantity.
        samples: bootstrap resamples.
    """
    return ratio_interval(units_of(outcomes, metric), samples=samples)


def paired_difference(
    a: Sequence[Outcome], b: Sequence[Outcome], metric: Metric = "success", *, samples: int = SAMPLES
) -> Estimate:
    """a - b on the same tasks, with its clustered paired interval.

    Raises:
        SetupError: the two were not measured on the same tasks.
    """
    return ratio_difference(units_of(a, metric), units_of(b, metric), samples=samples)


def ratio_interval(units: Sequence[Unit], *, samples: int = SAMPLES) -> Estimate:
    """A ratio of sums, averaged over domains."""
    return _estimate([clusters_of(units)], (1.0,), samples)


def ratio_difference(a: Sequence[Unit], b: Sequence[Unit], *, samples: int = SAMPLES) -> Estimate:
    """The ratio of `a` minus that of `b`, resampling the same families in both.

    Raises:
        SetupError: the two were not measured on the same tasks.
    """
    check_same_tasks(a, b)
    return _estimate([clusters_of(a), clusters_of(b)], (1.0, -1.0), samples)


# ── within one domain ─────────────────────────────────────────────────────────────────────────

Floats = npt.NDArray[np.float64]


class DomainSums(Record):
    """Sums per family, families sorted by name: the order of tasks leaves no trace."""

    families: tuple[str, ...]
    numerators: tuple[float, ...]
    denominators: tuple[float, ...]
    n_tasks: int
    low: float
    high: float


def clusters_of(units: Sequence[Unit]) -> dict[str, DomainSums]:
    if not units:
        raise SetupError("no tasks to take a mean of", "at least one", "raise benchmark.*_tasks_per_domain")
    found: dict[str, dict[str, list[Unit]]] = {}
    for unit in units:
        found.setdefault(unit.domain, {}).setdefault(unit.family, []).append(unit)
    return {domain: _domain(found[domain]) for domain in sorted(found)}


def _domain(by_family: Mapping[str, Sequence[Unit]]) -> DomainSums:
    families = tuple(sorted(by_family))
    bounded = all(0.0 <= unit.numerator <= unit.denominator for units in by_family.values() for unit in units)
    return DomainSums(
        families=families,
        numerators=tuple(math.fsum(unit.numerator for unit in by_family[family]) for family in families),
        denominators=tuple(math.fsum(unit.denominator for unit in by_family[family]) for family in families),
        n_tasks=sum(len(units) for units in by_family.values()),
        low=0.0 if bounded else -math.inf,
        high=1.0 if bounded else math.inf,
    )


def ratio_of(domain: DomainSums) -> float | None:
    below = math.fsum(domain.denominators)
    return math.fsum(domain.numerators) / below if below > 0 else None


def deviations(name: str, domain: DomainSums, samples: int) -> Floats | None:
    """[samples] bootstrap deviations of the ratio from its value, widened for the number of families."""
    center, n = ratio_of(domain), len(domain.families)
    if center is None or n < 2:
        return None
    weights = generator(name, *domain.families).multinomial(n, np.full(n, 1.0 / n), size=samples)
    above = _weighted_sum(weights, domain.numerators)
    below = _weighted_sum(weights, domain.denominators)
    ratios = np.where(below > 0, above / np.where(below > 0, below, 1.0), center)
    return (ratios - center) * math.sqrt(n / (n - 1))


def _weighted_sum(weights: npt.NDArray[np.int64], values: Sequence[float]) -> Floats:
    """Row sums in a fixed order: BLAS would add in an order that depends on the processor."""
    total = np.zeros(len(weights), dtype=np.float64)
    for column, value in enumerate(values):
        total += weights[:, column] * value
    return total


def generator(*parts: str) -> np.random.Generator:
    """Counter-based: the same families are drawn whenever the same families are compared."""
    raw = "\x1f".join(("bootstrap", *parts)).encode()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(hashlib.sha256(raw).digest()[:16], "big")))


# ── over domains ──────────────────────────────────────────────────────────────────────────────


def _estimate(sides: Sequence[dict[str, DomainSums]], signs: Sequence[float], samples: int) -> Estimate:
    first = sides[0]
    per_domain: dict[str, DomainEstimate] = {}
    centers: list[float | None] = []
    spread: list[Floats | None] = []
    for name, domain in first.items():
        values = [ratio_of(side[name]) for side in sides]
        moves = [deviations(name, side[name], samples) for side in sides]
        center = signed(values, signs)
        deviation = signed_arrays(moves, signs)
        centers.append(center)
        spread.append(deviation)
        low, high = interval(center, deviation, len(domain.families) - 1, bounds_of([side[name] for side in sides]))
        per_domain[name] = DomainEstimate(
            mean=center, low=low, high=high, n_tasks=domain.n_tasks, n_families=len(domain.families)
        )
    mean, total = mean_of(centers), mean_arrays(spread)
    freedom = sum(len(domain.families) - 1 for domain in first.values())
    bounds = bounds_of([domain for side in sides for domain in side.values()], len(sides) > 1)
    low, high = interval(mean, total, freedom, bounds)
    return Estimate(
        mean=mean,
        low=low,
        high=high,
        n_tasks=sum(domain.n_tasks for domain in first.values()),
        n_families=sum(len(domain.families) for domain in first.values()),
        per_domain=per_domain,
    )


def signed(values: Sequence[float | None], signs: Sequence[float]) -> float | None:
    known = [sign * value for sign, value in zip(signs, values, strict=True) if value is not None]
    return math.fsum(known) if len(known) == len(values) else None


def signed_arrays(arrays: Sequence[Floats | None], signs: Sequence[float]) -> Floats | None:
    known = [sign * array for sign, array in zip(signs, arrays, strict=True) if array is not None]
    return np.asarray(sum(known)) if len(known) == len(arrays) else None


def mean_of(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if len(known) == len(values) else None


def mean_arrays(arrays: Sequence[Floats | None]) -> Floats | None:
    known = [array for array in arrays if array is not None]
    return np.asarray(sum(known)) / len(known) if len(known) == len(arrays) else None


def bounds_of(domains: Sequence[DomainSums], difference: bool | None = None) -> tuple[float, float]:
    low, high = min(one.low for one in domains), max(one.high for one in domains)
    is_difference = len(domains) > 1 if difference is None else difference
    return (low - high, high - low) if is_difference else (low, high)


def interval(
    center: float | None, deviation: Floats | None, freedom: int, bounds: tuple[float, float]
) -> tuple[float | None, float | None]:
    """Expanded percentile interval; None without a spread over families."""
    if center is None or deviation is None:
        return None, None
    tail = NormalDist().cdf(-student_quantile(0.5 + CONFIDENCE / 2, freedom))
    low, high = np.quantile(deviation, [tail, 1.0 - tail])
    return max(bounds[0], center + float(low)), min(bounds[1], center + float(high))


def student_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t above the median: exact for 1 and 2 degrees of freedom, else by expansion (< 0.5 %)."""
    if freedom == 1:
        return math.tan(math.pi * (probability - 0.5))
    if freedom == 2:
        doubled = 2.0 * probability - 1.0
        return doubled * math.sqrt(2.0 / (1.0 - doubled * doubled))
    z = NormalDist().inv_cdf(probability)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return math.fsum(term / float(freedom**power) for power, term in enumerate(terms))


def check_same_tasks(a: Sequence[Unit], b: Sequence[Unit]) -> None:
    left = {(unit.domain, unit.family, unit.task_id) for unit in a}
    right = {(unit.domain, unit.family, unit.task_id) for unit in b}
    if left != right or len(a) != len(b):
        raise SetupError(
            f"{len(left - right)} tasks on one side only, {len(right - left)} on the other",
            "two measurements of the same tasks",
            "measure both with the same split and number of tasks",
        )
