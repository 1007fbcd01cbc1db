"""The contract of a snapshot's entries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from opd_evolver.contracts.engine import Contract, ContractReport, expectations, id_rules, true
from opd_evolver.memory.levels import embed_text
from opd_evolver.memory.snapshot import read_entries, verify
from opd_evolver.records import LEVELS, SCHEMA_VERSION, Entry

MAX_TEXT_CHARACTERS = 20_000


def contract(snapshot_folder: Path) -> Contract:
    """Ids unique, levels known, text present, counts, retirement and lineage consistent.

    Raises:
        CorruptionError: the snapshot does not match its own digests.
    """
    verify(snapshot_folder)
    gxe = expectations()
    entries = read_entries(snapshot_folder)
    known = {entry.entry_id for entry in entries}
    suite = [
        *id_rules(gxe, "entry_id"),
        gxe.ExpectColumnValuesToBeInSet(column="schema_version", value_set=[SCHEMA_VERSION]),
        gxe.ExpectColumnValuesToBeInSet(column="level", value_set=list(LEVELS)),
        gxe.ExpectColumnValuesToBeInSet(column="status", value_set=["live", "retired", "erased"]),
        gxe.ExpectColumnValuesToMatchRegex(column="domain", regex=r"\S"),
        gxe.ExpectColumnValueLengthsToBeBetween(column="text", min_value=1, max_value=MAX_TEXT_CHARACTERS),
        gxe.ExpectColumnValuesToBeBetween(column="created_round", min_value=0),
        gxe.ExpectColumnValuesToBeBetween(column="usage_count", min_value=0),
        gxe.ExpectColumnValuesToBeBetween(column="success_count", min_value=0),
        gxe.ExpectColumnPairValuesAToBeGreaterThanB(column_A="usage_count", column_B="success_count", or_equal=True),
        true(gxe, "retired_with_round_and_operation"),
        true(gxe, "used_when_counted"),
        true(gxe, "parents_are_known"),
        true(gxe, "confirmed_after_it_was_created"),
    ]
    return Contract("memory", [_columns(entry, known) for entry in entries], "entry_id", suite)


def check_memory(snapshot_folder: Path) -> ContractReport:
    """Validates a snapshot's entries; see `contract`."""
    return contract(snapshot_folder).check()


def _columns(entry: Entry, known: set[str]) -> dict[str, Any]:
    retired = entry.status == "retired"
    return {
        "entry_id": entry.entry_id,
        "schema_version": entry.schema_version,
        "level": entry.level,
        "status": entry.status,
        "domain": entry.domain,
        "scope": entry.scope,
        "text": embed_text(entry),
        "created_round": entry.created_round,
        "usage_count": entry.usage_count,
        "success_count": entry.success_count,
        "retired_with_round_and_operation": retired == (entry.retired_round is not None) == bool(entry.retired_by),
        "used_when_counted": (entry.usage_count > 0) == (entry.last_used_round is not None),
        "parents_are_known": set(entry.parents) <= known,
        "confirmed_after_it_was_created": entry.learnt_round >= entry.created_round,
    }
