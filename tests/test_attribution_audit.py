"""The leave-one-out audit: does V rank entries by what their removal costs?"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opd_evolver.errors import SetupError
from opd_evolver.memory.attribution.audit import Audit, leave_one_out
from opd_evolver.records import Attribution


def valued(**values: float | None) -> dict[str, Attribution]:
    return {
        name: Attribution(entry_id=name, value=value, low=None, high=None, advantage=value, n_selected=1, n_withheld=1)
        for name, value in values.items()
    }


def test_by_hand() -> None:
    """Ranks 1 2 3 4 5 against 2 1 4 3 5: rho = 1 - 6 * 4 / (5 * 24) = 0.8."""
    values = valued(a=-0.3, b=0.0, c=0.1, d=0.2, e=5.0)
    found = leave_one_out(values, {"a": -0.1, "b": -0.2, "c": 0.2, "d": 0.1, "e": 0.3})
    assert (found.n, found.rho) == (5, pytest.approx(0.8))
    assert found.low is not None and found.high is not None and found.low < 0.0 < 0.8 < found.high < 1.0


def test_ties_share_their_rank() -> None:
    """Losses 0 0 1 have the ranks 1.5 1.5 3: rho = 1.5 / sqrt(2 * 1.5)."""
    found = leave_one_out(valued(a=1.0, b=2.0, c=3.0), {"a": 0.0, "b": 0.0, "c": 1.0})
    assert found == Audit(3, pytest.approx(1.5 / 3**0.5), None, None)


def test_without_evidence_an_entry_is_left_out() -> None:
    losses = {"a": 1.0, "b": 2.0, "c": 3.0, "x": -9.0}
    assert leave_one_out(valued(a=1.0, b=2.0, c=3.0, x=None, y=4.0), losses) == Audit(3, pytest.approx(1.0), None, None)


@pytest.mark.parametrize("values", [{}, {"a": 1.0, "b": 2.0}, {"a": 1.0, "b": 1.0, "c": 1.0}])
def test_too_little_to_rank_is_none(values: dict[str, float]) -> None:
    found = leave_one_out(valued(**values), {name: float(n) for n, name in enumerate(values)})
    assert found == Audit(len(values), None, None, None)


def test_wrong_losses_are_refused() -> None:
    with pytest.raises(SetupError, match="a loss for z"):
        leave_one_out(valued(a=1.0), {"z": 1.0})
    with pytest.raises(SetupError, match="loss nan for a"):
        leave_one_out(valued(a=1.0), {"a": float("nan")})


@given(st.lists(st.integers(-50, 50), min_size=4, max_size=12, unique=True))
def test_only_ranks_matter_and_the_sign_turns(losses: list[int]) -> None:
    names = [f"m{n}" for n in range(len(losses))]
    values = valued(**{name: float(n) for n, name in enumerate(names)})
    measured = dict(zip(names, map(float, losses), strict=True))
    found = leave_one_out(values, measured)
    assert found.rho is not None and -1.0 - 1e-12 <= found.rho <= 1.0 + 1e-12
    cubed = leave_one_out(values, {name: loss**3 for name, loss in measured.items()})
    turned = leave_one_out(values, {name: -loss for name, loss in measured.items()})
    assert cubed.rho == pytest.approx(found.rho) and turned.rho == pytest.approx(-found.rho)
