"""Data contracts between the two loops, by Great Expectations: memory, ledger and example sets.

Once a round, on pandas frames in an ephemeral context; nothing is written or sent. A failed
expectation stops the round before anything is trained or promoted.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from opd_evolver.errors import CorruptionError, OpdError
from opd_evolver.memory.levels import embed_text
from opd_evolver.memory.snapshot import read_entries, read_rows, verify
from opd_evolver.records import ABILITIES, LEVELS, SCHEMA_VERSION, Entry, Example, LedgerRow, Record

Expectations = Any
N_NAMED = 5
MAX_TEXT_CHARACTERS = 20_000
MAX_SELECTED = 20


class ContractError(OpdError):
    """A contract failed: the round stops, the champion stays."""


class ContractReport(Record):
    """What one contract found.

    Attributes:
        name: memory, ledger or examples.
        passed: whether every expectation held.
        n_rows: rows looked at.
        failures: column, expectation and the ids of the first rows that break it.
        seconds: how long it took, imports apart.
    """

    name: str
    passed: bool
    n_rows: int
    failures: tuple[str, ...]
    seconds: float


def check_memory(snapshot_folder: Path) -> ContractReport:
    """Entries of a snapshot: ids unique, levels known, text present, counts and retirement consistent.

    Raises:
        CorruptionError: the snapshot does not match its own digests.
    """
    verify(snapshot_folder)
    gxe = _expectations()
    started = time.monotonic()
    entries = read_entries(snapshot_folder)
    suite = [
        *_id_rules(gxe, "entry_id"),
        gxe.ExpectColumnValuesToBeInSet(column="schema_version", value_set=[SCHEMA_VERSION]),
        gxe.ExpectColumnValuesToBeInSet(column="level", value_set=list(LEVELS)),
        gxe.ExpectColumnValuesToMatchRegex(column="domain", regex=r"\S"),
        gxe.ExpectColumnValueLengthsToBeBetween(column="text", min_value=1, max_value=MAX_TEXT_CHARACTERS),
        gxe.ExpectColumnValuesToBeBetween(column="created_round", min_value=0),
        gxe.ExpectColumnValuesToBeBetween(column="usage_count", min_value=0),
        gxe.ExpectColumnValuesToBeBetween(column="success_count", min_value=0),
        gxe.ExpectColumnPairValuesAToBeGreaterThanB(column_A="usage_count", column_B="success_count", or_equal=True),
        _true(gxe, "retired_with_round_and_operation"),
    ]
    return _validate("memory", [_entry_columns(entry) for entry in entries], "entry_id", suite, started)


def check_ledger(snapshot_folder: Path, round: int | None = None) -> ContractReport:
    """Ledger rows of a snapshot: one per rollout, returns in [0, 1], what was injected was chosen and shown.

    Args:
        snapshot_folder: as `write_snapshot` wrote it.
        round: look at this round only.
    """
    gxe = _expectations()
    started = time.monotonic()
    suite = [
        *_id_rules(gxe, "rollout_id"),
        gxe.ExpectColumnValuesToBeInSet(column="schema_version", value_set=[SCHEMA_VERSION]),
        *(gxe.ExpectColumnValuesToMatchRegex(column=name, regex=r"\S") for name in ("task_id", "domain", "group")),
        gxe.ExpectColumnValuesToMatchRegex(column="policy_version", regex=r"\S"),
        gxe.ExpectColumnValuesToBeBetween(column="episode_return", min_value=0.0, max_value=1.0),
        gxe.ExpectColumnValuesToBeBetween(column="n_selected", min_value=0, max_value=MAX_SELECTED),
        gxe.ExpectColumnValuesToBeBetween(column="n_calls", min_value=0),
        _true(gxe, "selected_were_candidates"),
        _true(gxe, "injected_were_selected_and_kept"),
        _true(gxe, "logprobs_match_reply_tokens"),
        _true(gxe, "propensities_are_probabilities"),
    ]
    rows = read_rows(snapshot_folder, round)
    return _validate("ledger", [_row_columns(row) for row in rows], "rollout_id", suite, started)


def check_examples(path: Path, hindsight: str = "full") -> ContractReport:
    """Example sets: ids unique, abilities known, student equals teacher outside the hindsight.

    Args:
        path: examples.jsonl, or the folder that holds it.
        hindsight: the arm; `empty` allows teachers without hindsight.

    Raises:
        CorruptionError: missing or not lines of `Example`.
    """
    gxe = _expectations()
    started = time.monotonic()
    examples = _read_examples(path / "examples.jsonl" if path.is_dir() else path)
    suite = [
        *_id_rules(gxe, "example_id"),
        gxe.ExpectColumnValuesToBeInSet(column="schema_version", value_set=[SCHEMA_VERSION]),
        gxe.ExpectColumnValuesToBeInSet(column="ability", value_set=list(ABILITIES)),
        gxe.ExpectColumnValuesToMatchRegex(column="rollout_id", regex=r"\S"),
        gxe.ExpectColumnValuesToBeBetween(column="n_student_tokens", min_value=1),
        gxe.ExpectColumnValuesToBeBetween(column="max_new_tokens", min_value=1),
        gxe.ExpectColumnValuesToBeBetween(column="trust", min_value=0.0),
        _true(gxe, "spans_lie_in_teacher"),
        _true(gxe, "student_is_teacher_without_hindsight"),
    ]
    if hindsight == "full":
        suite.append(gxe.ExpectColumnValuesToBeBetween(column="n_hindsight_tokens", min_value=1))
    return _validate("examples", [_example_columns(example) for example in examples], "example_id", suite, started)


def enforce(*reports: ContractReport) -> None:
    """Stops the round when a contract failed.

    Raises:
        ContractError: names contract, column, expectation and rows.
    """
    failed = [f"{report.name}: {failure}" for report in reports for failure in report.failures]
    if failed or not all(report.passed for report in reports):
        raise ContractError(
            f"data contract failed: {'; '.join(failed)}",
            "every expectation to hold",
            "nothing was trained; look at the rows: opd memory show ID",
        )


# ── columns: nested records made flat, one row each ───────────────────────────────────────────


def _entry_columns(entry: Entry) -> dict[str, Any]:
    retired = entry.status == "retired"
    return {
        "entry_id": entry.entry_id,
        "schema_version": entry.schema_version,
        "level": entry.level,
        "domain": entry.domain,
        "scope": entry.scope,
        "text": embed_text(entry),
        "created_round": entry.created_round,
        "usage_count": entry.usage_count,
        "success_count": entry.success_count,
        "retired_with_round_and_operation": retired == (entry.retired_round is not None) == bool(entry.retired_by),
    }


def _row_columns(row: LedgerRow) -> dict[str, Any]:
    shown = {candidate.entry_id for candidate in row.candidates}
    kept = set(row.selected) - set(row.withheld)
    return {
        "rollout_id": row.rollout_id,
        "schema_version": row.schema_version,
        "task_id": row.task_id,
        "domain": row.domain,
        "group": row.group,
        "policy_version": row.policy_version,
        "episode_return": row.episode_return,
        "n_selected": len(row.selected),
        "n_calls": len(row.calls),
        "selected_were_candidates": set(row.selected) <= shown,
        "injected_were_selected_and_kept": set(row.injected) <= kept,
        "logprobs_match_reply_tokens": all(
            len(call.logprobs) in (0, len(call.reply_token_ids)) and all(value <= 1e-6 for value in call.logprobs)
            for call in row.calls
        ),
        "propensities_are_probabilities": all(0.0 < value <= 1.0 for value in row.propensities.values()),
    }


def _example_columns(example: Example) -> dict[str, Any]:
    blind: list[int] = []
    at, lie = 0, True
    for start, end in example.hindsight_spans:
        lie = lie and at <= start < end <= len(example.teacher_ids)
        blind += example.teacher_ids[at:start]
        at = end
    blind += example.teacher_ids[at:]
    return {
        "example_id": example.example_id,
        "schema_version": example.schema_version,
        "ability": example.ability,
        "rollout_id": example.rollout_id,
        "n_student_tokens": len(example.student_ids),
        "n_hindsight_tokens": sum(end - start for start, end in example.hindsight_spans),
        "max_new_tokens": example.max_new_tokens,
        "trust": example.trust,
        "spans_lie_in_teacher": lie,
        "student_is_teacher_without_hindsight": tuple(blind) == example.student_ids,
    }


def _read_examples(path: Path) -> list[Example]:
    try:
        with path.open(encoding="utf-8") as file:
            return [Example.model_validate_json(line) for line in file]
    except (OSError, ValidationError, UnicodeDecodeError) as error:
        raise CorruptionError(
            f"cannot read examples {path}: {str(error).splitlines()[0]}",
            "lines of examples",
            "opd resume makes them again",
        ) from None


# ── Great Expectations ────────────────────────────────────────────────────────────────────────


def _expectations() -> Expectations:
    """The expectation classes; the import takes seconds, so it happens here and once."""
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    import great_expectations.expectations as gxe

    return gxe


def _id_rules(gxe: Expectations, column: str) -> list[Any]:
    return [
        gxe.ExpectColumnValuesToNotBeNull(column=column),
        gxe.ExpectColumnValuesToMatchRegex(column=column, regex=r"\S"),
        gxe.ExpectColumnValuesToBeUnique(column=column),
    ]


def _true(gxe: Expectations, column: str) -> Any:
    return gxe.ExpectColumnValuesToBeInSet(column=column, value_set=[True])


def _validate(
    name: str, rows: Sequence[dict[str, Any]], id_column: str, suite: Sequence[Any], started: float
) -> ContractReport:
    failures = _failures(rows, id_column, suite) if rows else ()
    return ContractReport(
        name=name,
        passed=not failures,
        n_rows=len(rows),
        failures=failures,
        seconds=round(time.monotonic() - started, 3),
    )


def _failures(rows: Sequence[dict[str, Any]], id_column: str, suite: Sequence[Any]) -> tuple[str, ...]:
    import great_expectations as gx
    import pandas as pd
    from great_expectations.data_context.types.base import ProgressBarsConfig

    frame = pd.DataFrame(list(rows))
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    asset = context.data_sources.add_pandas("frames").add_dataframe_asset("rows")
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": frame})
    outcome = batch.validate(
        gx.ExpectationSuite(name="contract", expectations=list(suite)),
        result_format={"result_format": "COMPLETE", "unexpected_index_column_names": [id_column]},
    )
    return tuple(_named(result, id_column) for result in outcome.results if not result.success)


def _named(result: Any, id_column: str) -> str:
    """One failed expectation in words: column, rule, rows."""
    config = result.expectation_config
    said = {key: value for key, value in config.kwargs.items() if key not in ("batch_id", "column")}
    column = config.kwargs.get("column", f"{said.pop('column_A', '')} and {said.pop('column_B', '')}")
    details = ", ".join(f"{key}={value}" for key, value in sorted(said.items()))
    if result.exception_info and result.exception_info.get("raised_exception"):
        return f"{column}: {config.type} could not be checked: {result.exception_info.get('exception_message')}"
    found = result.result.get("unexpected_index_list") or []
    ids = [repr(one.get(id_column)) for one in found]
    more = f" and {len(ids) - N_NAMED} more" if len(ids) > N_NAMED else ""
    return f"{column}: {config.type} ({details}) broken by {', '.join(ids[:N_NAMED]) or 'some rows'}{more}"
