"""`kill -9` at 30 seeded points of an epoch: before, inside and after writes. Nothing acknowledged is lost."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import driver
import numpy as np
import pytest
from memory_cases import in_child
from rollout_world import Recorder, Toy, agent, small, task

from opd_evolver.fast.epoch import run_epoch
from opd_evolver.fast.maintenance import MaintenanceSettings
from opd_evolver.fast.wave import Wave, plan_epoch
from opd_evolver.memory.ledger import fold_all
from opd_evolver.memory.segment import LedgerSegment
from opd_evolver.memory.store import Memory
from opd_evolver.records import Entry, GenerationRequest, Prompt
from opd_evolver.rollout.runner import EnvironmentPool, Runner
from opd_evolver.rollout.settings import EpisodeSettings

N_EPOCHS, N_KILLS, SEED = 10, 3, 4
PARAMS = small(fast__maintain_every_tasks=4, fast__wave_tasks=2, fast__rollouts_per_task=2)
pytestmark = pytest.mark.timeout(600)


class Ended(NamedTuple):
    """How an undisturbed epoch ends, and how many durable writes it makes."""

    digest: str
    ledger: str
    n_writes: int


def waves() -> list[Wave]:
    scopes = ("zora", "kilu", "vane")
    return plan_epoch(PARAMS, 1, {"toy": [task(number, scope=scopes[number % 3]) for number in range(28)]})


def writer(prompt: Prompt, request: GenerationRequest) -> str:
    """Every episode writes a memory."""
    if prompt.ability != "write":
        return agent(prompt, request)
    told = " ".join(segment.text for segment in prompt.messages[0].segments)
    return f"tip late{request.seed % 50} {told.split(' do ')[1].split()[0]}"


def epoch(folder: Path, **fault: Any) -> Callable[[], None]:
    """Plays the epoch, or what is left of it; a line in `told` is an acknowledgement, written when a commit returns."""
    commit = Memory.commit

    def telling(memory: Memory, segment: LedgerSegment, *more: Any) -> tuple[Entry, ...]:
        done = commit(memory, segment, *more)
        told = "".join(f"{segment.key.name} {entry.entry_id}\n" for entry in segment.entries)
        handle = os.open(folder / "told", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(handle, f"{told}{segment.key.name}\n".encode())
        os.close(handle)
        return done

    def work() -> None:
        driver._broken(**fault)
        with patch.object(Memory, "commit", telling), Memory.open(folder / "live", PARAMS.memory) as memory:
            pool = EnvironmentPool(lambda domain: Toy())
            runner = Runner(Recorder(writer), pool, memory, EpisodeSettings.of(PARAMS), 0, lambda seconds: None)
            run_epoch(memory, waves(), runner, MaintenanceSettings.of(PARAMS), folder=folder / "waves")
        if "after_s" in fault:
            signal.pause()  # a busy machine's timer is late: the kill is still to come

    return work


def faults(n_writes: int) -> list[list[dict[str, Any]]]:
    """For each epoch one kill in each third: at a write and with the file torn, by turns, then a moment after one.

    The one by the clock comes last: how many writes it lets pass, and so how many are left, nobody knows.
    """
    rng = np.random.Generator(np.random.Philox(key=SEED))
    found = []
    for _ in range(N_EPOCHS):
        places = [int((number + rng.random()) * n_writes / N_KILLS) for number in range(N_KILLS)]
        kinds: list[dict[str, Any]] = [{}, {"torn": True}]
        rng.shuffle(kinds)
        kinds.append({"after_s": float(rng.uniform(0.0005, 0.02))})
        kills = zip(places, [0, *places], kinds, strict=False)
        found.append([{"die_at": max(1, place - before), **kind} for place, before, kind in kills])
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert in_child(epoch(folder, count=str(folder / "count"))) == 0
    with Memory.open(folder / "live", PARAMS.memory) as memory:
        assert len(memory.entries()) > 40
        return Ended(memory.digest(), memory.ledger.digest(), int((folder / "count").read_text()))


def check_nothing_is_lost(folder: Path) -> int:
    """Every acknowledged entry is in the ledger and in the index; returns how many there are."""
    path = folder / "told"
    told = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    with Memory.open(folder / "live", PARAMS.memory) as memory:
        in_index = {entry.entry_id: entry for entry in memory.entries(live_only=False)}
        assert in_index == fold_all(memory.ledger)
        segments = {key.name for key in memory.ledger.segment_keys()}
        assert {words[0] for words in told} <= segments == set(memory.index.applied())
        acknowledged = {words[1] for words in told if len(words) == 2}
        assert acknowledged <= in_index.keys()
    return len(acknowledged)


def test_thirty_kills_lose_nothing_acknowledged(undisturbed: Ended, tmp_path: Path) -> None:
    n_acknowledged = []
    for number, kills in enumerate(faults(undisturbed.n_writes)):
        folder = tmp_path / str(number)
        folder.mkdir()
        for fault in kills:
            print(f"epoch {number}: {fault}")
            assert in_child(epoch(folder, **fault)) == -signal.SIGKILL
            n_acknowledged.append(check_nothing_is_lost(folder))
        assert in_child(epoch(folder)) == 0
        check_nothing_is_lost(folder)
        with Memory.open(folder / "live", PARAMS.memory) as memory:
            assert (memory.digest(), memory.ledger.digest()) == (undisturbed.digest, undisturbed.ledger)
    assert len(n_acknowledged) == 30
    assert len(set(n_acknowledged)) > 5, "the kills lie too close together"
