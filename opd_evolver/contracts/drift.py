"""The contract between a round and the one before: what may move, and how far.

Bounds are widened by three standard errors of what was sampled, so that a small round alarms nobody. Success that
breaks down and selections that stop being readable stop the round; everything else warns and is recorded.
The first round has nothing to be compared with: it is recorded as not measured.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from opd_evolver.contracts.engine import Contract, ContractReport, Expectations, Rows, expectations
from opd_evolver.memory.levels import embed_text
from opd_evolver.memory.snapshot import read_entries, read_rows
from opd_evolver.params import ContractParams
from opd_evolver.records import LEVELS, MAINTAIN, Entry, LedgerRow

ERRORS = 3.0
SMOOTHING = 0.5


def contracts(snapshot_folder: Path, round: int, params: ContractParams) -> tuple[Contract, Contract]:
    """Drift of the round's rollouts, and of the entries that it wrote.

    Args:
        snapshot_folder: of the round; its ledger holds the rounds before.
        round: the round that ends.
        params: how far things may move.
    """
    rows = [row for row in read_rows(snapshot_folder) if row.group != MAINTAIN]
    entries = read_entries(snapshot_folder)
    before = max((row.round for row in rows if row.round < round), default=None)
    now = [row for row in rows if row.round == round]
    written = [entry for entry in entries if entry.created_round == round]
    if before is None:
        return (
            Contract("drift", [_of_row(row) for row in now], "rollout_id", (), measured=False),
            Contract("drift_entries", [_of_entry(entry) for entry in written], "entry_id", (), measured=False),
        )
    then = [row for row in rows if row.round == before]
    old = [entry for entry in entries if entry.created_round == before]
    return _rollouts(then, now, params), _entries(old, written, params)


def check_drift(snapshot_folder: Path, round: int, params: ContractParams) -> tuple[ContractReport, ContractReport]:
    """Validates a round against the one before; see `contracts`."""
    rollouts, entries = contracts(snapshot_folder, round, params)
    return rollouts.check(), entries.check()


def _rollouts(then: Sequence[LedgerRow], now: Sequence[LedgerRow], params: ContractParams) -> Contract:
    gxe = expectations()
    before, after = [_of_row(row) for row in then], [_of_row(row) for row in now]

    def mean_and_error(column: str) -> tuple[float, float] | None:
        """The mean before, and three standard errors of the difference; None where one side has no values."""
        sides = [np.array([row[column] for row in side if row[column] is not None]) for side in (before, after)]
        if not all(len(side) for side in sides):
            return None
        return float(sides[0].mean()), ERRORS * float(np.sqrt(sum(side.var() / len(side) for side in sides)))

    suite: list[Any] = []
    mild: list[Any] = []
    if (found := mean_and_error("success")) is not None:
        lowest = found[0] - found[1]
        suite.append(gxe.ExpectColumnMeanToBeBetween(column="success", min_value=lowest - params.max_success_drop))
        mild.append(gxe.ExpectColumnMeanToBeBetween(column="success", min_value=lowest - params.warn_success_drop))
    if (found := mean_and_error("fallback")) is not None:
        most = max(params.max_fallback, found[0]) + found[1]
        suite.append(gxe.ExpectColumnMeanToBeBetween(column="fallback", max_value=most))
    for column in ("selects", "n_selected", "n_reply_tokens", "n_turns"):
        if (found := mean_and_error(column)) is not None:
            reach = params.tolerance * abs(found[0]) + found[1]
            low, high = found[0] - reach, found[0] + reach
            mild.append(gxe.ExpectColumnMeanToBeBetween(column=column, min_value=low, max_value=high))
    return Contract("drift", after, "rollout_id", suite, mild)


def _entries(then: Sequence[Entry], now: Sequence[Entry], params: ContractParams) -> Contract:
    gxe = expectations()
    before, after = [_of_entry(entry) for entry in then], [_of_entry(entry) for entry in now]
    mild: list[Any] = []
    if before and after:
        mild = [
            _levels(gxe, [row["level"] for row in before], len(after), params),
            _lengths(gxe, before, after, params),
        ]
    return Contract("drift_entries", after, "entry_id", (), mild, measured=bool(before))


def _levels(gxe: Expectations, before: Sequence[str], n: int, params: ContractParams) -> Any:
    """Shares of the levels, smoothed; under no drift the divergence is about (levels - 1) / 2n."""
    counted = Counter(before)
    total = len(before) + SMOOTHING * len(LEVELS)
    weights = [(counted[level] + SMOOTHING) / total for level in LEVELS]
    chance = ERRORS * (len(LEVELS) - 1) / 2 * (1 / n + 1 / len(before))
    return gxe.ExpectColumnKLDivergenceToBeLessThan(
        column="level",
        partition_object={"values": list(LEVELS), "weights": weights},
        threshold=params.max_level_divergence_nats + chance,
    )


def _lengths(gxe: Expectations, before: Rows, after: Rows, params: ContractParams) -> Any:
    sides = [np.array([row["n_characters"] for row in side], dtype=float) for side in (before, after)]
    error = ERRORS * float(np.sqrt(sum(side.var() / len(side) for side in sides)))
    mean = float(sides[0].mean())
    reach = params.tolerance * mean + error
    return gxe.ExpectColumnMeanToBeBetween(column="n_characters", min_value=mean - reach, max_value=mean + reach)


def _of_row(row: LedgerRow) -> dict[str, Any]:
    return {
        "rollout_id": row.rollout_id,
        "success": float(row.success),
        "fallback": float(row.select_fallback) if row.candidates else None,
        "selects": float(bool(row.selected)) if row.candidates and not row.select_fallback else None,
        "n_selected": len(row.selected) if row.candidates else None,
        "n_reply_tokens": float(row.n_reply_tokens),
        "n_turns": float(len(row.turns)),
    }


def _of_entry(entry: Entry) -> dict[str, Any]:
    return {"entry_id": entry.entry_id, "level": entry.level, "n_characters": float(len(embed_text(entry)))}
