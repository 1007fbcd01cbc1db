"""The contract of a snapshot's ledger rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from opd_evolver.contracts.engine import Contract, ContractReport, expectations, id_rules, true
from opd_evolver.memory.snapshot import read_entries, read_rows
from opd_evolver.records import SCHEMA_VERSION, LedgerRow

MAX_SELECTED = 20


def contract(snapshot_folder: Path, round: int | None = None) -> Contract:
    """One row a rollout, returns in [0, 1]; what was injected was chosen and shown, and all of it is known.

    Args:
        snapshot_folder: as `write_snapshot` wrote it.
        round: look at this round only.
    """
    gxe = expectations()
    suite = [
        *id_rules(gxe, "rollout_id"),
        gxe.ExpectColumnValuesToBeInSet(column="schema_version", value_set=[SCHEMA_VERSION]),
        *(gxe.ExpectColumnValuesToMatchRegex(column=name, regex=r"\S") for name in ("task_id", "domain", "group")),
        gxe.ExpectColumnValuesToMatchRegex(column="policy_version", regex=r"\S"),
        gxe.ExpectColumnValuesToBeBetween(column="round", min_value=0),
        gxe.ExpectColumnValuesToBeBetween(column="wave", min_value=0),
        gxe.ExpectColumnValuesToBeBetween(column="episode_return", min_value=0.0, max_value=1.0),
        gxe.ExpectColumnValuesToBeBetween(column="n_selected", min_value=0, max_value=MAX_SELECTED),
        gxe.ExpectColumnValuesToBeBetween(column="n_calls", min_value=0),
        gxe.ExpectColumnValuesToBeBetween(column="n_prompt_tokens", min_value=0),
        gxe.ExpectColumnValuesToBeBetween(column="n_reply_tokens", min_value=0),
        true(gxe, "selected_were_candidates"),
        true(gxe, "injected_were_selected_and_kept"),
        true(gxe, "logprobs_match_reply_tokens"),
        true(gxe, "propensities_are_probabilities"),
        true(gxe, "entries_are_known"),
        true(gxe, "handles_count_from_one"),
    ]
    known = {entry.entry_id for entry in read_entries(snapshot_folder)}
    rows = [_columns(row, known) for row in read_rows(snapshot_folder, round)]
    return Contract("ledger", rows, "rollout_id", suite)


def check_ledger(snapshot_folder: Path, round: int | None = None) -> ContractReport:
    """Validates a snapshot's ledger rows; see `contract`."""
    return contract(snapshot_folder, round).check()


def _columns(row: LedgerRow, known: set[str]) -> dict[str, Any]:
    shown = {candidate.entry_id for candidate in row.candidates}
    kept = set(row.selected) - set(row.withheld)
    return {
        "rollout_id": row.rollout_id,
        "schema_version": row.schema_version,
        "round": row.round,
        "wave": row.wave,
        "task_id": row.task_id,
        "domain": row.domain,
        "group": row.group,
        "policy_version": row.policy_version,
        "episode_return": row.episode_return,
        "n_selected": len(row.selected),
        "n_calls": len(row.calls),
        "n_prompt_tokens": row.n_prompt_tokens,
        "n_reply_tokens": row.n_reply_tokens,
        "selected_were_candidates": set(row.selected) <= shown,
        "injected_were_selected_and_kept": set(row.injected) <= kept,
        "logprobs_match_reply_tokens": all(
            len(call.logprobs) in (0, len(call.reply_token_ids)) and all(value <= 1e-6 for value in call.logprobs)
            for call in row.calls
        ),
        "propensities_are_probabilities": all(0.0 < value <= 1.0 for value in row.propensities.values()),
        "entries_are_known": {*shown, *row.injected, *row.created} <= known,
        "handles_count_from_one": [one.handle for one in row.candidates] == [*range(1, len(row.candidates) + 1)],
    }
