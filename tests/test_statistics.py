"""Clustered paired bootstrap: hand-worked means, coverage, invariances, honesty with one family."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opd_evolver.benchmark.statistics import (
    Outcome,
    Unit,
    mean_interval,
    paired_difference,
    ratio_difference,
    ratio_interval,
)
from opd_evolver.errors import SetupError


def outcome(task: int, family: str, success: bool, domain: str = "sql", steps: int = 1) -> Outcome:
    return Outcome(
        task_id=f"{domain}-{task}",
        family=family,
        domain=domain,
        success=success,
        episode_return=float(success),
        steps=steps,
        tokens=10,
    )


def simulated(
    rng: np.random.Generator,
    shift: float = 0.0,
    n_families: int = 12,
    n_tasks: int = 8,
    domains: tuple[str, ...] = ("a", "b"),
) -> list[Outcome]:
    """Families have success rates of their own, uniform in [0.2, 0.8] + shift: the true mean is 0.5 + shift."""
    made = []
    for domain in domains:
        for family in range(n_families):
            rate = rng.uniform(0.2, 0.8) + shift
            for task in range(n_tasks):
                made.append(outcome(family * n_tasks + task, f"{domain}{family}", bool(rng.random() < rate), domain))
    return made


def test_mean_is_the_mean_over_domains_not_over_tasks() -> None:
    outcomes = [outcome(i, f"f{i % 2}", True, "sql") for i in range(2)]
    outcomes += [outcome(i, f"g{i % 3}", i == 0, "apps") for i in range(6)]
    found = mean_interval(outcomes)
    assert found.mean == pytest.approx((1.0 + 1 / 6) / 2)
    assert found.per_domain["sql"].mean == 1.0
    assert (found.n_tasks, found.n_families) == (8, 5)
    assert (found.per_domain["apps"].n_tasks, found.per_domain["apps"].n_families) == (6, 3)


def test_two_families_by_hand() -> None:
    """Means 1 and 0: resampling gives 0, 1/2 or 1, and few families stretch the interval to its bounds."""
    found = mean_interval([outcome(0, "f", True), outcome(1, "g", False)])
    assert (found.mean, found.low, found.high) == (0.5, 0.0, 1.0)


def test_paired_difference_by_hand() -> None:
    before = [outcome(i, f"f{i // 2}", False) for i in range(4)]
    after = [outcome(0, "f0", True), *before[1:]]
    found = paired_difference(after, before)
    assert found.mean == 0.25
    assert found.low is not None and found.high is not None and -1 <= found.low <= 0.25 <= found.high <= 1
    same = paired_difference(before, before)
    assert (same.mean, same.low, same.high) == (0.0, 0.0, 0.0)


def test_pairing_cancels_what_families_share() -> None:
    rng = np.random.default_rng(3)
    base = simulated(rng)
    shifted = [one.model_copy(update={"episode_return": one.episode_return + 0.125}) for one in base]
    found = paired_difference(shifted, base, "episode_return")
    assert (
        found.mean == pytest.approx(0.125) and found.low == pytest.approx(0.125) and found.high == pytest.approx(0.125)
    )


def test_ratio_of_sums() -> None:
    """Micro-F1 and steps per success weigh tasks by their denominators; a task with none counts for nothing."""
    units = [
        Unit(task_id="1", family="f", domain="d", numerator=2, denominator=2),
        Unit(task_id="2", family="g", domain="d", numerator=0, denominator=0),
        Unit(task_id="3", family="h", domain="d", numerator=0, denominator=6),
    ]
    assert ratio_interval(units).mean == 0.25
    outcomes = [outcome(0, "f", True, steps=2), outcome(1, "g", False, steps=4), outcome(2, "h", True, steps=3)]
    found = mean_interval(outcomes, "steps_per_success")
    assert found.mean == 4.5 and found.high is not None and found.high > 4.5
    nothing = mean_interval([outcome(0, "f", False)], "steps_per_success")
    assert (nothing.mean, nothing.low, nothing.high) == (None, None, None)


def test_a_single_family_has_a_mean_but_no_interval() -> None:
    found = mean_interval([outcome(i, "f", i % 2 == 0) for i in range(10)])
    assert found.mean == 0.5 and found.low is None and found.high is None
    mixed = [outcome(i, "f", True) for i in range(4)] + [outcome(i, f"g{i}", True, "apps") for i in range(4)]
    assert mean_interval(mixed).low is None
    assert mean_interval(mixed).per_domain["apps"].low == 1.0


@settings(max_examples=20, deadline=None)
@given(st.randoms(use_true_random=False))
def test_order_of_tasks_leaves_no_trace(random: object) -> None:
    outcomes = simulated(np.random.default_rng(0), n_families=5, n_tasks=3)
    shuffled = list(outcomes)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert mean_interval(outcomes, samples=200) == mean_interval(shuffled, samples=200)
    zeros = [one.model_copy(update={"success": False}) for one in outcomes]
    assert paired_difference(outcomes, zeros, samples=200) == paired_difference(shuffled, zeros[::-1], samples=200)


def test_other_tasks_are_refused() -> None:
    with pytest.raises(SetupError, match="same tasks"):
        paired_difference([outcome(0, "f", True)], [outcome(1, "f", True)])
    with pytest.raises(SetupError, match="no tasks"):
        mean_interval([])
    unit = Unit(task_id="1", family="f", domain="d", numerator=1)
    with pytest.raises(SetupError, match="same tasks"):
        ratio_difference([unit], [unit, unit])


@pytest.mark.parametrize("n_families", [6, 12])
def test_coverage_of_the_interval(n_families: int) -> None:
    """The 95 % interval holds the truth in about 95 % of simulated benchmarks."""
    rng = np.random.default_rng(11)
    n_runs, held, held_paired = 250, 0, 0
    for _ in range(n_runs):
        a = simulated(rng, n_families=n_families)
        found = mean_interval(a, samples=200)
        assert found.low is not None and found.high is not None
        held += found.low <= 0.5 <= found.high
        # The same families and tasks again: only chance within tasks differs, plus a true gain of 0.1 on failures.
        b = [one.model_copy(update={"success": one.success or bool(rng.random() < 0.2)}) for one in a]
        gain = paired_difference(b, a, samples=200)
        assert gain.low is not None and gain.high is not None
        held_paired += gain.low <= 0.1 <= gain.high
    assert 0.92 <= held / n_runs <= 0.985
    assert 0.92 <= held_paired / n_runs <= 0.985


@pytest.mark.parametrize("n_families", [2, 3, 4])
def test_of_few_families_the_interval_is_as_wide_as_they_are_few(n_families: int) -> None:
    rng = np.random.default_rng(12)
    n_runs, held, held_apart = 200, 0, 0
    for _ in range(n_runs):
        found = mean_interval(simulated(rng, n_families=n_families, n_tasks=40, domains=("a", "b", "c")), samples=200)
        one = found.per_domain["a"]
        assert found.low is not None and found.high is not None and one.low is not None and one.high is not None
        held += found.low <= 0.5 <= found.high
        held_apart += one.low <= 0.5 <= one.high
    assert min(held, held_apart) / n_runs >= 0.90


def test_families_without_weight_are_no_families() -> None:
    """Micro-F1 of tasks with nothing to choose from is 0 over 0, on both sides."""
    rng = np.random.default_rng(4)

    def units(n_families: int) -> list[Unit]:
        return [
            Unit(task_id=f"{family}-{n}", family=f"f{family}", domain="d", numerator=rng.integers(3), denominator=2)
            for family in range(n_families)
            for n in range(4)
        ]

    nothing = [Unit(task_id=f"x{n}", family=f"g{n % 5}", domain="d", numerator=0, denominator=0) for n in range(10)]
    for n_families in (3, 8):
        a, b = units(n_families), units(n_families)
        for alone, beside in (
            (ratio_interval(a), ratio_interval([*a, *nothing])),
            (ratio_difference(a, b), ratio_difference([*a, *nothing], [*b, *nothing])),
        ):
            assert (beside.mean, beside.low, beside.high) == (alone.mean, alone.low, alone.high)
            assert (beside.n_families, beside.n_tasks) == (n_families, 4 * n_families + 10)
    # What weighs on one side alone is a family of the difference.
    weightless = [one.model_copy(update={"numerator": 0.0, "denominator": 0.0}) for one in a[:4]]
    assert ratio_difference(a, [*weightless, *b[4:]]).n_families == 8
