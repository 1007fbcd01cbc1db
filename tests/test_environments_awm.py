"""Worlds in AWM's file format: ours go out and in again, code of outside origin is never run."""

from __future__ import annotations

import json
import runpy
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from opd_evolver.environments import awm, service
from opd_evolver.environments.apps import Apps
from opd_evolver.environments.tasks import subs_of
from opd_evolver.errors import CorruptionError, SetupError


def our_scenario() -> awm.Scenario:
    tasks = Apps().tasks("deploy-test", 24)
    mine = [task for task in tasks if task.scope == tasks[0].scope]
    return awm.scenario_of(
        mine[0].scope,
        mine[0].gold["facts"],
        [(task.text, [(sub.key, int(sub.arg)) for sub in subs_of(task)]) for task in mine],
    )


def outside_files(folder: Path, **changes: dict[str, Any]) -> Path:
    """A small folder in the shapes of AgentWorldModel-1K, one scenario, code of outside origin."""
    rows: dict[str, dict[str, Any]] = {
        "gen_scenario.jsonl": {"name": "E-Commerce 33", "description": "a shop"},
        "gen_tasks.jsonl": {"scenario": "e_commerce_33", "tasks": ["Ship order 1", "Cancel order 2"]},
        "gen_db.jsonl": {
            "scenario": "e_commerce_33",
            "db_path": "databases/e_commerce_33.db",
            "db_schema": {
                "tables": [
                    {
                        "name": "orders",
                        "ddl": "CREATE TABLE orders (id INTEGER PRIMARY KEY, state TEXT NOT NULL DEFAULT 'new');",
                        "indexes": ["CREATE INDEX by_state ON orders (state);"],
                    }
                ]
            },
        },
        "gen_sample.jsonl": {
            "scenario": "e_commerce_33",
            "tables_count": 1,
            "inserts_count": 2,
            "sample_data": {
                "tables": [
                    {
                        "table_name": "orders",
                        "insert_statements": [
                            "INSERT INTO orders (id, state) VALUES (1, 'new');",
                            "INSERT INTO orders (id, state) VALUES (2, 'paid');",
                        ],
                    }
                ]
            },
        },
        "gen_spec.jsonl": {
            "scenario": "e_commerce_33",
            "api_spec": {
                "api_groups": [
                    {
                        "group_name": "orders",
                        "endpoints": [
                            {
                                "path": "/orders/{id}/ship",
                                "method": "POST",
                                "summary": "Ship an order",
                                "description": "",
                                "operation_id": "ship_order",
                                "request_params": {},
                                "response": {},
                                "required_tables": ["orders"],
                                "required_fields": {},
                            }
                        ],
                    }
                ]
            },
        },
        "gen_envs.jsonl": {
            "scenario": "e_commerce_33",
            "db_path": "",
            "full_code": f"open({str(folder / 'ran')!r}, 'w').close()\n",
        },
        "gen_verifier.pure_code.jsonl": {
            "scenario": "e_commerce_33",
            "task_idx": 0,
            "task": "Ship order 1",
            "verification": {
                "code": f"open({str(folder / 'ran')!r}, 'w').close()\n"
                "def verify_task_completion(initial_db_path, final_db_path, final_answer=None):\n"
                "    return {'result': 'complete'}\n",
                "raw_response": "",
            },
        },
    }
    folder.mkdir(exist_ok=True)
    for name, row in rows.items():
        (folder / name).write_text(json.dumps({**row, **changes.get(name.split(".")[0], {})}) + "\n")
    return folder


def test_our_worlds_survive_the_files(tmp_path: Path) -> None:
    world = our_scenario()
    awm.write(tmp_path / "awm", [world])
    assert sorted(path.name for path in (tmp_path / "awm").iterdir()) == sorted(awm.FILES.values())
    assert awm.read(tmp_path / "awm") == (world,)


def test_a_world_from_files_is_played_and_verified(tmp_path: Path) -> None:
    awm.write(tmp_path, [our_scenario()])
    (world,) = awm.read(tmp_path)
    rules = dict(awm.open_database(world).execute("SELECT operation, first_call FROM rules"))
    for index in range(len(world.tasks)):
        expected = awm.expected_of(world, index)
        db = awm.open_database(world)
        before = service.states(db)
        assert service.verify(before, service.states(db), expected) == {"result": "others"}
        for name, item in expected:
            assert service.call(db, rules[name], None) == {"status": "ok"}
            assert service.call(db, name, item) == {"status": "ok"}
        assert service.verify(before, service.states(db), expected) == {"result": "complete"}
        db.close()


def test_our_verifier_code_stands_on_its_own(tmp_path: Path) -> None:
    """AWM's own tools would run this text; so does this test, since we wrote it."""
    world = our_scenario()
    ((name, item),) = awm.expected_of(world, 0)
    paths = [tmp_path / "initial.db", tmp_path / "final.db"]
    for path in paths:
        with sqlite3.connect(path) as target:
            awm.open_database(world).backup(target)
    (tmp_path / "verifier.py").write_text(world.verifiers[0])
    space = runpy.run_path(str(tmp_path / "verifier.py"))
    assert space["verify_task_completion"](*map(str, paths)) == {"result": "others"}
    with sqlite3.connect(paths[1]) as db:
        db.execute("UPDATE items SET state = ? WHERE id = ?", (name, item))
    assert space["verify_task_completion"](*map(str, paths)) == {"result": "complete"}


def test_outside_worlds_are_read_but_their_code_is_refused(tmp_path: Path) -> None:
    (world,) = awm.read(outside_files(tmp_path / "awm"))
    assert world.name == "E-Commerce 33"
    assert world.tasks == ("Ship order 1", "Cancel order 2")
    assert [endpoint.operation_id for endpoint in world.endpoints] == ["ship_order"]
    db = awm.open_database(world)
    assert db.execute("SELECT id, state FROM orders ORDER BY id").fetchall() == [(1, "new"), (2, "paid")]
    for index in (0, 1):
        with pytest.raises(SetupError, match="code of outside origin"):
            awm.expected_of(world, index)
    assert not (tmp_path / "awm" / "ran").exists()


def test_our_code_with_a_foreign_verifier_is_refused() -> None:
    world = our_scenario()
    forged = world.model_copy(update={"verifiers": (world.verifiers[0] + "\nprint('more')\n",)})
    with pytest.raises(SetupError, match="code of outside origin"):
        awm.expected_of(forged, 0)


@pytest.mark.parametrize(
    "statement",
    [
        "ATTACH DATABASE 'stolen.db' AS other",
        "PRAGMA writable_schema = 1",
        "CREATE TRIGGER t AFTER INSERT ON orders BEGIN DELETE FROM orders; END",
        "SELECT load_extension('x')",
        "INSERT INTO nowhere VALUES (1)",
        "INSERT INTO orders (id) VALUES (7); DROP TABLE orders",
    ],
)
def test_statements_beyond_building_are_refused(tmp_path: Path, statement: str) -> None:
    data = {"sample_data": {"tables": [{"table_name": "orders", "insert_statements": [statement]}]}}
    (world,) = awm.read(outside_files(tmp_path / "awm", gen_sample=data))
    with pytest.raises(CorruptionError, match="E-Commerce 33"):
        awm.open_database(world)


def test_missing_and_broken_files_say_what_mends_them(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"gen_scenario\.jsonl is missing"):
        awm.read(tmp_path)
    folder = outside_files(tmp_path / "awm", gen_tasks={"scenario": "another"})
    with pytest.raises(CorruptionError, match="one row per scenario"):
        awm.read(folder)
    (folder / "gen_tasks.jsonl").write_text('{"scenario": ')
    with pytest.raises(CorruptionError, match=r"gen_tasks\.jsonl:1"):
        awm.read(folder)
