"""Maintenance at the barrier of a wave: episode after episode, each committed as a segment of its own."""

from __future__ import annotations

import time
from functools import partial

from opd_evolver.errors import SetupError
from opd_evolver.fast.committer import maintenance_due, maintenance_key
from opd_evolver.fast.maintenance import Maintenance, MaintenanceSettings, maintenance
from opd_evolver.fast.wave import Wave
from opd_evolver.memory.segment import LedgerSegment, SegmentKey
from opd_evolver.memory.store import Memory
from opd_evolver.policy.protocol import Policy
from opd_evolver.records import MAINTAIN
from opd_evolver.rollout.budget import policy_count
from opd_evolver.rollout.driver import Sleep, drive


def maintain_barrier(
    memory: Memory,
    wave: Wave,
    policy: Policy | None,
    settings: MaintenanceSettings,
    *,
    lineage: str = "",
    outage_retries: int = 0,
    sleep: Sleep = time.sleep,
) -> list[Maintenance]:
    """Maintain the memory if it is due at this barrier: episode after episode, each applied as one segment.

    An episode begins with entries that no earlier one of the barrier began with, the second and later ones only with
    those in doubt. One that decides nothing leaves its segment too, so that a restart knows it was done. Empty when
    nothing is due.

    Raises:
        SetupError: due, but no policy was given.
        OutageError: the policy's endpoint or the store stayed down.
    """
    due = maintenance_due(memory, wave, settings.episodes)
    if not due:
        return []
    if policy is None:
        raise SetupError(f"maintenance is due after wave {wave.name}", "a policy", "pass the wave's policy")
    count = policy_count(settings.budget_unit, policy)
    seen = {
        candidate.entry_id
        for row in memory.ledger.rows(wave.round)
        if row.group == MAINTAIN and row.wave == wave.index
        for candidate in row.candidates
    }
    played: list[Maintenance] = []
    for number in due:
        start = partial(maintenance, wave, memory, settings, count, number=number, seen=frozenset(seen))
        [done] = drive(policy, [start], 1, outage_retries=outage_retries, sleep=sleep)
        _commit(memory, maintenance_key(wave, number), done, lineage)
        seen |= {candidate.entry_id for candidate in done.row.candidates} if done.row else set()
        played.append(done)
    return played


def _commit(memory: Memory, key: SegmentKey, done: Maintenance, lineage: str) -> None:
    segment = LedgerSegment(
        lineage=lineage,
        round=key.round,
        wave=key.wave,
        part=key.part,
        rows=() if done.row is None else (done.row,),
        entries=done.created,
        operations=done.operations,
    )
    memory.commit(segment, {} if done.row is None else {done.row.rollout_id: round(done.seconds, 4)})
