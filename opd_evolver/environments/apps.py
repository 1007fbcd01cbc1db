"""`apps`: tool APIs in AWM's file format (sqlite, Python functions, verifier).

Hidden convention: which other call must come directly before an operation of a service. The API
specification lists all calls, never the order. Families beyond tips hide the whole order of a procedure's
steps (`environments/procedures.py`). Success is the verifier's word, which compares the
database before and after.
Source: record shapes after AgentWorldModel-1K (Snowflake); worlds and code ours.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Sequence

import numpy as np

from opd_evolver.environments import awm, service
from opd_evolver.environments import conventions as cv
from opd_evolver.environments import procedures as pr
from opd_evolver.environments import tasks as task_list
from opd_evolver.environments.attempts import Attempts, wording
from opd_evolver.environments.procedural import ProceduralDomain
from opd_evolver.errors import SetupError
from opd_evolver.records import Level, Step, Task
from opd_evolver.sections import NO_HEADROOM, HeadroomParams

# More calls in one action would let an agent try every order at once.
MAX_CALLS = 2
CALL = re.compile(r"call (?P<name>[a-z]{1,24})(?: (?P<item>\d{1,6}))?")

# fmt: off
PROCEDURES = (
    pr.Procedure("skill", ("install", "repair", "rotate", "migrate", "cleanup", "launch", "recover", "rollout"), 3),
    pr.Procedure("tool", ("mailing", "backup", "billing", "export", "sweep", "publish", "restock", "notify"), 3),
    pr.Procedure("trajectory", ("visit", "patrol", "fetch", "explore", "cross", "descend", "escort", "ascend"), 4),
)
# fmt: on


def _phrase(sub: cv.Sub) -> str:
    return f"{sub.key} {sub.arg}"


SPEC = cv.Domain(
    name="apps",
    slot=1,
    keys=service.OPERATIONS,
    values=service.PREPARATIONS,
    distinct=False,
    args=service.ITEMS,
    phrase=_phrase,
    steps=service.STEPS,
    step_args=service.ITEMS,
    procedures=PROCEDURES,
)


class Apps(ProceduralDomain):
    """The `apps` domain.

    Args:
        world_seed: fixes the conventions of all families.
        levels: home levels of the families, by turns.
        headroom: see `environments/headroom.py`.
    """

    domain = "apps"
    spec = SPEC

    def __init__(
        self, world_seed: int = 0, levels: Sequence[Level] = cv.TIPS_ONLY, headroom: HeadroomParams = NO_HEADROOM
    ) -> None:
        super().__init__(world_seed, levels, headroom)
        self._db: sqlite3.Connection | None = None
        self._before: dict[int, str] = {}

    # ── Environment ──

    def reset(self, task: Task) -> str:
        """A fresh service for `task`; the first observation is the stage that an order begins with, else empty."""
        self.close()
        self._task = task
        self._db = awm.open_database(awm.scenario_of(task.scope, task.gold["facts"]))
        self._before = service.states(self._db)
        self._attempts = Attempts(task_list.asked_of(self.spec, task))
        self._open_job(task)
        return self._attempts.first

    def _open_job(self, task: Task) -> None:
        """Where the current move begins a procedure, the service is told that it is wanted."""
        moves = task_list.moves_of(task)
        if self._db is not None and self._attempts.place < len(moves):
            move = moves[self._attempts.place]
            if move.stage == 1:
                service.open_job(self._db, move.key, int(move.arg))

    def step(self, action: str) -> Step:
        """Run one action of at most `MAX_CALLS` calls, `call otp call refund 7`, then ask the verifier."""
        if self._db is None or self._task is None:
            raise SetupError("step before reset", "reset(task) first")
        if self._attempts.over:
            return self._attempts.record(0.0)
        move = task_list.moves_of(self._task)[self._attempts.place]
        # A step of an order is refused without a trace: with two in one action, both would be tried at once.
        calls = _parse(action, 1 if move.stage else MAX_CALLS)
        if isinstance(calls, str):
            return self._attempts.record(0.0, calls, error=True)
        answers = [service.call(self._db, name, item) for name, item in calls]
        if any(answer["status"] == "unknown" for answer in answers):
            return self._attempts.record(0.0, "unknown call", error=True)
        now = service.states(self._db)
        expected = (task_list.word_of(self._task, move) if move.stage else move.key, int(move.arg))
        # An item that another order left in the wanted state would make whatever is refused look complete.
        taken = [one for one, answer in zip(calls, answers, strict=True) if answer["status"] == "ok"]
        right = expected in taken and service.verify(self._before, now, [expected])["result"] == "complete"
        step = self._attempts.record(float(right))
        if right:
            self._before = now
            self._open_job(self._task)
        return step

    def close(self) -> None:
        """Free the database."""
        if self._db is not None:
            self._db.close()
            self._db = None

    # ── Procedural ──

    def action(self, sub: cv.Sub | cv.Move | cv.DemoSub, value: str) -> str:
        if self.spec.procedure(sub.key):
            return f"call {value} {sub.arg}"
        return f"call {value} call {sub.key} {sub.arg}"

    def observation(self, sub: cv.DemoSub, ok: bool, is_last: bool, rng: np.random.Generator) -> str:
        next_text = sub.again if not ok else "" if is_last else sub.next_text
        return wording("ok" if ok else "no", "", next_text)

    def words(self) -> tuple[str, ...]:
        spoken = "call then next ok no error unknown too many calls not a"
        return (
            *spoken.split(),
            *service.OPERATIONS,
            *service.PREPARATIONS,
            *service.ITEMS,
            *cv.FIRST,
            *cv.SECOND,
            *self.spec.level_words(),
        )


def _parse(action: str, most: int = MAX_CALLS) -> list[tuple[str, int | None]] | str:
    """The calls of an action, or what is wrong with it."""
    text = " ".join(action.split())
    calls: list[tuple[str, int | None]] = []
    place = 0
    while place < len(text):
        found = CALL.match(text, place)
        if found is None or (found.end() < len(text) and text[found.end()] != " "):
            return "not a call"
        calls.append((found["name"], int(found["item"]) if found["item"] else None))
        place = found.end() + 1
    if not calls:
        return "not a call"
    return "too many calls" if len(calls) > most else calls
