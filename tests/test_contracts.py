"""Data contracts: what passes, what is named when it fails."""

from __future__ import annotations

from pathlib import Path

import pytest
from memory_cases import row, tip, wave

from opd_evolver.contracts import ContractError, ContractReport, check_examples, check_ledger, check_memory, enforce
from opd_evolver.errors import CorruptionError
from opd_evolver.memory.segment import LedgerSegment
from opd_evolver.memory.snapshot import write_snapshot
from opd_evolver.memory.store import Memory
from opd_evolver.records import Example, canonical_json


def snapshot(folder: Path, *segments: LedgerSegment) -> Path:
    with Memory.open(folder / "live") as memory:
        for segment in segments:
            memory.commit(segment)
        write_snapshot(memory, folder / "memory", 1, "run")
    return folder / "memory"


def example(name: str, **changes: object) -> Example:
    base = Example(
        example_id=name,
        ability="act",
        rollout_id="r",
        group="g",
        student_ids=(1, 2, 3),
        teacher_ids=(1, 9, 9, 2, 3),
        hindsight_spans=((1, 3),),
        max_new_tokens=8,
    )
    return base.model_copy(update=changes)


def written(folder: Path, *examples: Example) -> Path:
    (folder / "examples.jsonl").write_text("".join(canonical_json(one) + "\n" for one in examples))
    return folder


def test_sound_data_passes(tmp_path: Path) -> None:
    folder = snapshot(tmp_path, wave(0), wave(1))
    reports = [
        check_memory(folder),
        check_ledger(folder),
        check_examples(written(tmp_path, example("a"), example("b"))),
    ]
    assert [(one.name, one.passed, one.n_rows) for one in reports] == [
        ("memory", True, 8),
        ("ledger", True, 4),
        ("examples", True, 2),
    ]
    enforce(*reports)


def test_nothing_is_no_failure(tmp_path: Path) -> None:
    folder = snapshot(tmp_path)
    assert check_memory(folder).passed and check_ledger(folder).passed and check_examples(written(tmp_path)).passed


def test_memory_names_the_entry(tmp_path: Path) -> None:
    folder = snapshot(
        tmp_path,
        LedgerSegment(
            lineage="x",
            round=1,
            wave=0,
            entries=(
                tip("late", "4").model_copy(update={"success_count": 3}),
                tip("x", "1", domain=" "),
                tip("ok", "1"),
            ),
        ),
    )
    failures = " | ".join(check_memory(folder).failures)
    assert "usage_count and success_count: expect_column_pair_values_a_to_be_greater_than_b" in failures
    assert "domain: expect_column_values_to_match_regex" in failures and tip("x", "1", domain=" ").entry_id in failures
    assert tip("ok", "1").entry_id not in failures


def test_ledger_names_the_rollout(tmp_path: Path) -> None:
    late = tip("late", "4")
    broken = row("too-good").model_copy(update={"episode_return": 1.5})
    forged = row("forged", injected=[late.entry_id]).model_copy(update={"selected": ()})
    folder = snapshot(
        tmp_path, LedgerSegment(lineage="x", round=1, wave=0, rows=(row("fine"), broken, forged), entries=(late,))
    )
    report = check_ledger(folder)
    assert [failure.split(":")[0] for failure in report.failures] == [
        "episode_return",
        "injected_were_selected_and_kept",
    ]
    assert "'too-good'" in report.failures[0] and "'forged'" in report.failures[1]
    with pytest.raises(ContractError, match=r"ledger: episode_return.*'too-good'") as caught:
        enforce(report)
    assert caught.value.exit_code == 1
    assert check_ledger(folder, round=9).passed


@pytest.mark.parametrize(
    ("changes", "column"),
    [
        ({"example_id": ""}, "example_id"),
        ({"student_ids": (1, 2, 4)}, "student_is_teacher_without_hindsight"),
        ({"hindsight_spans": ((3, 99),)}, "spans_lie_in_teacher"),
        ({"hindsight_spans": (), "teacher_ids": (1, 2, 3)}, "n_hindsight_tokens"),
        ({"rollout_id": " "}, "rollout_id"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"example_id": "good"}, "example_id"),
    ],
)
def test_examples_name_the_column(tmp_path: Path, changes: dict[str, object], column: str) -> None:
    report = check_examples(written(tmp_path, example("good"), example("bad", **changes)))
    assert not report.passed
    assert column in [failure.split(":")[0] for failure in report.failures]


def test_the_empty_arm_needs_no_hindsight(tmp_path: Path) -> None:
    blind = example("a", hindsight_spans=(), teacher_ids=(1, 2, 3))
    assert check_examples(written(tmp_path, blind), hindsight="empty").passed


def test_unreadable_examples_are_corruption(tmp_path: Path) -> None:
    (tmp_path / "examples.jsonl").write_text('{"example_id": 3}\n')
    with pytest.raises(CorruptionError, match="opd resume"):
        check_examples(tmp_path)
    with pytest.raises(CorruptionError):
        check_examples(tmp_path / "none.jsonl")


def test_a_failed_report_without_words_still_stops() -> None:
    with pytest.raises(ContractError):
        enforce(ContractReport(name="memory", passed=False, n_rows=1, failures=(), seconds=0.0))
