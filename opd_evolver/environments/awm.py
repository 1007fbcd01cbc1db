"""Worlds in the file format of AgentWorldModel-1K: read, write, open.

A folder holds `gen_scenario.jsonl` (name, description), `gen_tasks.jsonl` (scenario, tasks),
`gen_db.jsonl` (scenario, db_schema: tables with DDL), `gen_sample.jsonl` (scenario, sample_data:
INSERT statements), `gen_spec.jsonl` (scenario, api_spec), `gen_envs.jsonl` (scenario, full_code) and
`gen_verifier.pure_code.jsonl` (scenario, task_idx, task, verification.code).

What the reader refuses: it never runs `full_code` or verifier code of outside origin. Only worlds
whose code is, byte for byte, our own shipped `service.py` can be played; of others the tasks, schema,
sample data and API specification can be read and the database opened, under an authorizer that
allows nothing but building tables and inserting rows.
"""

from __future__ import annotations

import functools
import json
import re
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from opd_evolver import durable
from opd_evolver.environments import service
from opd_evolver.environments.procedures import words_of
from opd_evolver.errors import CorruptionError, SetupError
from opd_evolver.records import Record, canonical_json

FILES = {
    "scenario": "gen_scenario.jsonl",
    "tasks": "gen_tasks.jsonl",
    "db": "gen_db.jsonl",
    "sample": "gen_sample.jsonl",
    "spec": "gen_spec.jsonl",
    "envs": "gen_envs.jsonl",
    "verifier": "gen_verifier.pure_code.jsonl",
}
VERIFIER = """from opd_evolver.environments.service import verify_files


def verify_task_completion(initial_db_path, final_db_path, final_answer=None):
    return verify_files(initial_db_path, final_db_path, {expected})
"""
OUR_VERIFIER = re.compile(re.escape(VERIFIER).replace(re.escape("{expected}"), r"(?P<expected>\[.*\])"))
BUILDING = frozenset(
    {
        sqlite3.SQLITE_CREATE_TABLE,
        sqlite3.SQLITE_CREATE_INDEX,
        sqlite3.SQLITE_INSERT,
        sqlite3.SQLITE_UPDATE,
        sqlite3.SQLITE_READ,
        sqlite3.SQLITE_SELECT,
        sqlite3.SQLITE_REINDEX,
        sqlite3.SQLITE_TRANSACTION,
    }
)


class Endpoint(Record):
    """One API call as the agent may know it."""

    operation_id: str
    method: str
    path: str
    summary: str = ""


class Scenario(Record):
    """One AWM world: a database, an API and tasks with verifiers.

    Args:
        verifiers: code of each task's verifier, in the order of `tasks`; empty where none is given.
    """

    name: str
    description: str = ""
    tasks: tuple[str, ...] = ()
    ddl: tuple[str, ...]
    inserts: tuple[str, ...] = ()
    endpoints: tuple[Endpoint, ...] = ()
    full_code: str = Field(default="", repr=False)
    verifiers: tuple[str, ...] = Field(default=(), repr=False)


@functools.cache
def shipped_code() -> str:
    """The text of our own service: the only world code that may run in process."""
    return Path(service.__file__).read_text(encoding="utf-8")


def scenario_of(
    scope: str, rules: Mapping[str, str], tasks: Sequence[tuple[str, Sequence[tuple[str, int]]]] = ()
) -> Scenario:
    """Our world `scope` as an AWM scenario.

    Args:
        scope: the service's name.
        rules: operation -> the call that must come first, or procedure -> its order of steps; hidden from agents.
        tasks: text and expected (operation, item) pairs of each task.
    """
    inserts = [f"INSERT INTO items (id, state) VALUES ({item}, 'open');" for item in service.ITEMS]
    for name in sorted(rules):
        words = words_of(rules[name])
        if len(words) == 1:
            inserts.append(f"INSERT INTO rules (operation, first_call) VALUES ('{name}', '{words[0]}');")
            continue
        inserts += [
            f"INSERT INTO orders (procedure, place, name) VALUES ('{name}', {place}, '{word}');"
            for place, word in enumerate(words, start=1)
        ]
    return Scenario(
        name=scope,
        description=f"service {scope}",
        tasks=tuple(text for text, _ in tasks),
        ddl=tuple(service.SCHEMA.values()),
        inserts=tuple(inserts),
        endpoints=_endpoints(),
        full_code=shipped_code(),
        verifiers=tuple(VERIFIER.format(expected=json.dumps([list(p) for p in pairs])) for _, pairs in tasks),
    )


@functools.cache
def _endpoints() -> tuple[Endpoint, ...]:
    first = (Endpoint(operation_id=name, method="POST", path=f"/{name}") for name in service.PREPARATIONS)
    named = (*service.OPERATIONS, *service.STEPS)
    then = (Endpoint(operation_id=name, method="POST", path=f"/items/{{item}}/{name}") for name in named)
    return (*first, *then)


def expected_of(scenario: Scenario, task_index: int) -> list[tuple[str, int]]:
    """What a task's verifier expects, read from its text without running it.

    Raises:
        SetupError: world or verifier code is not ours; only worlds written by `awm.write` can be played.
    """
    found = OUR_VERIFIER.fullmatch(scenario.verifiers[task_index]) if task_index < len(scenario.verifiers) else None
    if scenario.full_code != shipped_code() or found is None:
        raise SetupError(
            f"code of outside origin in AWM world {scenario.name!r}",
            "the code that this package ships; other code is never run in process",
            "read its tasks and data only, or play it in a sandbox of your own behind an environment package",
        )
    return [(str(name), int(item)) for name, item in json.loads(found["expected"])]


def open_database(scenario: Scenario) -> sqlite3.Connection:
    """A fresh in-memory database with the scenario's tables and rows.

    Raises:
        CorruptionError: a statement fails or does more than build tables and insert rows.
    """
    db = sqlite3.connect(":memory:", isolation_level=None)
    db.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
    db.set_authorizer(_authorise_building)
    try:
        for statement in ("begin", *scenario.ddl, *scenario.inserts, "commit"):
            db.execute(statement)
    except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
        db.close()
        raise CorruptionError(
            f"AWM world {scenario.name!r}: {error}",
            "CREATE TABLE, CREATE INDEX and INSERT statements that sqlite3 accepts",
            "fetch the files again or leave this world out",
        ) from error
    db.set_authorizer(None)
    return db


def _authorise_building(
    action: int, first: str | None, second: str | None, database: str | None, trigger: str | None
) -> int:
    return sqlite3.SQLITE_OK if action in BUILDING else sqlite3.SQLITE_DENY


def records(scenarios: Iterable[Scenario]) -> dict[str, list[dict[str, Any]]]:
    """The rows of each file, in AWM's shapes."""
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in FILES.values()}
    for world in scenarios:
        tables = [{"name": _table_of(ddl), "ddl": ddl, "indexes": []} for ddl in world.ddl]
        inserts: dict[str, list[str]] = {}
        for statement in world.inserts:
            inserts.setdefault(_table_of(statement), []).append(statement)
        sample = [{"table_name": name, "insert_statements": lines} for name, lines in inserts.items()]
        endpoints = [endpoint.model_dump() for endpoint in world.endpoints]
        row: dict[str, dict[str, Any]] = {
            "scenario": {"name": world.name, "description": world.description},
            "tasks": {"scenario": world.name, "tasks": list(world.tasks)},
            "db": {"scenario": world.name, "db_schema": {"tables": tables}},
            "sample": {"scenario": world.name, "sample_data": {"tables": sample}},
            "spec": {
                "scenario": world.name,
                "api_spec": {"api_groups": [{"group_name": "all", "endpoints": endpoints}]},
            },
            "envs": {"scenario": world.name, "full_code": world.full_code},
        }
        for kind, value in row.items():
            rows[FILES[kind]].append(value)
        rows[FILES["verifier"]] += [
            {"scenario": world.name, "task_idx": i, "task": world.tasks[i], "verification": {"code": code}}
            for i, code in enumerate(world.verifiers)
        ]
    return rows


def _table_of(statement: str) -> str:
    found = re.match(
        r"\s*(?:create\s+table(?:\s+if\s+not\s+exists)?|insert\s+into)\s+[\"`]?(\w+)", statement, re.IGNORECASE
    )
    return found[1] if found else ""


def write(folder: Path, scenarios: Iterable[Scenario]) -> None:
    """Write worlds in AWM's format. `folder` is made when it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in records(scenarios).items():
        durable.write_text(folder / name, "".join(canonical_json(row) + "\n" for row in rows))


def read(folder: Path) -> tuple[Scenario, ...]:
    """Every world of a folder in AWM's format, in the order of `gen_scenario.jsonl`. Runs no code.

    Raises:
        SetupError: a file is missing.
        CorruptionError: a line is not JSON or lacks a field.
    """
    rows = {kind: _read_lines(folder / name) for kind, name in FILES.items()}
    by_name = {kind: {_key(row.get("scenario", "")): row for row in rows[kind]} for kind in FILES if kind != "scenario"}
    verifiers: dict[str, dict[int, str]] = {}
    found: list[Scenario] = []
    try:
        for row in rows["verifier"]:
            verifiers.setdefault(_key(row["scenario"]), {})[int(row["task_idx"])] = row["verification"]["code"]
        for row in rows["scenario"]:
            key = _key(row["name"])
            found.append(
                _scenario(
                    row, {kind: by_name[kind][key] for kind in by_name if kind != "verifier"}, verifiers.get(key, {})
                )
            )
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptionError(
            f"AWM files in {folder}: {type(error).__name__} {error}",
            "one row per scenario in each file, with the fields of AgentWorldModel-1K",
            "fetch the files again",
        ) from error
    return tuple(found)


def _key(name: str) -> str:
    """AWM's files name a scenario in several spellings."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _scenario(row: dict[str, Any], parts: dict[str, dict[str, Any]], verifiers: dict[int, str]) -> Scenario:
    tables = parts["db"]["db_schema"]["tables"]
    tasks = tuple(parts["tasks"]["tasks"])
    return Scenario(
        name=row["name"],
        description=row.get("description", ""),
        tasks=tasks,
        ddl=tuple(s for table in tables for s in (table["ddl"], *table.get("indexes", [])) if s),
        inserts=tuple(s for table in parts["sample"]["sample_data"]["tables"] for s in table["insert_statements"]),
        endpoints=tuple(
            Endpoint(**{field: endpoint.get(field, "") for field in ("operation_id", "method", "path", "summary")})
            for group in parts["spec"]["api_spec"]["api_groups"]
            for endpoint in group["endpoints"]
        ),
        full_code=parts["envs"]["full_code"],
        verifiers=tuple(verifiers.get(i, "") for i in range(len(tasks))),
    )


def _read_lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise SetupError(
            f"{path} is missing", f"a folder with {', '.join(FILES.values())}", "download AgentWorldModel-1K"
        )
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise CorruptionError(
                    f"{path}:{number}: {error}", "one JSON object a line", "fetch the file again"
                ) from error
    return rows
