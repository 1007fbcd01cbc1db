"""Data contracts between the two loops, by Great Expectations: memory, ledger, example sets, drift.

Once a round, on pandas frames in an ephemeral context. A failed expectation stops the round before anything is
trained or promoted, names the rows, and leaves Data Docs.
"""

from __future__ import annotations

from opd_evolver.contracts.drift import check_drift
from opd_evolver.contracts.engine import Contract, ContractError, ContractReport
from opd_evolver.contracts.examples import check_examples
from opd_evolver.contracts.ledger import check_ledger
from opd_evolver.contracts.memory import check_memory

__all__ = [
    "Contract",
    "ContractError",
    "ContractReport",
    "check_drift",
    "check_examples",
    "check_ledger",
    "check_memory",
    "enforce",
]


def enforce(*reports: ContractReport, docs: str = "") -> None:
    """Stops the round when a contract failed.

    Raises:
        ContractError: names contract, column, expectation and rows.
    """
    failed = [f"{report.name}: {failure}" for report in reports for failure in report.failures]
    if failed or not all(report.passed for report in reports):
        raise ContractError(
            f"data contract failed: {'; '.join(failed)}",
            "every expectation to hold",
            f"nothing was trained; look at {docs or 'the rows: opd memory show ID'}, mend, then: opd resume",
        )
