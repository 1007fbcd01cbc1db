"""V(m): hand-worked cases, an independent reference written from the formulas, and what must not matter."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opd_evolver.errors import CorruptionError, SetupError
from opd_evolver.memory import importer
from opd_evolver.memory.attribution import VARIANTS, attribute, creators, sure
from opd_evolver.memory.edits import Edit, apply
from opd_evolver.memory.segment import LedgerSegment
from opd_evolver.memory.store import Memory
from opd_evolver.params import AttributionParams
from opd_evolver.records import Attribution, Entry, LedgerRow
from tests.attribution_cases import entry, ledgers, row

PARAMS = AttributionParams()


def value_of(rows: Sequence[LedgerRow], *entries: Entry) -> Attribution:
    return attribute(rows, entries, PARAMS)[entries[0].entry_id]


# ── hand-worked ───────────────────────────────────────────────────────────────────────────────


def test_one_group() -> None:
    """3 of 4 selected: rho 3/4, Delta 1 - 0 = 1, A 0.75, N+ 3, gamma 1 - 1/2, tip 0.8: V = 0.3."""
    rows = [row("a", "g", 1, "m", "m"), row("b", "g", 1, "m", "m"), row("c", "g", 1, "m", "m"), row("d", "g", 0, "m")]
    found = value_of(rows, entry("m"))
    assert found.value == pytest.approx(0.3)
    assert found.advantage == pytest.approx(0.75)
    assert (found.n_selected, found.n_withheld, found.per_group) == (3, 1, {"g": 1.0})


def test_groups_add_up_and_one_sided_groups_are_skipped() -> None:
    """g: rho 1/2, Delta 1; h: rho 1/2, Delta -0.5; k has no O-, l no O+. A = 0.25, N+ = 2, gamma = 1 - 1/sqrt 3."""
    rows = [
        row("a", "g", 1, "m", "m"),
        row("b", "g", 0, "m"),
        row("c", "h", 0, "m", "m"),
        row("d", "h", 0.5, "m"),
        row("e", "k", 1, "m", "m"),
        row("f", "l", 1, "m"),
    ]
    found = value_of(rows, entry("m", "skill"))
    assert found.value == pytest.approx(1.0 * (1 - 1 / math.sqrt(3)) * 0.25)
    assert found.per_group == {"g": 1.0, "h": -0.5}
    assert (found.n_selected, found.n_withheld) == (2, 2)


def test_absence_from_tasks_about_something_else_may_be_no_evidence() -> None:
    """Task t asks for m: 2 of 3 selected (one withheld), Delta 1 - 0. Task u is about something else and easy."""
    asked = [
        row("a", "g", 1, "m", "m", task_id="t"),
        row("b", "g", 1, "m", "m", task_id="t"),
        row("c", "g", 0, "m", "m", task_id="t", injected=(), withheld=("m",)),
    ]
    others = [row(f"o{n}", "g", 1, "m", task_id="u") for n in range(5)]
    assert value_of([*asked, *others], entry("m")).per_group == {"g": pytest.approx(1 - 5 / 6)}
    only = PARAMS.model_copy(update={"asked_only": True})
    found = attribute([*asked, *others], [entry("m")], only)["m"]
    assert found == attribute(asked, [entry("m")], PARAMS)["m"]
    assert (found.n_selected, found.n_withheld, found.per_group) == (2, 1, {"g": 1.0})


def test_recent_rounds_are_the_evidence_where_there_is_any() -> None:
    """m helped in round 1 and harms in round 2; n was last seen in round 1."""
    rows = [
        *(row(f"a{n}", "g", 1, "m n", "m n", round=1) for n in range(2)),
        row("b", "g", 0, "m n", round=1),
        row("c", "g", 0, "m", "m", round=2),
        row("d", "g", 1, "m", round=2),
    ]
    entries = [entry("m"), entry("n")]
    every = attribute(rows, entries, PARAMS)
    latest = attribute(rows, entries, PARAMS.model_copy(update={"rounds": 1}))
    assert latest["m"] == attribute(rows[3:], entries, PARAMS)["m"]
    assert (latest["m"].value or 0) < 0 < (latest["n"].value or 0) and latest["n"] == every["n"]
    assert attribute(rows, entries, PARAMS.model_copy(update={"rounds": 2})) == every
    # A refused round's ledger is put away: with its number missing, two rounds are two all the same.
    after_refusal = [one.model_copy(update={"round": 3}) if one.round == 2 else one for one in rows]
    assert attribute(after_refusal, entries, PARAMS.model_copy(update={"rounds": 2})) == every
    assert attribute(after_refusal, entries, PARAMS.model_copy(update={"rounds": 1})) == latest
    assert attribute([], entries, PARAMS.model_copy(update={"rounds": 1}))["m"].value is None


def test_a_harmful_tool_is_negative() -> None:
    """rho 1/2, Delta -1, N+ 1, gamma 1 - 1/sqrt 2, tool 1.2."""
    found = value_of([row("a", "g", 0, "m", "m"), row("b", "g", 1, "m")], entry("m", "tool"))
    assert found.value == pytest.approx(1.2 * (1 - 1 / math.sqrt(2)) * -0.5)


def test_reliably_selected_memory_is_not_punished() -> None:
    """9 of 10, Delta 1: A = 0.9 (the released code's rho(1-rho)Delta would be 0.09)."""
    rows = [row(f"a{i}", "g", 1, "m", "m") for i in range(9)] + [row("b", "g", 0, "m")]
    assert value_of(rows, entry("m")).advantage == pytest.approx(0.9)


def test_selected_but_withheld_is_the_other_side() -> None:
    """Randomised inclusion gives O-: rho 1/2, Delta 1."""
    rows = [row("a", "g", 1, "m", "m"), row("b", "g", 0, "m", "m", injected=(), withheld=("m",))]
    found = value_of(rows, entry("m"))
    assert (found.advantage, found.n_selected, found.n_withheld) == (pytest.approx(0.5), 1, 1)


def test_interval_by_hand() -> None:
    """O+ {1, 0}, O- {1, 0}: s^2 = (0.5 + 0.5 + 0.25)/(2 + 1) = 5/12, Var A = 1/4 * 5/12 * (1/2 + 1/2), t with 2."""
    rows = [row("a", "g", 1, "m", "m"), row("b", "g", 0, "m", "m"), row("c", "g", 1, "m"), row("d", "g", 0, "m")]
    found = value_of(rows, entry("m"))
    half = 4.302653 * 0.8 * (1 - 1 / math.sqrt(3)) * math.sqrt(5 / 48)
    assert (found.value, found.low, found.high) == (
        pytest.approx(0.0),
        pytest.approx(-half, rel=1e-6),
        pytest.approx(half, rel=1e-6),
    )


def test_interval_is_none_where_no_cell_has_two() -> None:
    found = value_of([row("a", "g", 1, "m", "m"), row("b", "g", 0, "m")], entry("m"))
    assert found.value is not None
    assert (found.low, found.high) == (None, None)


def test_sure_is_what_the_interval_leaves_no_doubt_about() -> None:
    won = [row(f"w{i}", "g", 1, "helps harms luck", "helps luck") for i in range(6)]
    lost = [row(f"l{i}", "g", 0, "helps harms luck", "harms luck") for i in range(6)]
    one_each = [row("x", "h", 1, "luck few", "luck few"), row("y", "h", 0, "luck few")]
    # Outcomes that do not differ within a side have no variance; of three rollouts nothing is sure all the same.
    three = [row("p", "k", 1, "three", "three"), row("q", "k", 0, "three"), row("r", "k", 0, "three")]
    names = ("helps", "harms", "luck", "few", "three")
    found = attribute([*won, *lost, *one_each, *three], [entry(name) for name in names], PARAMS)
    assert found["three"].value is not None and found["three"].value > 0.01 and found["three"].low is not None
    assert found["few"].value is not None and found["few"].value > 0.01  # one win: a sign, and no interval
    told = sure(found)
    assert {*told} == {"helps", "harms"}
    assert told["helps"] == found["helps"] and (told["harms"].value or 0.0) < 0


# ── what is no evidence ───────────────────────────────────────────────────────────────────────


def test_no_evidence_is_none_never_zero() -> None:
    found = attribute([row("a", "g", 1, "m", "m")], [entry("m"), entry("never")], PARAMS)
    for name in ("m", "never"):
        assert (found[name].value, found[name].advantage, found[name].low, found[name].n_selected) == (
            None,
            None,
            None,
            0,
        )
    assert attribute([], [], PARAMS) == {}
    assert attribute([], [entry("m")], PARAMS)["m"].value is None


def test_fallback_rows_are_left_out() -> None:
    rows = [row("a", "g", 1, "m", "m"), row("b", "g", 0, "m")]
    spoilt = [*rows, row("c", "g", 0, "m", "m", select_fallback=True), row("d", "z", 0, "m", select_fallback=True)]
    assert value_of(spoilt, entry("m")) == value_of(rows, entry("m"))


@pytest.mark.parametrize("told_by", ["row", "entry"])
def test_the_rollout_that_created_an_entry_is_no_evidence(told_by: str) -> None:
    rows = [row("a", "g", 1, "m", "m"), row("b", "g", 0, "m")]
    maker = row("c", "g", 1, "m", "m", created=("m",) if told_by == "row" else ())
    known = entry("m", sources=("c",) if told_by == "entry" else ())
    assert value_of([*rows, maker], known) == value_of(rows, entry("m"))


def test_a_later_rewriter_is_evidence() -> None:
    """It had the entry in front of it, guessed right without it and wrote it again: that counts against the entry."""
    rows = [row("a", "g", 1, "m", "m", wave=2), row("b", "g", 0, "m", wave=2)]
    maker = row("c", "g", 1, "", created=("m",), wave=1)
    rewriter = row("d", "g", 1, "m", created=("m",), wave=2)
    found = value_of([*rows, maker, rewriter], entry("m", sources=("c", "d")))
    assert found.per_group == {"g": 0.5}
    assert found.n_withheld == 2
    # It does not become a creator where only recent rounds are evidence and the maker is not among them.
    later = [one.model_copy(update={"round": 3}) for one in (*rows, rewriter)]
    recent = PARAMS.model_copy(update={"rounds": 1})
    assert attribute([maker, *later], [entry("m", sources=("c", "d"))], recent)["m"] == found


@pytest.mark.parametrize(("sources", "round_"), [(("import:run-17",), 1), ((), 2)])
def test_who_writes_again_what_was_imported_is_evidence(sources: tuple[str, ...], round_: int) -> None:
    """Nobody wrote it before. Without a source: of an earlier version; the entry is older than the round."""
    rows = [
        row("a", "g", 1, "m", "m", round=round_),
        row("b", "g", 1, "m", "m", round=round_),
        row("c", "g", 1, "m", round=round_),
        row("d", "g", 0, "m", round=round_),
    ]
    expected = value_of(rows, entry("m", sources=sources))
    assert expected.value == pytest.approx(0.8 * (1 - 1 / math.sqrt(3)) * 0.25)
    again = [one.model_copy(update={"created": ("m",)}) if one.rollout_id == "c" else one for one in rows]
    assert value_of(again, entry("m", sources=(*sources, "c"))) == expected
    assert value_of(again, entry("m", sources=sources)) == expected


def test_an_imported_tip_is_worth_the_same_when_a_rollout_writes_it_again(tmp_path: Path) -> None:
    line = {"level": "tip", "domain": "d", "scope": "s", "content": {"trigger": "late", "text": "4"}}
    (tmp_path / "file").write_text(json.dumps(line))
    waiting = [Edit(kind="import", proposals=importer.read(tmp_path / "file").proposals)]
    found = []
    for again in (True, False):
        with Memory.open(tmp_path / str(again)) as memory:
            apply(memory, waiting, 1, "run")
            [m] = memory.entries()
            won = row("c", "g", 1, m.entry_id, created=(m.entry_id,) if again else ())
            used = [row(name, "g", 1, m.entry_id, m.entry_id) for name in "ab"]
            wrote = (m.model_copy(update={"source_episodes": ("c",)}),) if again else ()
            rows = (*used, won, row("d", "g", 0, m.entry_id))
            memory.commit(LedgerSegment(lineage="run", round=1, wave=1, rows=rows, entries=wrote))
            found.append(value_of(memory.ledger.rows(), *memory.entries()))
    assert found[0] == found[1] and found[0].value == pytest.approx(0.0845, abs=1e-4)


def test_the_sources_that_a_merge_inherits_created_it() -> None:
    """Also where one of the merged was imported."""
    rows = [row("a", "g", 1, "m", "m", wave=3), row("b", "g", 0, "m", wave=3)]
    merging = row("k", "maintain", 0, "x y", created=("m",), wave=2)
    found = creators([*rows, row("c", "g", 1, "", wave=1), merging], [entry("m", sources=("c", "import:run-17"))])
    assert found == {("c", "m")}


def test_unknown_candidates_and_levels_are_errors() -> None:
    with pytest.raises(CorruptionError, match="no entry has"):
        attribute([row("a", "g", 1, "ghost", "ghost")], [entry("m")], PARAMS)
    with pytest.raises(SetupError, match="no alpha for tip"):
        attribute([], [entry("m")], PARAMS.model_copy(update={"alpha": {"skill": 1.0}}))
    with pytest.raises(SetupError, match="variant"):
        attribute([], [], PARAMS.model_copy(update={"variant": "nonsense"}))
    assert set(VARIANTS) == {"paper", "released", "causal", "uniform"}


# ── an independent reference ──────────────────────────────────────────────────────────────────


def reference(rows: Sequence[LedgerRow], known: Entry) -> tuple[float | None, int]:
    """V and N+ of one entry by plain loops, written from the formulas."""
    wrote = [r for r in rows if known.entry_id in r.created or r.rollout_id in known.source_episodes]
    first = min(((r.round, r.wave) for r in wrote), default=None)
    makers = {r.rollout_id for r in wrote if (r.round, r.wave) == first}
    total, n_plus = 0.0, 0
    for group in sorted({r.group for r in rows}):
        plus, minus = [], []
        for r in rows:
            shown = known.entry_id in [c.entry_id for c in r.candidates]
            if r.group != group or r.select_fallback or not shown or r.rollout_id in makers:
                continue
            used = known.entry_id in r.selected and known.entry_id in r.injected
            (plus if used else minus).append(r.episode_return)
        if plus and minus:
            rho = len(plus) / (len(plus) + len(minus))
            total += rho * (sum(plus) / len(plus) - sum(minus) / len(minus))
            n_plus += len(plus)
    if n_plus == 0:
        return None, 0
    return PARAMS.alpha[known.level] * (1 - 1 / math.sqrt(1 + n_plus)) * total, n_plus


@settings(max_examples=150, deadline=None)
@given(ledgers())
def test_equals_the_reference(made: tuple[list[LedgerRow], list[Entry]]) -> None:
    rows, entries = made
    found = attribute(rows, entries, PARAMS)
    for known in entries:
        value, n_plus = reference(rows, known)
        assert found[known.entry_id].n_selected == n_plus
        if value is None:
            assert found[known.entry_id].value is None
        else:
            assert found[known.entry_id].value == pytest.approx(value, abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(ledgers(), st.randoms(use_true_random=False))
def test_row_order_and_group_names_change_no_bit(made: tuple[list[LedgerRow], list[Entry]], random: Any) -> None:
    rows, entries = made
    expected = attribute(rows, entries, PARAMS)
    mixed = rows.copy()
    random.shuffle(mixed)
    assert attribute(mixed, entries, PARAMS) == expected
    names = {"g": "zz", "h": "a", "k": "mm"}
    renamed = attribute([r.model_copy(update={"group": names[r.group]}) for r in mixed], entries, PARAMS)
    for entry_id, one in expected.items():
        per_group = {names[group]: delta for group, delta in one.per_group.items()}
        assert renamed[entry_id] == one.model_copy(update={"per_group": per_group})
