"""Means with honest intervals: paired bootstrap, clustered by family and stratified by domain.

Tasks of a family share hidden structure, so families, not tasks, are what is resampled. Every
quantity is a ratio of sums (a success rate: successes over tasks; micro-F1; steps per success),
and the mean over domains counts each domain alike.
Source: cluster bootstrap; how its deviations become an interval says `intervals.py`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from opd_evolver.benchmark.intervals import Bounds, Floats, Part, interval
from opd_evolver.errors import SetupError
from opd_evolver.records import Record

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


def counted(sides: Sequence[DomainSums]) -> list[DomainSums]:
    """Sums over the families that have weight on some side: others would count as clusters and move nothing."""
    families = sides[0].families
    kept = [at for at in range(len(families)) if any(one.numerators[at] or one.denominators[at] for one in sides)]
    if len(kept) == len(families):
        return list(sides)
    return [
        one.model_copy(
            update={
                "families": tuple(families[at] for at in kept),
                "numerators": tuple(one.numerators[at] for at in kept),
                "denominators": tuple(one.denominators[at] for at in kept),
            }
        )
        for one in sides
    ]


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
    per_domain: dict[str, DomainEstimate] = {}
    centers: list[float | None] = []
    families: list[Part] = []
    for name, first in sides[0].items():
        sums = counted([side[name] for side in sides])
        center, n = signed([ratio_of(one) for one in sums], signs), len(sums[0].families)
        part = Part(signed_arrays([deviations(name, one, samples) for one in sums], signs), n)
        centers.append(center)
        families.append(part)
        low, high = interval(center, [part], bounds_of(sums))
        per_domain[name] = DomainEstimate(mean=center, low=low, high=high, n_tasks=first.n_tasks, n_families=n)
    mean = mean_of(centers)
    bounds = bounds_of([domain for side in sides for domain in side.values()], len(sides) > 1)
    low, high = interval(mean, families, bounds)
    return Estimate(
        mean=mean,
        low=low,
        high=high,
        n_tasks=sum(one.n_tasks for one in per_domain.values()),
        n_families=sum(one.n_families for one in per_domain.values()),
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


def bounds_of(domains: Sequence[DomainSums], difference: bool | None = None) -> Bounds:
    low, high = min(one.low for one in domains), max(one.high for one in domains)
    is_difference = len(domains) > 1 if difference is None else difference
    return (low - high, high - low) if is_difference else (low, high)


def check_same_tasks(a: Sequence[Unit], b: Sequence[Unit]) -> None:
    left = {(unit.domain, unit.family, unit.task_id) for unit in a}
    right = {(unit.domain, unit.family, unit.task_id) for unit in b}
    if left != right or len(a) != len(b):
        raise SetupError(
            f"{len(left - right)} tasks on one side only, {len(right - left)} on the other",
            "two measurements of the same tasks",
            "measure both with the same split and number of tasks",
        )
