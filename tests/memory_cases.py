"""Entries, rows and segments for the memory tests, and processes that die on purpose."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import cloudpickle

from opd_evolver.memory.ledger import Ledger
from opd_evolver.memory.segment import LedgerSegment
from opd_evolver.memory.store import entry_of
from opd_evolver.records import (
    Candidate,
    Content,
    Entry,
    LedgerRow,
    Proposal,
    SkillContent,
    TipContent,
    ToolContent,
    TrajectoryContent,
    TrajectoryStep,
)

FULL_LEVELS: tuple[Content, ...] = (
    TipContent(text="4", trigger="late"),
    SkillContent(description="close the books", technique="in order", steps=("open", "check", "close")),
    ToolContent(name="adder", language="python", code="def f(a, b):\n    return a + b", input_description="numbers"),
    TrajectoryContent(
        task="count late",
        steps=(TrajectoryStep(observation="o", action="a", result="ok 12", reward=1.0),),
        outcome="success",
        episode_return=1.0,
        learnings=("late is 4",),
    ),
)


def tip(key: str, value: str, *, scope: str = "zora", domain: str = "sql", episode: str = "e", round: int = 1) -> Entry:
    content = TipContent(text=value, trigger=key)
    return entry_of(Proposal(domain=domain, scope=scope, content=content, source_episodes=(episode,)), round)


def row(name: str, *, wave: int = 0, round: int = 1, injected: Sequence[str] = (), success: bool = True) -> LedgerRow:
    return LedgerRow(
        rollout_id=name,
        round=round,
        wave=wave,
        task_id="t",
        domain="sql",
        scope="zora",
        group="g",
        task_text="zora count late",
        candidates=tuple(Candidate(handle=n, entry_id=one, score=0.5) for n, one in enumerate(injected, start=1)),
        selected=tuple(injected),
        injected=tuple(injected),
        episode_return=float(success),
        success=success,
        turns=(),
        calls=(),
        n_prompt_tokens=1,
        n_reply_tokens=1,
        policy_version="p",
        renderer="r",
    )


def wave(number: int, *, n: int = 4, round: int = 1, lineage: str = "run") -> LedgerSegment:
    """A wave that writes `n` tips, sees some of the wave before again and uses them."""
    new = [tip(f"key{number}x{k}", str(k), episode=f"w{number}e{k}", round=round) for k in range(n)]
    old = (
        [tip(f"key{number - 1}x{k}", str(k), episode=f"w{number}e{k}", round=round) for k in range(2)] if number else []
    )
    rows = [
        row(f"r{number}-{k}", wave=number, round=round, injected=[one.entry_id], success=k == 0)
        for k, one in enumerate(old)
    ]
    rows.append(row(f"r{number}-alone", wave=number, round=round))
    return LedgerSegment(lineage=lineage, round=round, wave=number, rows=tuple(rows), entries=(*new, *old))


def filled(folder: Path, n: int = 3, lineage: str = "run") -> Ledger:
    ledger = Ledger(folder)
    for number in range(n):
        ledger.append(wave(number, lineage=lineage), {f"r{number}-alone": 0.5})
    return ledger


def in_child(work: Callable[[], None]) -> int:
    """Runs `work` in a process of its own; returns its exit status, negative for a signal."""
    return in_children([work])[0]


def in_children(works: Sequence[Callable[[], None]]) -> list[int]:
    """Runs each of `works` in a process of its own, all at once; returns their exit statuses."""
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in [_begun(work) for work in works]]


def _begun(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return pid


def in_fresh_processes(works: Sequence[Callable[[], None]]) -> list[int]:
    """As `in_children`, without forking this process: one that has spoken gRPC cannot be forked safely."""
    code = "import pickle, sys; pickle.load(sys.stdin.buffer)()"
    here = Path(__file__).parent
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [here, here.parent]))}
    begun = []
    for work in works:
        process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, env=env)
        assert process.stdin is not None
        process.stdin.write(cloudpickle.dumps(work))
        process.stdin.close()
        begun.append(process)
    return [process.wait() for process in begun]


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
