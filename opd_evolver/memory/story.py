"""Why an entry is what it is: where it came from, what was done to it, what it was good for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from opd_evolver.memory.levels import render
from opd_evolver.memory.store import Memory
from opd_evolver.records import MAINTAIN, Attribution, Entry, LedgerRow, MemoryOperation

Plain = dict[str, Any]
BUDGET = 64


def tell(memory: Memory, entry: Entry, values: Mapping[int, Attribution | None]) -> Plain:
    """The story of one entry.

    Args:
        memory: its memory.
        entry: retired and erased ones, too.
        values: round → its V as attributed then; None where that round's file is gone.
    """
    rows = memory.ledger.rows()
    segments = list(memory.ledger.read_all())
    operations = [one for segment in segments for one in segment.operations]
    children = sorted(one.entry_id for one in memory.entries(live_only=False) if entry.entry_id in one.parents)
    return {
        "id": entry.entry_id,
        "level": entry.level,
        "domain": entry.domain,
        "scope": entry.scope,
        "status": entry.status,
        "text": render(entry, token_budget=BUDGET),
        "created_round": entry.created_round,
        "confirmed_round": entry.confirmed_round,
        "sources": _sources(rows, entry),
        "parents": list(entry.parents),
        "children": children,
        "retired_by": [_operation(one) for one in operations if entry.entry_id in one.retired],
        "restored_by": [_operation(one) for one in operations if one.kind == "undo" and entry.entry_id in one.created],
        "evidence": _evidence(rows, entry.entry_id),
        "values": [_value(round_, found) for round_, found in sorted(values.items())],
    }


def _operation(one: MemoryOperation) -> Plain:
    return {"operation": one.operation_id, "kind": one.kind, "round": one.round, "created": list(one.created)}


def _sources(rows: Sequence[LedgerRow], entry: Entry) -> list[Plain]:
    played = {row.rollout_id: row for row in rows}
    found: list[Plain] = []
    for episode in entry.source_episodes:
        row = played.get(episode)
        found.append(
            {"episode": episode, "task": row.task_text, "round": row.round, "return": row.episode_return}
            if row
            else {"episode": episode, "task": None, "round": None, "return": None}
        )
    return found


def _evidence(rows: Sequence[LedgerRow], entry_id: str) -> Plain:
    played = (row for row in rows if row.group != MAINTAIN)
    shown = [row for row in played if any(one.entry_id == entry_id for one in row.candidates)]
    used = [row for row in shown if entry_id in row.injected]
    left = [row for row in shown if entry_id not in row.injected]

    def mean(of: Sequence[LedgerRow]) -> float | None:
        return round(sum(row.episode_return for row in of) / len(of), 4) if of else None

    return {
        "candidate": len(shown),
        "selected": sum(entry_id in row.selected for row in shown),
        "withheld": sum(entry_id in row.withheld for row in shown),
        "used": len(used),
        "won": sum(row.success for row in used),
        "mean_return_used": mean(used),
        "mean_return_not_used": mean(left),
    }


def _value(round_: int, found: Attribution | None) -> Plain:
    if found is None:
        return {"round": round_, "value": None, "low": None, "high": None, "per_group": {}, "known": False}
    kept = found.model_dump(mode="json", include={"value", "low", "high", "per_group"})
    return {"round": round_, **kept, "known": True}


def text_of(story: Plain) -> str:
    """The story in lines for people."""
    seen = story["evidence"]
    lines = [
        f"{story['level']} {story['id']} · {story['domain']}/{story['scope']} · {story['status']}",
        f"says: {story['text']}",
        f"written first in round {story['created_round']} by:",
    ]
    for one in story["sources"]:
        told = f"`{one['task']}`, return {one['return']}" if one["task"] is not None else "not in this ledger"
        lines.append(f"  {one['episode']}: {told}")
    if story["confirmed_round"] is not None:
        lines.append(f"learnt again against a newer entry in round {story['confirmed_round']}, since when it holds")
    if story["parents"]:
        lines.append(f"merged from: {', '.join(story['parents'])}")
    if story["children"]:
        lines.append(f"merged into: {', '.join(story['children'])}")
    lines.append(
        f"candidate {seen['candidate']} times, selected {seen['selected']}, withheld {seen['withheld']}, "
        f"used {seen['used']}, won {seen['won']}; mean return with it {seen['mean_return_used']}, "
        f"without {seen['mean_return_not_used']}"
    )
    for one in story["values"]:
        if not one["known"]:
            lines.append(f"round {one['round']}: V not kept")
        elif one["value"] is None:
            lines.append(f"round {one['round']}: no evidence")
        else:
            bounds = "" if one["low"] is None else f" [{one['low']:+.3f}, {one['high']:+.3f}]"
            lines.append(f"round {one['round']}: V {one['value']:+.3f}{bounds} over {len(one['per_group'])} groups")
    lines.append(_verdict(story))
    return "\n".join(lines)


def _verdict(story: Plain) -> str:
    if story["status"] == "erased":
        return "erased on request: runs/<run>/erasures.jsonl has the reason"
    if story["status"] == "retired":
        return f"cut: {_last(story['retired_by'])}"
    if not story["retired_by"]:
        return "kept: no operation has retired it"
    back = f"brought back by {_last(story['restored_by'])}" if story["restored_by"] else "learnt again"
    return f"kept: cut by {_last(story['retired_by'])}, then {back}"


def _last(operations: Sequence[Plain]) -> str:
    last = operations[-1] if operations else {"kind": "?", "operation": "?", "round": "?"}
    return f"{last['kind']} {last['operation']} in round {last['round']}"
