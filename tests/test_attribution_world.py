"""In a world with known effects: who is biased by a confounder, and whose interval holds its target."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.attribution import Line, compare, measure
from benchmarks.attribution_world import KINDS, Kind, World, draw

SEEDS = range(200)


@pytest.fixture(scope="module")
def lines() -> dict[tuple[str, str], Line]:
    return {(one.variant, one.kind): one for one in measure(World(epsilon=0.3), SEEDS)}


@pytest.mark.parametrize("kind", KINDS)
def test_causal_is_unbiased_whatever_decides_the_selection(lines: dict[tuple[str, str], Line], kind: str) -> None:
    found = lines["causal", kind]
    assert abs(found.causal.bias) <= 1.5 * found.causal.within  # 99.7 % of a bias of none: five kinds are looked at
    assert found.causal.coverage >= 0.90 and found.wrong <= 0.10 and found.none == 0.0


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_the_others_are_fooled_by_a_confounder(lines: dict[tuple[str, str], Line], variant: str) -> None:
    useless, useful = lines[variant, "confounded"], lines[variant, "masked"]
    assert useless.causal.bias > 5 * useless.causal.within and useless.causal.coverage < 0.7
    assert useful.causal.bias < -5 * useful.causal.within and useful.causal.coverage < 0.7
    assert useless.wrong > 0.3  # their interval calls a useless memory helpful


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_the_others_hold_their_own_target(lines: dict[tuple[str, str], Line], variant: str) -> None:
    for kind in KINDS:
        assert lines[variant, kind].own.coverage >= 0.90, kind
    for kind in ("helpful", "neutral", "harmful"):  # nothing confounds these: the target is the true effect
        assert lines[variant, kind].target_own == pytest.approx(lines[variant, kind].target_causal)


def test_released_shrinks(lines: dict[tuple[str, str], Line]) -> None:
    for kind in ("helpful", "harmful"):
        assert abs(lines["released", kind].target_own) < 0.1 * abs(lines["paper", kind].target_own)


def test_few_withheld_rollouts_widen_the_interval_instead_of_missing() -> None:
    few = {one.kind: one for one in measure(World(n_tasks=6), SEEDS) if one.variant == "causal"}
    assert all(one.causal.coverage >= 0.93 and one.half > 0.5 and one.none > 0.0 for one in few.values())


def test_the_bootstrap_by_task_is_too_narrow() -> None:
    """Why `causal` has Student's interval: a bootstrap draws again the few withheld rollouts that happened."""
    found = compare(World(), range(25), n_draws=80)
    assert found.student[0] >= 0.93 and found.student[0] > found.bootstrap[0]
    assert found.bootstrap[1] < found.normal[1] < found.student[1]


def test_the_same_seeds_give_the_same_ledger_and_others_another() -> None:
    first, again, other = (draw(World(), range(n, n + 2)).pairs for n in (0, 0, 5))
    assert np.array_equal(first.outcome, again.outcome) and np.array_equal(first.entry, again.entry)
    assert not np.array_equal(first.outcome, other.outcome)
    second = draw(World(), range(1, 2)).pairs
    assert np.array_equal(first.outcome[len(second.outcome) :], second.outcome)


def test_a_world_whose_effects_would_be_cut_is_refused() -> None:
    with pytest.raises(ValueError, match="would be cut"):
        draw(replace(World(), kinds={"huge": Kind(1.0, 1.0, (0.9, 0.9))}), range(1))
