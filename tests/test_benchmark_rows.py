"""Rows by kind of task, against hand-worked cases."""

from __future__ import annotations

import pytest

from opd_evolver.benchmark import rows
from opd_evolver.benchmark.results import COLUMNS, SeedResult, results
from opd_evolver.benchmark.results_csv import table
from opd_evolver.benchmark.results_page import page
from opd_evolver.benchmark.statistics import Outcome, Unit, ratio_interval, units_of
from opd_evolver.records import Entry, Task, TipContent


def tip(entry_id: str, key: str) -> Entry:
    content = TipContent(text="4", trigger=key)
    return Entry(entry_id=entry_id, domain="sql", scope="zora", content=content, created_round=1)


ENTRIES = [tip("good", "paid"), tip("bad", "late"), tip("fee", "fee")]
VALUES = {"good": 0.4, "bad": -0.2, "weak": 0.001, "unknown": None}


def outcome(n: int, success: bool, candidates: tuple[str, ...] = (), selected: tuple[str, ...] = ()) -> Outcome:
    return Outcome(
        task_id=f"t{n}",
        family=f"f{n % 3}",
        domain="sql",
        success=success,
        episode_return=float(success),
        steps=1,
        tokens=1,
        candidates=candidates,
        selected=selected,
    )


def task(n: int, **gold: object) -> Task:
    return Task(
        task_id=f"t{n}", domain="sql", scope="zora", family=f"f{n % 3}", split="deploy-test", text="", gold=gold
    )


def test_selection_is_judged_by_what_helped() -> None:
    shown = ("good", "bad", "weak", "unknown")
    units = rows.selection(
        [
            outcome(0, True, shown, ("good",)),  # right
            outcome(1, True, shown, ("good", "bad")),  # one too many
            outcome(2, True, shown, ("bad",)),  # wrong
            outcome(3, True, shown, ("unknown",)),  # no evidence: only the missed one counts
            outcome(4, True, ("unknown",), ("unknown",)),  # nothing to be judged
            outcome(5, True, shown, ("weak",)),  # below the threshold is no help
        ],
        VALUES,
        0.01,
    )
    assert [(one.numerator, one.denominator) for one in units] == [(2, 2), (2, 3), (0, 2), (0, 1), (0, 0), (0, 2)]
    assert ratio_interval(units, samples=50).mean == pytest.approx(4 / 10)
    # With a threshold of nothing, V must still be above it.
    (zero,) = rows.selection([outcome(0, True, ("good", "bad"), ("bad",))], {"good": 0.4, "bad": 0.0}, 0.0)
    assert (zero.numerator, zero.denominator) == (0, 2)


def test_kinds_come_from_gold_and_from_what_was_found() -> None:
    tasks = [task(0, headroom=["drift", "wording"]), task(1, home="skill"), task(2, home="tip"), task(3)]
    found = rows.kinds(tasks, [outcome(n, True, ("a",) * n) for n in range(4)], n_candidates=3)
    assert found == {
        "every": frozenset({"t0", "t1", "t2", "t3"}),
        "budget": frozenset({"t3"}),
        "drift": frozenset({"t0"}),
        "home skill": frozenset({"t1"}),
        "home tip": frozenset({"t2"}),
        "wording": frozenset({"t0"}),
    }
    assert rows.kinds([task(3)], [outcome(3, True)], n_candidates=0) == {"every": frozenset({"t3"})}


def test_a_row_holds_the_tasks_of_its_kind_only() -> None:
    columns = {
        "base_alone": [outcome(n, False) for n in range(6)],
        "base_memory": [outcome(n, n < 2, ("good", "bad"), ("bad",)) for n in range(6)],
        "last_alone": [outcome(n, True) for n in range(6)],
        "last_memory": [outcome(n, n < 4, ("good", "bad"), ("good",)) for n in range(6)],
    }
    selected = rows.selections(columns, [task(n, subs=[["late"]]) for n in range(6)], ENTRIES, VALUES, 0.01)
    row = rows.rows(columns, {"drift": frozenset({"t0", "t3", "t4", "t5"})}, selected, 50)["drift"]
    assert row.n_tasks == (4,)
    assert {name: one.mean for name, one in row.success.items()} == {
        "base_alone": 0.0,
        "base_memory": 0.25,
        "last_alone": 1.0,
        "last_memory": 0.5,
    }
    assert row.gain.mean == pytest.approx(0.25)
    assert (row.select["base"].mean, row.select["last"].mean, row.select_gain.mean) == (0.0, 1.0, 1.0)
    # Nothing helpful is about what is asked: whatever was chosen was not needed.
    assert (row.needed["base"].mean, row.needed["last"].mean, row.needed_gain.mean) == (0.0, 0.0, 0.0)


def test_selection_may_be_held_against_what_a_task_asks() -> None:
    asks = rows.asked([task(0, subs=[["late", "max"], ["fee"]]), task(1)], ENTRIES)
    assert asks == {"t0": frozenset({"bad", "fee"})}
    values = {**VALUES, "fee": 0.5}
    units = rows.selection(
        [outcome(0, True, ("good", "bad", "fee"), ("good", "fee")), outcome(1, True, ("good",), ("good",))],
        values,
        0.01,
        asks,
    )
    # `good` helps, but is about something else; what a task asks is unknown where its gold does not say.
    assert [(one.numerator, one.denominator) for one in units] == [(2, 3), (0, 0)]


def test_kinds_are_pooled_over_seeds_that_met_other_tasks() -> None:
    def seed(number: int, ids: set[str]) -> SeedResult:
        every = tuple(outcome(n, n % 2 == 0) for n in range(6))
        units = tuple(Unit(task_id=one.task_id, family=one.family, domain="sql", numerator=1.0) for one in every)
        return SeedResult(
            seed=number,
            lineage=f"s{number}",
            columns=dict.fromkeys(COLUMNS, units_of(every)),
            digests=dict.fromkeys(("base", "weights", "entries", "ledger"), "0" * 64),
            kinds={"drift": frozenset(ids)},
            selection=dict.fromkeys(("base", "last", "base needed", "last needed"), units),
            written={1: rows.Written(n_entries=9, n_with_evidence=3, n_helpful=2, median_value=0.25)},
        )

    found = results([seed(0, {"t0", "t1"}), seed(1, {"t2", "t4", "t5"})], samples=50)
    kind = found.kinds["drift"]
    assert kind.n_tasks == (2, 3)
    assert kind.success["base_alone"].mean == pytest.approx(3 / 5) and kind.gain.mean == 0.0
    assert kind.gain.n_tasks == 5, "what is of the kind in no seed is left out"
    text = page(found, title="T", command="c", measured=[(0, {"date": "d"})], curves="x.svg")
    assert "| drift | 2, 3 | 0.600 [" in text and "| 1 | 9; 2 of 3, +0.250 | 9; 2 of 3, +0.250 |" in text
    assert "drift,selection F1 last - base,,,0.0" in table(found)
