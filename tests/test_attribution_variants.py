"""The variants `released` and `causal`: by hand, against plain loops, and what must hold of all three."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t as student_t

from opd_evolver.errors import CorruptionError
from opd_evolver.memory.attribution import VARIANTS, attribute
from opd_evolver.params import AttributionParams
from opd_evolver.records import Attribution, Entry, LedgerRow
from tests.attribution_cases import NAMES, entry, ledgers, row

OUTCOME_BASED = [name for name in VARIANTS if name != "uniform"]
PARAMS = {name: AttributionParams.model_validate({"variant": name}) for name in VARIANTS}
Made = tuple[list[LedgerRow], list[Entry]]


def kept(name: str, group: str, outcome: float, chance: float = 0.5) -> LedgerRow:
    return row(name, group, outcome, "m", "m", propensities={"m": chance})


def dropped(name: str, group: str, outcome: float, chance: float = 0.5) -> LedgerRow:
    return row(name, group, outcome, "m", "m", injected=(), withheld=("m",), propensities={"m": chance})


def found(variant: str, rows: Sequence[LedgerRow]) -> Attribution:
    return attribute(rows, [entry("m")], PARAMS[variant])["m"]


# ── by hand ───────────────────────────────────────────────────────────────────────────────────


def test_released_punishes_what_is_selected_reliably() -> None:
    """9 of 10, Delta 1: mean of the selected 1, of the pool 0.9; 0.9 * (1 - 0.9) = 0.09, and V = 0.8 gamma 0.09."""
    rows = [row(f"a{i}", "g", 1, "m", "m") for i in range(9)] + [row("b", "g", 0, "m")]
    one = found("released", rows)
    assert one.advantage == pytest.approx(0.09)
    assert one.value == pytest.approx(0.8 * (1 - 1 / math.sqrt(10)) * 0.09)
    assert (one.variant, one.n_selected, one.n_withheld, one.per_group) == ("released", 9, 1, {"g": 1.0})


def test_released_averages_the_groups() -> None:
    """g: 1/2 * 1/2 * 1, h: 1/2 * 1/2 * -1/2; k has one side and is no group of the mean."""
    rows = [row("a", "g", 1, "m", "m"), row("b", "g", 0, "m"), row("c", "h", 0, "m", "m"), row("d", "h", 0.5, "m")]
    assert found("released", [*rows, row("e", "k", 1, "m", "m")]).advantage == pytest.approx((0.25 - 0.125) / 2)


def test_released_interval_by_hand() -> None:
    """O+ {1, 0}, O- {1, 0}: s^2 = 5/12, factor 1/4: Var A = 1/16 * 5/12 * (1/2 + 1/2), t with 2."""
    rows = [row("a", "g", 1, "m", "m"), row("b", "g", 0, "m", "m"), row("c", "g", 1, "m"), row("d", "g", 0, "m")]
    one = found("released", rows)
    half = 4.302653 * 0.8 * (1 - 1 / math.sqrt(3)) * math.sqrt(5 / 192)
    assert (one.low, one.high) == (pytest.approx(-half, rel=1e-6), pytest.approx(half, rel=1e-6))


def test_causal_compares_kept_with_withheld_only() -> None:
    """Kept {1, 1, 0}, withheld {0}: 2/3. N+ 3: V = 0.8 * 1/2 * 2/3. Who was not selected says nothing."""
    rows = [kept("a", "g", 1), kept("b", "g", 1), kept("c", "g", 0), dropped("d", "g", 0)]
    one = found("causal", [*rows, row("e", "g", 1, "m"), row("f", "g", 1, "m")])
    assert one == found("causal", rows)
    assert one.value == pytest.approx(0.8 * 0.5 * 2 / 3)
    assert (one.n_selected, one.n_withheld, one.low) == (3, 1, None)  # one withheld rollout has no variance


def test_causal_weighs_by_the_inverse_propensity() -> None:
    """Kept: 1 by 1/0.9, 0 by 2; withheld: 1 by 10, 0 by 2."""
    rows = [kept("a", "g", 1, 0.9), kept("b", "g", 0, 0.5), dropped("c", "g", 1, 0.9), dropped("d", "g", 0, 0.5)]
    assert found("causal", rows).per_group == {"g": pytest.approx((1 / 0.9) / (1 / 0.9 + 2) - 10 / 12)}


def test_causal_averages_groups_by_uses_over_the_chance_of_support() -> None:
    """g: 2 uses, P 1/2, weight 4, Delta 1. h: 4 uses, P 7/8, weight 32/7, Delta -1/2. A = 0.2."""
    rows = [kept("a", "g", 1), dropped("b", "g", 0)]
    rows += [kept("c", "h", 0), kept("d", "h", 0), dropped("e", "h", 0), dropped("f", "h", 1)]
    assert found("causal", [*rows, kept("g", "k", 1)]).advantage == pytest.approx(0.2)


def test_causal_interval_by_hand() -> None:
    """Kept {1, 0}, withheld {0, 0}: A 1/2, s1^2 = (1/2 + 1/4)/2, s0^2 = (0 + 1/4)/2, Var = 3/16 + 1/16, t with 2."""
    one = found("causal", [kept("a", "g", 1), kept("b", "g", 0), dropped("c", "g", 0), dropped("d", "g", 0)])
    scale = 0.8 * (1 - 1 / math.sqrt(3))
    assert one.low == pytest.approx(scale * (0.5 - 4.302653 * 0.5), rel=1e-6)
    assert one.high == pytest.approx(scale * (0.5 + 4.302653 * 0.5), rel=1e-6)


def test_causal_needs_recorded_chances_on_both_sides() -> None:
    for rows in (
        [kept("a", "g", 1), kept("b", "g", 0)],
        [dropped("a", "g", 1), dropped("b", "g", 0)],
        [row("a", "g", 1, "m", "m"), row("b", "g", 0, "m", "m", injected=(), withheld=("m",))],  # none recorded
        [kept("a", "g", 1, 1.0), row("b", "g", 0, "m")],  # kept for certain: not randomised
        [kept("a", "g", 1), dropped("b", "h", 0)],  # never both in one group
    ):
        one = found("causal", rows)
        assert (one.value, one.advantage, one.low, one.n_selected, one.n_withheld) == (None, None, None, 0, 0)


@pytest.mark.parametrize("variant", OUTCOME_BASED)
def test_equal_outcomes_are_not_certain(variant: str) -> None:
    one = found(variant, [kept("a", "g", 1), kept("b", "g", 1), dropped("c", "g", 1), dropped("d", "g", 1)])
    assert one.value == 0.0 and one.low is not None and one.low < -0.1


def test_a_chance_beyond_one_is_corruption() -> None:
    with pytest.raises(CorruptionError, match=r"rollout a kept m with probability 1\.5"):
        found("paper", [kept("a", "g", 1, 1.5)])


# ── plain loops ───────────────────────────────────────────────────────────────────────────────


class Reference(NamedTuple):
    advantage: float | None
    n_plus: int
    n_minus: int
    half: float | None
    per_group: dict[str, float]


def sides(rows: Sequence[LedgerRow], known: Entry, variant: str) -> dict[str, tuple[list[Any], list[Any]]]:
    """Per group the (outcome, chance) of both sides: used and not used; for causal kept and withheld."""
    name = known.entry_id
    wrote = [r for r in rows if name in r.created or r.rollout_id in known.source_episodes]
    first = min(((r.round, r.wave) for r in wrote), default=None)
    makers = {r.rollout_id for r in wrote if (r.round, r.wave) == first}
    out: dict[str, tuple[list[Any], list[Any]]] = {}
    for r in rows:
        if r.select_fallback or name not in [c.entry_id for c in r.candidates] or r.rollout_id in makers:
            continue
        chance = r.propensities.get(name, 1.0)
        if variant != "causal":
            plus = name in r.selected and name in r.injected
        elif name in r.selected and 0 < chance < 1:
            plus = name not in r.withheld
        else:
            continue
        out.setdefault(r.group, ([], []))[0 if plus else 1].append((r.episode_return, chance))
    return out


def mean(values: Sequence[float], weights: Sequence[float]) -> float:
    return sum(w * v for v, w in zip(values, weights, strict=True)) / sum(weights)


def reference(rows: Sequence[LedgerRow], known: Entry, variant: str) -> Reference:
    both = {g: s for g, s in sides(rows, known, variant).items() if s[0] and s[1]}
    if not both:
        return Reference(None, 0, 0, None, {})
    n_plus, n_minus = (sum(len(s[k]) for s in both.values()) for k in (0, 1))
    deltas, shares, spreads = {}, {}, {}
    for g, (plus, minus) in both.items():
        chances = [p for _, p in plus + minus]
        ones = [1 / p if variant == "causal" else 1.0 for _, p in plus]
        zeros = [1 / (1 - p) if variant == "causal" else 1.0 for _, p in minus]
        deltas[g] = mean([r for r, _ in plus], ones) - mean([r for r, _ in minus], zeros)
        spreads[g] = [sum(w**2 for w in side) / sum(side) ** 2 for side in (ones, zeros)]
        rho = len(plus) / len(chances)
        support = 1 - math.prod(chances) - math.prod(1 - p for p in chances)
        shares[g] = {"paper": rho, "released": rho * (1 - rho) / len(both)}.get(variant, len(chances) / (support or 1))
    if variant == "causal":
        shares = {g: share / sum(shares.values()) for g, share in shares.items()}
    advantage = sum(shares[g] * deltas[g] for g in both)
    squares = [0.0, 0.0]
    for plus, minus in both.values():
        level = mean([r for r, _ in plus], [1 / p if variant == "causal" else 1.0 for _, p in plus])
        squares[0] += sum((r - level) ** 2 for r, _ in plus)
        level = level - advantage if variant == "causal" else sum(r for r, _ in minus) / len(minus)
        squares[1] += sum((r - level) ** 2 for r, _ in minus)
    if variant == "causal":
        variances = [(squares[0] + 0.25) / (n_plus - len(both) + 1), (squares[1] + 0.25) / n_minus]
        wide = min(n_plus, n_minus)
        quantile = float(student_t.ppf(0.975, wide)) if wide > 1 else None
    else:
        freedom = n_plus + n_minus - 2 * len(both)
        variances = [(sum(squares) + 0.25) / (freedom + 1)] * 2 if freedom else [math.nan] * 2
        quantile = float(student_t.ppf(0.975, freedom)) if freedom else None
    error = math.sqrt(sum(shares[g] ** 2 * (variances[0] * spreads[g][0] + variances[1] * spreads[g][1]) for g in both))
    return Reference(advantage, n_plus, n_minus, None if quantile is None else quantile * error, deltas)


@pytest.mark.parametrize("variant", OUTCOME_BASED)
@settings(max_examples=100, deadline=None)
@given(made=ledgers())
def test_equals_plain_loops(variant: str, made: Made) -> None:
    rows, entries = made
    for known, one in zip(entries, attribute(rows, entries, PARAMS[variant]).values(), strict=True):
        expected = reference(rows, known, variant)
        assert (one.n_selected, one.n_withheld, one.variant) == (expected.n_plus, expected.n_minus, variant)
        assert one.per_group == pytest.approx(expected.per_group, abs=1e-12)
        if expected.advantage is None:
            assert one.value is None and one.low is None and one.advantage is None
            continue
        scale = PARAMS[variant].alpha[known.level] * (1 - 1 / math.sqrt(1 + expected.n_plus))
        assert one.advantage == pytest.approx(expected.advantage, abs=1e-12)
        assert one.value == pytest.approx(scale * expected.advantage, abs=1e-12)
        if expected.half is None:
            assert one.low is None and one.high is None
        else:
            assert one.low is not None and one.high is not None and one.value is not None
            assert one.high - one.value == pytest.approx(scale * expected.half, abs=1e-9)
            assert one.value - one.low == pytest.approx(scale * expected.half, abs=1e-9)


# ── what holds of all ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=40, deadline=None)
@given(made=ledgers(), random=st.randoms(use_true_random=False))
def test_order_and_names_change_no_bit(variant: str, made: Made, random: Any) -> None:
    rows, entries = made
    expected = attribute(rows, entries, PARAMS[variant])
    mixed = random.sample(rows, len(rows))
    assert attribute(mixed, entries, PARAMS[variant]) == expected
    names = {"g": "zz", "h": "a", "k": "mm"}
    renamed = attribute([r.model_copy(update={"group": names[r.group]}) for r in mixed], entries, PARAMS[variant])
    for entry_id, one in expected.items():
        per_group = {names[group]: delta for group, delta in one.per_group.items()}
        assert renamed[entry_id] == one.model_copy(update={"per_group": per_group})


@pytest.mark.parametrize("variant", OUTCOME_BASED)
@given(st.lists(st.sampled_from((0.0, 0.5, 1.0)), min_size=1, max_size=8))
def test_always_in_the_context_is_no_evidence(variant: str, outcomes: list[float]) -> None:
    one = found(variant, [kept(f"r{n}", "g", outcome) for n, outcome in enumerate(outcomes)])
    assert (one.value, one.low, one.high, one.n_selected) == (None, None, None, 0)


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=50, deadline=None)
@given(made=ledgers())
def test_every_group_twice(variant: str, made: Made) -> None:
    """`paper` adds groups up, hence doubles; the two means stay."""
    rows = [r.model_copy(update={"created": ()}) for r in made[0]]
    entries = [entry(name) for name in NAMES]
    twins = [r.model_copy(update={"rollout_id": f"{r.rollout_id}+", "group": f"{r.group}+"}) for r in rows]
    once, twice = (attribute(some, entries, PARAMS[variant]) for some in (rows, rows + twins))
    for name in NAMES:
        before, after = once[name], twice[name]
        assert (after.n_selected, after.n_withheld) == (2 * before.n_selected, 2 * before.n_withheld)
        assert (after.advantage is None) == (before.advantage is None)
        if before.advantage is not None:
            factor = 2.0 if variant == "paper" else 1.0
            assert after.advantage == pytest.approx(factor * before.advantage, abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(ledgers())
def test_in_one_group_released_is_paper_made_smaller(made: Made) -> None:
    """A_released = (1 - rho) A_paper; over several groups of different signs neither need be the larger."""
    rows = [r.model_copy(update={"group": "g"}) for r in made[0]]
    ours, theirs = (attribute(rows, made[1], PARAMS[name]) for name in ("paper", "released"))
    for name, one in ours.items():
        if one.advantage is None:
            assert theirs[name].advantage is None
        else:
            rho = one.n_selected / (one.n_selected + one.n_withheld)
            assert theirs[name].advantage == pytest.approx((1 - rho) * one.advantage, abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(ledgers())
def test_causal_looks_at_no_rollout_that_did_not_select_the_entry(made: Made) -> None:
    rows, entries = made
    expected = attribute(rows, entries, PARAMS["causal"])
    for name in NAMES:
        flipped = [
            r if name in r.selected else r.model_copy(update={"episode_return": 1 - r.episode_return}) for r in rows
        ]
        assert attribute(flipped, entries, PARAMS["causal"])[name] == expected[name]


def test_a_candidate_listed_twice_counts_once() -> None:
    once = [kept("a", "g", 1), dropped("b", "g", 0)]
    twice = [r.model_copy(update={"candidates": r.candidates * 2, "selected": r.selected * 2}) for r in once]
    for variant in VARIANTS:
        assert found(variant, twice) == found(variant, once)
    assert np.isfinite(found("causal", once).value or math.nan)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_selected_entry_that_was_no_candidate_touches_no_other(variant: str) -> None:
    """Neither an unknown one nor one that stood in another rollout's list."""
    entries = [entry("m"), entry("z")]
    rows = [row("a", "g", 1, "m z", "m", propensities={"m": 0.5}), dropped("b", "g", 0), row("c", "g", 0, "z")]
    spoilt = [
        rows[0],
        rows[1].model_copy(update={"selected": ("ghost", "m", "z"), "injected": ("ghost", "z")}),
        rows[2],
    ]
    assert attribute(spoilt, entries, PARAMS[variant]) == attribute(rows, entries, PARAMS[variant])
