"""A read-only sqlite3 database in memory that runs whatever query an agent writes.

Only reading is authorised (no ATTACH, PRAGMA, writes or extensions), only functions whose result
depends on their arguments alone, and work, memory, text and result are limited: a query takes at most about
a second of CPU and 200 MB. A refused or broken query is a `QueryError`, which becomes an observation.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

MAX_QUERY_CHARS = 2_000
# One call of a text function counts as one operation, however long its text: short texts keep it cheap, and a check
# looks at the CPU time too. A trim of given letters would cost milliseconds all the same, so none is authorised.
MAX_VALUE_BYTES = 1_000
MAX_PATTERN_BYTES = 50
MAX_ROWS = 200
OPERATIONS_PER_CHECK = 1_000
MAX_CHECKS = 1_000
MAX_CPU_S = 0.5
# Preparing a query copies what a name stands for wherever it is used, before any check; memory alone bounds it. sqlite
# has one heap a process, so the limit must leave room for the other databases there, a few megabytes each.
MAX_HEAP_BYTES = 128 << 20
# fmt: off
FUNCTIONS = frozenset({
    "count", "sum", "max", "min", "avg", "total", "group_concat", "abs", "round", "sign", "length", "lower", "upper",
    "substr", "substring", "instr", "replace", "coalesce", "ifnull", "iif", "nullif", "like", "glob", "typeof",
    "row_number", "rank", "dense_rank", "ntile", "lag", "lead", "first_value", "last_value",
    "nth_value", "percent_rank", "cume_dist",
})
# fmt: on
READING = frozenset({sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE})


class QueryError(Exception):
    """A query that was refused or failed; an observation for the agent, not an error of the house."""


class Table(NamedTuple):
    """A table of integers; a column `id` is its key. Names are ours, never an agent's."""

    name: str
    columns: tuple[str, ...]
    rows: Iterable[Sequence[int]]


class Sandbox:
    """One database.

    Args:
        tables: what it holds.
    """

    def __init__(self, tables: Iterable[Table]) -> None:
        self._db = sqlite3.connect(":memory:", isolation_level=None)
        self._db.execute("begin")
        for table in tables:
            columns = ", ".join(f"{name} integer" + " primary key" * (name == "id") for name in table.columns)
            self._db.execute(f"create table {table.name} ({columns})")
            places = ", ".join("?" * len(table.columns))
            self._db.executemany(f"insert into {table.name} values ({places})", table.rows)
        self._db.execute("commit")
        if self._db.execute("pragma hard_heap_limit").fetchone() == (0,):
            self._db.execute(f"pragma hard_heap_limit = {MAX_HEAP_BYTES}")
        self._checks, self._ends = 0, 0.0
        self._db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE_BYTES)
        self._db.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, MAX_QUERY_CHARS)
        self._db.setlimit(sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, MAX_PATTERN_BYTES)
        self._db.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        self._db.set_authorizer(_authorise)
        self._db.set_progress_handler(self._interrupt, OPERATIONS_PER_CHECK)

    def query(self, text: str) -> list[tuple[object, ...]]:
        """Rows of one query, at most `MAX_ROWS`.

        Raises:
            QueryError: refused, malformed, or beyond a limit; its text is sqlite's message.
        """
        self._checks, self._ends = 0, time.thread_time() + MAX_CPU_S
        try:
            cursor = self._db.execute(text)
            if cursor.description is None:
                raise QueryError("not a query")
            return cursor.fetchmany(MAX_ROWS)
        # sqlite3.Warning (several statements, up to Python 3.11) is no sqlite3.Error; ValueError: NUL or surrogates.
        except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
            raise QueryError(str(error)) from error
        except MemoryError as error:
            raise QueryError("out of memory") from error

    def close(self) -> None:
        self._db.close()

    def _interrupt(self) -> bool:
        self._checks += 1
        return self._checks > MAX_CHECKS or time.thread_time() > self._ends


def _authorise(action: int, first: str | None, second: str | None, database: str | None, trigger: str | None) -> int:
    if action in READING or (action == sqlite3.SQLITE_FUNCTION and second in FUNCTIONS):
        return sqlite3.SQLITE_OK
    return sqlite3.SQLITE_DENY
