"""`opd memory maintain --dry-run`: what the policy would merge and delete now, changing nothing."""

from __future__ import annotations

import argparse
from typing import Any

from opd_evolver import console, lineage
from opd_evolver.commands.memory import opened
from opd_evolver.errors import SetupError
from opd_evolver.fast.maintenance import Maintenance, MaintenanceSettings, maintenance
from opd_evolver.fast.wave import Wave
from opd_evolver.memory.levels import render
from opd_evolver.memory.store import Memory
from opd_evolver.rollout.budget import policy_count
from opd_evolver.rollout.driver import drive
from opd_evolver.steps import plan, prepare, resources, snapshots


def maintain(given: argparse.Namespace) -> int:
    """One maintenance episode with the policy and the memory that the next round starts from."""
    run = lineage.open_run(prepare.artifact_root(), given.name)
    if not given.dry_run:
        raise SetupError(
            "maintenance by hand is not offered: rounds maintain by themselves (fast.maintain_every_tasks)",
            "--dry-run",
            "opd memory maintain --dry-run",
        )
    round_, held = snapshots.last_finished(run) + 1, snapshots.held(run)
    policy = resources.policy(plan.begin_job(run, round_))
    settings = MaintenanceSettings.of(run.params)
    count = policy_count(settings.budget_unit, policy)
    wave = Wave(round=round_, index=0, n_tasks=0, microbatches=())
    with opened(given.name, held) as memory:
        starts = [lambda: maintenance(wave, memory, settings, count)]
        [done] = drive(policy, starts, 1, outage_retries=run.params.fast.outage_retries)
        tree = {"lineage": run.lineage, "round": held, "dry_run": True, **_tree(memory, done)}
    console.result(tree, _told(tree), as_json=given.json)
    return 0


def _tree(memory: Memory, done: Maintenance) -> dict[str, Any]:
    made = {entry.entry_id: entry for entry in done.created}

    def told(ids: tuple[str, ...]) -> list[dict[str, str]]:
        entries = [made.get(one) or memory.get([one])[0] for one in ids]
        return [
            {"id": entry.entry_id, "text": render(entry, token_budget=memory.params.entry_token_budget)}
            for entry in entries
        ]

    turns = done.row.turns if done.row is not None else ()
    return {
        "entries": len(memory.entries()),
        "steps": len(turns),
        "unreadable": sum(not turn.parsed for turn in turns),
        "operations": [
            {"kind": one.kind, "retired": told(one.retired), "created": told(one.created)} for one in done.operations
        ],
    }


def _told(tree: dict[str, Any]) -> str:
    lines = []
    for one in tree["operations"]:
        lines += [f"{one['kind']}  {entry['id'][:12]}  {entry['text']}" for entry in one["retired"]]
        lines += [f"   into  {entry['id'][:12]}  {entry['text']}" for entry in one["created"]]
    n_retired = sum(len(one["retired"]) for one in tree["operations"])
    lines.append(
        f"{len(tree['operations'])} operations would retire {n_retired} of {tree['entries']} entries "
        f"({tree['steps']} steps, {tree['unreadable']} unreadable); nothing was changed (--dry-run)"
    )
    return "\n".join(lines)
