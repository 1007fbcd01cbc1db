"""Means over seeds: the centre is the plain mean, and the interval knows of families and of seeds."""

from __future__ import annotations

import numpy as np
import pytest

from opd_evolver.benchmark.pooled import pooled, pooled_difference
from opd_evolver.benchmark.statistics import Unit, ratio_difference, ratio_interval
from opd_evolver.errors import SetupError

N_FAMILIES, N_TASKS = 12, 8


def seed_of(values: np.ndarray, domain: str = "sql") -> list[Unit]:
    """[families, tasks] outcomes as units."""
    return [
        Unit(task_id=f"{domain}{f}-{t}", family=f"{domain}{f}", domain=domain, numerator=float(values[f, t]))
        for f in range(values.shape[0])
        for t in range(values.shape[1])
    ]


def drawn(
    rng: np.random.Generator, seeds: int, family: np.ndarray, by_seed: float, base: float = 0.5
) -> list[list[Unit]]:
    """Outcomes of 0 or 1 whose chance moves with the family (in all seeds alike) and with the seed."""
    found = []
    for _ in range(seeds):
        chance = np.clip(base + family[:, None] + rng.normal(0.0, by_seed), 0.0, 1.0)
        found.append(seed_of((rng.random((N_FAMILIES, N_TASKS)) < chance).astype(float)))
    return found


def test_one_seed_is_the_estimate_of_families() -> None:
    rng = np.random.default_rng(0)
    a, b = (drawn(rng, 1, rng.normal(0, 0.1, N_FAMILIES), 0.0) for _ in range(2))
    assert pooled(a, samples=200) == ratio_interval(a[0], samples=200)
    assert pooled_difference(a, b, samples=200) == ratio_difference(a[0], b[0], samples=200)


def test_the_centre_is_the_mean_by_hand_and_equal_seeds_add_nothing() -> None:
    ones, halves = np.ones((4, 2)), np.tile([0.0, 1.0], (4, 1))
    found = pooled([seed_of(ones), seed_of(halves)])
    assert found.mean == pytest.approx(0.75)
    assert found.low is not None and found.high is not None and found.low < 0.75 < found.high
    same = pooled_difference([seed_of(ones)] * 3, [seed_of(halves)] * 3)
    assert (same.mean, same.low, same.high) == (0.5, 0.5, 0.5)


def test_seeds_that_differ_widen_the_interval() -> None:
    rng = np.random.default_rng(1)
    family = rng.normal(0.0, 0.1, N_FAMILIES)
    still = drawn(rng, 5, family, 0.0)
    moving = [drawn(rng, 1, family, 0.0, base)[0] for base in (0.2, 0.35, 0.5, 0.65, 0.8)]
    widths = [one.high - one.low for one in (pooled(still), pooled(moving))]
    assert widths[1] > 1.5 * widths[0]


def test_the_order_of_tasks_leaves_no_trace_and_domains_count_alike() -> None:
    rng = np.random.default_rng(2)
    sql, apps = (rng.random((4, 3)).round() for _ in range(2))
    seeds = [seed_of(sql) + seed_of(np.tile(apps, (1, 5)), "apps") for _ in range(2)]
    found = pooled(seeds)
    assert found.mean == pytest.approx((sql.mean() + apps.mean()) / 2)
    assert found == pooled([list(reversed(units)) for units in seeds])


def test_intervals_cover_what_they_should() -> None:
    """Difference of two policies whose effect moves by seed and family: 95 % intervals over 300 worlds."""
    rng = np.random.default_rng(3)
    inside, n = 0, 300
    for _ in range(n):
        family = rng.normal(0.0, 0.1, N_FAMILIES)
        effect = rng.normal(0.2, 0.05, N_FAMILIES)
        a = drawn(rng, 4, family + effect, 0.05, base=0.4)
        b = drawn(rng, 4, family, 0.05, base=0.4)
        found = pooled_difference(a, b, samples=300)
        inside += found.low <= 0.2 <= found.high
    assert 0.91 <= inside / n <= 0.995


@pytest.mark.parametrize("n_seeds", [2, 3, 4])
def test_of_few_seeds_the_interval_is_as_wide_as_they_are_few(n_seeds: int) -> None:
    """Only seeds move, and chance within a task."""
    rng = np.random.default_rng(6)
    n, inside, still = 200, 0, np.zeros(N_FAMILIES)
    for _ in range(n):
        found = pooled(drawn(rng, n_seeds, still, 0.1), samples=200)
        assert found.low is not None and found.high is not None
        inside += found.low <= 0.5 <= found.high
    assert inside / n >= 0.90


def test_of_few_families_and_few_seeds_both_count() -> None:
    rng = np.random.default_rng(7)
    n, inside = 200, 0
    for _ in range(n):
        family = rng.normal(0.0, 0.1, N_FAMILIES)
        few = [[one for one in units if one.family in ("sql0", "sql1", "sql2")] for units in drawn(rng, 3, family, 0.1)]
        found = pooled(few, samples=200)
        assert found.low is not None and found.high is not None
        inside += found.low <= 0.5 <= found.high
    assert inside / n >= 0.90


def test_other_tasks_or_no_seeds_are_refused() -> None:
    units = seed_of(np.ones((3, 2)))
    with pytest.raises(SetupError, match="tasks on one side only"):
        pooled([units, units[:-1]])
    with pytest.raises(SetupError, match="no seeds"):
        pooled([])
    with pytest.raises(SetupError, match="2 seeds against 1"):
        pooled_difference([units, units], [units])


def test_a_seed_without_a_value_takes_no_spread_between_the_others_away() -> None:
    three = [seed_of(np.full((4, 2), won)) for won in (0.25, 0.5, 0.9)]
    missing = [one.model_copy(update={"numerator": 0.0, "denominator": 0.0}) for one in three[0]]
    alone, with_missing = pooled(three), pooled([*three, missing])
    assert with_missing.mean == pytest.approx(alone.mean or 0.0)
    assert alone.low is not None and with_missing.low is not None
    assert with_missing.low < 0.5 and with_missing.low == pytest.approx(alone.low, abs=0.15)
    # Nor does it count as one more: the interval is of three seeds, but for other draws.
    near = [seed_of(np.full((4, 2), won)) for won in (0.48, 0.5, 0.53)]
    of_three, beside = pooled(near), pooled([*near, missing])
    assert of_three.high is not None and beside.high is not None and of_three.low is not None
    assert of_three.high - of_three.low == pytest.approx(
        2 * 4.303 * np.std([0.48, 0.5, 0.53], ddof=1) / 3**0.5, rel=0.1
    )
    assert beside.high - (beside.mean or 0.0) == pytest.approx(of_three.high - (of_three.mean or 0.0), rel=0.15)
    # Of several seeds one alone has a value: how far apart seeds are is not known, so there is no interval.
    one = pooled([three[0], missing])
    assert one.mean == pytest.approx(0.25) and one.low is None


def test_nothing_measured_is_no_value() -> None:
    found = pooled([(), ()])
    assert (found.mean, found.low, found.n_tasks) == (None, None, 0)
