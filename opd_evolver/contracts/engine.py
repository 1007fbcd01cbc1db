"""Great Expectations underneath: rows as a pandas frame in an ephemeral context, a suite, and what it found.

Nothing is written or sent. The import takes seconds, so it happens inside functions and once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from opd_evolver.errors import OpdError
from opd_evolver.records import SCHEMA_VERSION, Record

Expectations = Any
Rows = Sequence[dict[str, Any]]
N_NAMED = 5


class ContractError(OpdError):
    """A contract failed: the round stops, the champion stays."""


class ContractReport(Record):
    """What one contract found.

    Attributes:
        name: memory, ledger, examples or drift.
        passed: whether every expectation held that stops a round.
        n_rows: rows looked at.
        failures: column, expectation and the ids of the first rows that break it.
        seconds: how long it took, imports apart.
        warnings: the same for expectations that stop nothing.
        measured: False where there was nothing to compare with; then nothing is claimed.
    """

    schema_version: int = SCHEMA_VERSION
    name: str
    passed: bool
    n_rows: int
    failures: tuple[str, ...]
    seconds: float
    warnings: tuple[str, ...] = ()
    measured: bool = True


@dataclass(frozen=True)
class Contract:
    """Rows and what is expected of them.

    Attributes:
        name: of the report.
        rows: flat, one dictionary a row.
        id_column: names a row.
        suite: expectations that stop the round.
        mild: expectations that only warn.
        measured: as in the report.
    """

    name: str
    rows: Rows
    id_column: str
    suite: Sequence[Any]
    mild: Sequence[Any] = ()
    measured: bool = True

    def check(self) -> ContractReport:
        """Validates the rows."""
        began = time.monotonic()
        failures = found(self.rows, self.id_column, self.suite)
        return ContractReport(
            name=self.name,
            passed=not failures,
            n_rows=len(self.rows),
            failures=failures,
            warnings=found(self.rows, self.id_column, self.mild),
            seconds=round(time.monotonic() - began, 3),
            measured=self.measured,
        )


def expectations() -> Expectations:
    """The expectation classes."""
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    import great_expectations.expectations as gxe

    return gxe


def id_rules(gxe: Expectations, column: str) -> list[Any]:
    """Present, not blank, unique."""
    return [
        gxe.ExpectColumnValuesToNotBeNull(column=column),
        gxe.ExpectColumnValuesToMatchRegex(column=column, regex=r"\S"),
        gxe.ExpectColumnValuesToBeUnique(column=column),
    ]


def true(gxe: Expectations, column: str) -> Any:
    """A column that was computed to be True."""
    return gxe.ExpectColumnValuesToBeInSet(column=column, value_set=[True])


def context() -> Any:
    """An ephemeral context without progress bars."""
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    made = gx.get_context(mode="ephemeral")
    made.variables.progress_bars = ProgressBarsConfig(globally=False)
    return made


def result_format(id_column: str) -> dict[str, Any]:
    """Asks for the ids of every row that breaks a rule."""
    return {"result_format": "COMPLETE", "unexpected_index_column_names": [id_column]}


def found(rows: Rows, id_column: str, suite: Sequence[Any]) -> tuple[str, ...]:
    """Every broken expectation in words; none for no rows or no suite."""
    if not rows or not suite:
        return ()
    import great_expectations as gx
    import pandas as pd

    asset = context().data_sources.add_pandas("frames").add_dataframe_asset("rows")
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": pd.DataFrame(list(rows))})
    outcome = batch.validate(
        gx.ExpectationSuite(name="contract", expectations=list(suite)), result_format=result_format(id_column)
    )
    return tuple(named(result, id_column) for result in outcome.results if not result.success)


def named(result: Any, id_column: str) -> str:
    """One failed expectation in words: column, rule, rows."""
    config = result.expectation_config
    said = {key: value for key, value in config.kwargs.items() if key not in ("batch_id", "column")}
    column = config.kwargs.get("column", f"{said.pop('column_A', '')} and {said.pop('column_B', '')}")
    details = ", ".join(f"{key}={value}" for key, value in sorted(said.items()))
    if result.exception_info and result.exception_info.get("raised_exception"):
        return f"{column}: {config.type} could not be checked: {result.exception_info.get('exception_message')}"
    if (observed := result.result.get("observed_value")) is not None and "unexpected_index_list" not in result.result:
        return f"{column}: {config.type} ({details}) broken: {observed}"
    broken = result.result.get("unexpected_index_list") or []
    ids = [repr(one.get(id_column)) for one in broken]
    more = f" and {len(ids) - N_NAMED} more" if len(ids) > N_NAMED else ""
    return f"{column}: {config.type} ({details}) broken by {', '.join(ids[:N_NAMED]) or 'some rows'}{more}"
