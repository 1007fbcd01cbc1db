"""A run's report: the object of `opd rounds --json`, and the same as plain text, one row per round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from opd_evolver.benchmark.gate import RETENTION_METRICS
from opd_evolver.benchmark.measure import Columns, RoundMeasurement
from opd_evolver.benchmark.rows import HOME
from opd_evolver.benchmark.statistics import Estimate
from opd_evolver.records import Level

Tree = dict[str, Any]


def estimate_json(found: Estimate | None) -> Tree | None:
    """{"mean", "low", "high", "n_tasks", "n_families", "per_domain"}; None: not measured."""
    return found.model_dump(mode="json") if found else None


def columns_json(columns: Columns) -> Tree:
    """The columns `alone`, `with_memory`, `retention`, and what retention is made of."""
    tree: Tree = {
        "alone": estimate_json(columns.alone),
        "with_memory": estimate_json(columns.with_memory),
        "retention": estimate_json(columns.retention),
    }
    tree["retention_metrics"] = {name: estimate_json(one) for name, one in columns.retention_metrics.items()}
    tree["steps_per_success"] = {
        "alone": estimate_json(columns.steps_alone),
        "with_memory": estimate_json(columns.steps_with_memory),
    }
    return tree


def headroom_json(one: RoundMeasurement) -> Tree:
    """Rows by kind of task, see `benchmark/rows.py`; empty without headroom or memory."""
    return {kind: row.model_dump(mode="json") for kind, row in one.headroom.items()}


def retention_pairs(base: Columns, columns: Columns) -> dict[str, tuple[float, float]]:
    """Metric of retention → (base, round); what was not measured of both is left out."""
    found = {}
    for name in RETENTION_METRICS:
        before, after = (one.retention_metrics.get(name) for one in (base, columns))
        if before is not None and before.mean is not None and after is not None and after.mean is not None:
            found[name] = (before.mean, after.mean)
    return found


def retained_json(base: Columns, columns: Columns) -> dict[str, float]:
    """Metric of retention → share of the base's mean; what the base cannot do, or was not measured, is left out."""
    return {name: after / before for name, (before, after) in retention_pairs(base, columns).items() if before > 0}


def rounds_object(
    *,
    name: str,
    lineage: str,
    preset: str,
    base: RoundMeasurement,
    measured: Sequence[RoundMeasurement],
    rounds: Sequence[Mapping[str, Any]],
) -> Tree:
    """The object that `opd rounds --json` prints.

    Args:
        name: the run.
        lineage: its current lineage.
        preset: what its parameters began from.
        base: round 0.
        measured: rounds 1, 2, … as measured.
        rounds: beside each of them: `round`, `gate`, `digests`, `memories`, `maintenance`, `rejected`, `seconds`,
            `tokens`.
    """
    last = measured[-1] if measured else None
    base_columns = columns_json(base.columns)
    base_columns["with_memory"] = estimate_json(last.base_with_memory if last else base.columns.with_memory)
    return {
        "name": name,
        "lineage": lineage,
        "preset": preset,
        "protocol": base.protocol,
        "base": {"columns": base_columns},
        "rounds": [
            {
                **facts,
                "columns": columns_json(one.columns),
                "retained": retained_json(base.columns, one.columns),
                "headroom": headroom_json(one),
            }
            for facts, one in zip(rounds, measured, strict=True)
        ],
        "differences": {
            "base_memory_minus_base_alone": estimate_json(last.base_memory_minus_base_alone if last else None),
            "last_alone_minus_base_alone": estimate_json(last.alone_minus_base_alone if last else None),
            "last_memory_minus_base_alone": estimate_json(last.memory_minus_base_alone if last else None),
        },
    }


# ── plain text ────────────────────────────────────────────────────────────────────────────────

# Live memories by level, then what maintenance did in the round: operations that merged, entries retired by any.
SHOWN_LEVELS: tuple[Level, ...] = ("tip", "skill", "tool", "trajectory")
HEADINGS = (
    *("round", "alone", "with memory", "retention", "tip/skill/tool/traj", "merged", "retired"),
    *("gate", "time", "tokens"),
)
WIDTHS = (6, 19, 19, 19, 19, 6, 7, 8, 6, 7)


def rounds_table(tree: Mapping[str, Any]) -> str:
    """One row per round, `base` first; intervals are 95 %, clustered by family.

    Args:
        tree: as `rounds_object` returns it.
    """
    lines = [f"run {tree['name']} · lineage {tree['lineage']} · preset {tree['preset']} · success on deploy-test"]
    lines.append(_row(HEADINGS))
    lines.append(_row(("base", *_columns_cells(tree["base"]["columns"]), *("",) * 6)))
    for one in tree["rounds"]:
        lines.append(_row((str(one["round"]), *_columns_cells(one["columns"]), *_facts_cells(one))))
    shown = {
        "base_memory_minus_base_alone": "memory alone gives (base with the last memory - base alone)",
        "last_alone_minus_base_alone": "distillation gives (last policy alone - base alone)",
        "last_memory_minus_base_alone": "both give (last policy with memory - base alone)",
    }
    for key, words in shown.items():
        if tree["differences"].get(key):
            lines.append(f"{words}: {interval_text(tree['differences'][key], signed=True)}")
    for one in tree["rounds"]:
        if retained := one.get("retained"):
            listed = ", ".join(f"{metric} {share:.3f}" for metric, share in retained.items())
            lines.append(f"round {one['round']} keeps of the base's: {listed}")
    lines += _headroom(tree["rounds"][-1]) if tree["rounds"] else []
    for one in tree["rounds"]:
        if rejected := one.get("rejected"):
            listed = ", ".join(f"{reason} {n}" for reason, n in rejected.items())
            lines.append(f"round {one['round']} rejected {sum(rejected.values())} written entries: {listed}")
    for one in tree["rounds"]:
        if one.get("gate") and not one["gate"].get("promoted", True):
            lines.append(f"round {one['round']} {one['gate'].get('reason', 'refused')}")
    return "\n".join(lines)


def _headroom(last: Mapping[str, Any]) -> list[str]:
    """The last round by kind of headroom: what distillation adds to memory, and to selection against V > 0."""
    return [
        f"{kind} ({sum(row['n_tasks'])} tasks): base with memory {interval_text(row['success']['base_memory'])}, "
        f"round {last['round']} with memory {interval_text(row['success']['last_memory'])} "
        f"({interval_text(row['gain'], signed=True)}); "
        f"selection F1 {interval_text(row['select']['base'])} to {interval_text(row['select']['last'])}, "
        f"of what is asked {interval_text(row['needed']['base'])} to {interval_text(row['needed']['last'])}"
        for kind, row in (last.get("headroom") or {}).items()
        if not kind.startswith(HOME)
    ]


def _row(cells: Sequence[str]) -> str:
    return "  ".join(f"{cell:<{width}}" for cell, width in zip(cells, WIDTHS, strict=True)).rstrip()


def _columns_cells(columns: Mapping[str, Any]) -> tuple[str, str, str]:
    return interval_text(columns["alone"]), interval_text(columns["with_memory"]), interval_text(columns["retention"])


def _facts_cells(one: Mapping[str, Any]) -> tuple[str, ...]:
    memories, maintained = one.get("memories") or {}, one.get("maintenance") or {}
    count = "/".join(str(memories.get(level, 0)) for level in SHOWN_LEVELS) if memories else "–"
    changed = [str(maintained.get(name, "–")) for name in ("merged", "retired")]
    gate = one.get("gate") or {}
    verdict = "–" if "promoted" not in gate else ("promoted" if gate["promoted"] else "refused")
    return count, *changed, verdict, _time(one.get("seconds")), _tokens(one.get("tokens"))


def interval_text(found: Estimate | Mapping[str, Any] | None, *, signed: bool = False) -> str:
    """An estimate, or its `estimate_json`, as `0.500 [0.400, 0.600]`; a dash where nothing was measured."""
    if isinstance(found, Estimate):
        found = estimate_json(found)
    if not found or found["mean"] is None:
        return "–"
    form = "+.3f" if signed else ".3f"
    mean = format(found["mean"], form)
    if found["low"] is None:
        return mean
    return f"{mean} [{format(found['low'], form)}, {format(found['high'], form)}]"


def _time(seconds: float | None) -> str:
    return "–" if seconds is None else f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _tokens(tokens: int | None) -> str:
    if tokens is None:
        return "–"
    return f"{tokens / 1e6:.1f} M" if tokens >= 1e6 else f"{tokens / 1e3:.0f} k"


def made_by(command: str, measure: str | None) -> list[str]:
    """The head of a page: what makes it again and, where that pools what was measured before, what measures it."""
    lines = [f"    {command}", ""]
    if measure is not None:
        lines += ["The outcomes were measured before. What measures them:", "", f"    {measure}", ""]
    return lines


def measured_lines(of_seeds: Sequence[tuple[int, Mapping[str, str]]]) -> list[str]:
    """When and on what each seed was measured, by name; seeds of one day and machine are one line."""
    alike: dict[str, list[str]] = {}
    for seed, measured in of_seeds:
        told = "; ".join(f"{name} {value}" for name, value in measured.items())
        alike.setdefault(told or "when and on what is not known", []).append(str(seed))
    return [f"- seed {', '.join(seeds)}: {told}" for told, seeds in alike.items()]
