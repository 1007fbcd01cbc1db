"""`sql`: questions to a database on sqlite3, scored as in InterCode-SQL by intersection over union.

Hidden convention: which code digit a status word stands for in the `state` column. The schema and
all rows can be read; what `late` means cannot. Every (operation, code) pair has an answer of its
own, so a wrong code never scores by luck. Families beyond tips hide which columns of a table an audit,
a report or a route reads, and in which order (`environments/procedures.py`).
Source: reward after InterCode (IoU of result rows against the gold result); data ours.
Differs: rows are compared as multisets, order is not scored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from opd_evolver.environments import conventions as cv
from opd_evolver.environments import procedures as pr
from opd_evolver.environments import tasks as task_list
from opd_evolver.environments.attempts import Attempts, wording
from opd_evolver.environments.procedural import ProceduralDomain
from opd_evolver.environments.sql_sandbox import QueryError, Sandbox, Table
from opd_evolver.errors import SetupError
from opd_evolver.records import Level, Step, Task
from opd_evolver.sections import NO_HEADROOM, HeadroomParams

# fmt: off
STATUS = (
    "late", "paid", "open", "lost", "held", "sent", "void", "done",
    "kept", "owed", "due", "sold", "shut", "torn", "filed", "moved",
)
PROCEDURES = (
    pr.Procedure("skill", ("audit", "review", "settle", "balance", "inspect", "verify", "assess", "adjust"), 3),
    pr.Procedure("tool", ("report", "digest", "summary", "invoice", "forecast", "budget", "extract", "payroll"), 3),
    pr.Procedure("trajectory", ("route", "tour", "march", "climb", "track", "walk", "voyage", "trek"), 4),
)
# fmt: on
COLUMNS = ("fee", "tax", "net", "rent", "cost")
TABLES = tuple(f"t{n}" for n in range(2, 10))
DIGITS = tuple("0123456789")
OPS = {"count": "count ( * )", "sum": "sum ( amount )", "max": "max ( amount )", "min": "min ( amount )"}
# Ranges that keep the answers of the four operations apart; the seed data draws from the same ones.
COUNTS, LOWEST, MIDDLE, HIGHEST = (2, 12), (30, 50), (50, 70), (70, 100)


def _phrase(sub: cv.Sub) -> str:
    return f"{sub.key} {sub.arg}" if sub.arg in TABLES else f"{sub.arg} {sub.key}"


SPEC = cv.Domain(
    name="sql",
    slot=0,
    keys=STATUS,
    values=DIGITS,
    distinct=True,
    args=tuple(OPS),
    phrase=_phrase,
    steps=COLUMNS,
    step_args=TABLES,
    procedures=PROCEDURES,
)


def rows_of(scope: str, world_seed: int) -> list[tuple[int, int, int]]:
    """Rows (id, state, amount) of a database: each of the ten codes with its own count, sum, max and min."""
    rng = cv.generator("rows", world_seed, scope)
    while True:
        counts = rng.permutation(np.arange(*COUNTS))
        lows = rng.permutation(np.arange(*LOWEST))[:10]
        highs = rng.permutation(np.arange(*HIGHEST))[:10]
        amounts = [
            [int(low), int(high), *(int(x) for x in rng.integers(*MIDDLE, size=int(count) - 2))]
            for count, low, high in zip(counts, lows, highs, strict=True)
        ]
        if len({sum(group) for group in amounts}) == len(amounts):
            break
    pairs = [(state, amount) for state, group in enumerate(amounts) for amount in group]
    return [(i + 1, *pairs[place]) for i, place in enumerate(rng.permutation(len(pairs)))]


def tables_of(scope: str, world_seed: int) -> dict[str, tuple[int, ...]]:
    """The one row of each of the tables t2 … t9: a digit for every column, no two alike."""
    rng = cv.generator("tables", world_seed, scope)
    return {name: tuple(int(x) for x in rng.permutation(10)[: len(COLUMNS)]) for name in TABLES}


def overlap(got: Sequence[tuple[object, ...]], gold: Sequence[tuple[object, ...]]) -> float:
    """Intersection over union of two multisets of rows; 1.0 when both are empty."""
    left, right = Counter(got), Counter(gold)
    union = (left | right).total()
    return (left & right).total() / union if union else 1.0


class Sql(ProceduralDomain):
    """The `sql` domain.

    Args:
        world_seed: fixes the conventions and the data of all families.
        levels: home levels of the families, by turns.
        headroom: see `environments/headroom.py`.
    """

    domain = "sql"
    spec = SPEC

    def __init__(
        self, world_seed: int = 0, levels: Sequence[Level] = cv.TIPS_ONLY, headroom: HeadroomParams = NO_HEADROOM
    ) -> None:
        super().__init__(world_seed, levels, headroom)
        self._sandbox: Sandbox | None = None

    # ── Environment ──

    def reset(self, task: Task) -> str:
        """A fresh in-memory database; the first observation is the stage that an order begins with, else empty."""
        self.close()
        self._task = task
        self._sandbox = Sandbox(self._tables(task))
        self._attempts = Attempts(task_list.asked_of(self.spec, task))
        return self._attempts.first

    def _tables(self, task: Task) -> Iterator[Table]:
        world_seed = int(task.gold["world_seed"])
        yield Table("jobs", ("id", "state", "amount"), rows_of(task.scope, world_seed))
        if self.spec.levels != cv.TIPS_ONLY:
            for name, row in tables_of(task.scope, world_seed).items():
                yield Table(name, COLUMNS, [row])

    def step(self, action: str) -> Step:
        """Run one query; it is scored against the gold query's rows."""
        if self._sandbox is None or self._task is None:
            raise SetupError("step before reset", "reset(task) first")
        if self._attempts.over:
            return self._attempts.record(0.0)
        try:
            rows = self._sandbox.query(action)
        except QueryError as error:
            return self._attempts.record(0.0, str(error), error=True)
        gold = self._sandbox.query(self.oracle(self._task))
        return self._attempts.record(overlap(rows, gold), _shown(rows))

    def close(self) -> None:
        """Free the database."""
        if self._sandbox is not None:
            self._sandbox.close()
            self._sandbox = None

    # ── Procedural ──

    def action(self, sub: cv.Sub | cv.Move | cv.DemoSub, value: str) -> str:
        if self.spec.procedure(sub.key):
            return f"select {value} from {sub.arg}"
        return f"select {OPS[sub.arg]} from jobs where state = {value}"

    def observation(self, sub: cv.DemoSub, ok: bool, is_last: bool, rng: np.random.Generator) -> str:
        if sub.stage:
            said = sub.again if not ok else "" if is_last else sub.next_text
            return wording("ok" if ok else "no", str(int(rng.integers(10))), said)
        ranges = {"count": COUNTS, "sum": (LOWEST[0] + HIGHEST[0], 700), "max": HIGHEST, "min": LOWEST}
        number = str(int(rng.integers(*ranges[sub.arg])))
        return wording("ok" if ok else "no", number, "" if is_last or not ok else sub.next_text)

    def words(self) -> tuple[str, ...]:
        """Numbers are made of digits; a tokenizer may read each digit on its own."""
        spoken = "select count sum max min ( * ) amount from jobs where state = then next ok no error …"
        return (*spoken.split(), *STATUS, *DIGITS, *cv.FIRST, *cv.SECOND, *self.spec.level_words())


def _shown(rows: Sequence[tuple[object, ...]]) -> str:
    return " ".join("none" if value is None else str(value) for row in rows for value in row) or "none"
