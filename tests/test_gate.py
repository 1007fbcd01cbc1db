"""The gate: lower bounds against margins, reasons in words, refusals counted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opd_evolver.benchmark.gate import decide
from opd_evolver.benchmark.statistics import Estimate
from opd_evolver.params import GateParams

PARAMS = GateParams(margin=0.02, retention_margin=0.1, max_refusals=3)


def estimate(low: float | None, mean: float | None = None) -> Estimate:
    center = mean if mean is not None else (low + 0.05 if low is not None else None)
    high = None if low is None or center is None else center + 0.05
    return Estimate(mean=center, low=low, high=high, n_tasks=120, n_families=24, per_domain={})


def test_promotes_on_the_lower_bound_not_on_the_mean() -> None:
    assert decide({"success": estimate(-0.019)}, PARAMS).promoted
    refused = decide({"success": estimate(-0.03, mean=0.2)}, PARAMS)
    assert not refused.promoted
    assert "success" in refused.reason and "-0.030" in refused.reason and "-0.020" in refused.reason


def test_the_margin_itself_is_refused() -> None:
    assert not decide({"success": estimate(-0.02)}, PARAMS).promoted


def test_a_margin_of_all_that_can_be_lost_refuses_nothing() -> None:
    """Few families leave a lower bound at the end of the scale."""
    open_gate = GateParams(margin=1.0, retention_margin=1.0)
    assert decide({"success": estimate(-1.0, mean=0.1), "override": estimate(-1.0, mean=0.0)}, open_gate).promoted


@pytest.mark.parametrize("metric", ["memory_use", "override", "select_f1", "write_exact"])
def test_a_gain_bought_with_retention_is_refused(metric: str) -> None:
    found = decide({"success": estimate(0.2), metric: estimate(-0.15)}, PARAMS)
    assert not found.promoted and metric in found.reason
    assert decide({"success": estimate(0.2), metric: estimate(-0.09)}, PARAMS).promoted


def test_steps_per_success_is_reported_not_gated() -> None:
    assert decide({"success": estimate(0.0), "steps_per_success": estimate(-5.0)}, PARAMS).promoted


def test_refusals_are_counted_and_stop_the_run() -> None:
    bad = {"success": estimate(-0.5)}
    counts = [decide(bad, PARAMS, before) for before in range(3)]
    assert [one.refusals for one in counts] == [1, 2, 3]
    assert [one.exhausted for one in counts] == [False, False, True]
    assert decide({"success": estimate(0.1)}, PARAMS, 2).refusals == 0


def test_without_an_interval_the_mean_decides_and_the_reason_says_so() -> None:
    found = decide({"success": estimate(None, mean=0.1)}, PARAMS)
    assert found.promoted and "no interval" in found.checks[0].reason
    assert "retention not measured" in found.reason
    nothing = decide({"success": estimate(None)}, PARAMS)
    assert not nothing.promoted and "could not be measured" in nothing.reason


@given(st.floats(-1, 1), st.floats(-1, 1), st.floats(0, 0.5), st.floats(0, 0.5))
def test_promoted_exactly_when_every_bound_clears_its_margin(
    success: float, use: float, margin: float, retention: float
) -> None:
    params = GateParams(margin=margin, retention_margin=retention)
    found = decide({"success": estimate(success), "memory_use": estimate(use)}, params)
    assert found.promoted == (success > -margin and use > -retention)
    assert found.promoted == all(check.passed for check in found.checks)
