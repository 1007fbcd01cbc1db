"""Plain records for `opd memory log | show | search`: what happened, what an entry is, what is known."""

from __future__ import annotations

from typing import Any

from opd_evolver.errors import SetupError
from opd_evolver.memory.levels import render
from opd_evolver.memory.store import Memory
from opd_evolver.records import LEVELS, MAINTAIN, Entry, Level

Plain = dict[str, Any]


def log(memory: Memory) -> list[Plain]:
    """One record per commit, oldest first."""
    seen: set[str] = set()
    out: list[Plain] = []
    for segment in memory.ledger.read_all():
        ids = [entry.entry_id for entry in segment.entries]
        new = set(ids) - seen
        seen |= new
        out.append(
            {
                "round": segment.round,
                "wave": segment.wave,
                "part": segment.part,
                "lineage": segment.lineage,
                "rollouts": sum(row.group != MAINTAIN for row in segment.rows),
                "successes": sum(row.success for row in segment.rows),
                "written": len(new),
                "seen_again": len(ids) - len(new),
                "retired": sum(len(operation.retired) for operation in segment.operations),
                "operations": [
                    {
                        "id": operation.operation_id,
                        "kind": operation.kind,
                        "retired": list(operation.retired),
                        "created": list(operation.created),
                    }
                    for operation in segment.operations
                ],
            }
        )
    return out


def show(memory: Memory, entry_id: str) -> Plain:
    """One entry whole, with the rollouts it was brought to.

    Args:
        memory: the memory.
        entry_id: an id, or enough of its start.

    Raises:
        SetupError: none, or several, begin so.
    """
    entry = find(memory, entry_id)
    uses = [
        {"rollout_id": row.rollout_id, "round": row.round, "task_id": row.task_id, "success": row.success}
        for row in memory.ledger.rows()
        if entry.entry_id in row.injected
    ]
    return {**_plain(memory, entry), "entry": entry.model_dump(mode="json"), "uses": uses}


def search(
    memory: Memory,
    text: str,
    *,
    limit: int = 10,
    level: Level | None = None,
    domain: str | None = None,
    scope: str | None = None,
) -> list[Plain]:
    """Live entries nearest to a text, best first."""
    found = [
        (entry, score)
        for one in ((level,) if level else LEVELS)
        for entry, score in memory.index.search(text, level=one, limit=limit, domain=domain, scope=scope)
    ]
    found.sort(key=lambda pair: (-pair[1], pair[0].entry_id))
    return [{**_plain(memory, entry), "score": score} for entry, score in found[:limit]]


def _plain(memory: Memory, entry: Entry) -> Plain:
    return {
        "id": entry.entry_id,
        "level": entry.level,
        "domain": entry.domain,
        "scope": entry.scope,
        "text": render(entry, token_budget=memory.params.entry_token_budget),
        "created_round": entry.created_round,
        "used": entry.usage_count,
        "won": entry.success_count,
        "status": entry.status,
    }


def find(memory: Memory, entry_id: str) -> Entry:
    """The entry with this id, or with one that begins so.

    Raises:
        SetupError: none, or several.
    """
    exact = memory.get([entry_id])
    if exact:
        return exact[0]
    found = [entry for entry in memory.entries(live_only=False) if entry_id and entry.entry_id.startswith(entry_id)]
    if len(found) != 1:
        seen = f"{len(found)} entries begin with `{entry_id}`" if found else f"no entry `{entry_id}`"
        raise SetupError(seen, "one entry", "`opd memory search TEXT` prints ids")
    return found[0]
