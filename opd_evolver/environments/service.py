"""The service that `apps` worlds run: API functions and verifier over sqlite, in pure stdlib.

This file's text is the `full_code` of the worlds we write in AWM's format. It is the only world
code that runs in process; code from files of outside origin does not (see `awm.py`).
The hidden conventions lie in the tables `rules` and `orders`, which no function returns.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

# fmt: off
PREPARATIONS = ("otp", "ping", "lock", "scan", "sync", "auth", "note", "sign", "seal", "tag")
OPERATIONS = (
    "refund", "cancel", "ship", "renew", "pause", "resume", "split", "return",
    "close", "extend", "upgrade", "transfer", "approve", "reject", "archive", "restore",
)
STEPS = ("wash", "fold", "pack", "weigh", "label")
# fmt: on
ITEMS = tuple("23456789")
SCHEMA = {
    "items": "CREATE TABLE items (id INTEGER PRIMARY KEY, state TEXT NOT NULL);",
    "rules": "CREATE TABLE rules (operation TEXT PRIMARY KEY, first_call TEXT NOT NULL);",
    "orders": "CREATE TABLE orders (procedure TEXT NOT NULL, place INTEGER NOT NULL, name TEXT NOT NULL);",
    "jobs": "CREATE TABLE jobs (item INTEGER PRIMARY KEY, procedure TEXT NOT NULL, done INTEGER NOT NULL);",
    "calls": "CREATE TABLE calls (id INTEGER PRIMARY KEY, name TEXT NOT NULL, item INTEGER);",
}


def prepare(db: sqlite3.Connection, name: str) -> dict[str, object]:
    """POST /{name}: log a preparing call. Any of them is always accepted."""
    db.execute("INSERT INTO calls (name, item) VALUES (?, NULL)", (name,))
    return {"status": "ok"}


def operate(db: sqlite3.Connection, name: str, item: int) -> dict[str, object]:
    """POST /items/{item}/{name}: done only when the rule's call came directly before."""
    rule = db.execute("SELECT first_call FROM rules WHERE operation = ?", (name,)).fetchone()
    last = db.execute("SELECT name FROM calls ORDER BY id DESC LIMIT 1").fetchone()
    db.execute("INSERT INTO calls (name, item) VALUES (?, ?)", (name, item))
    if rule is None or last != rule:
        return {"status": "refused"}
    changed = db.execute("UPDATE items SET state = ? WHERE id = ?", (name, item)).rowcount
    return {"status": "ok" if changed else "refused"}


def open_job(db: sqlite3.Connection, procedure: str, item: int) -> None:
    """A procedure is wanted for an item, from its beginning."""
    db.execute("INSERT OR REPLACE INTO jobs (item, procedure, done) VALUES (?, ?, 0)", (item, procedure))


def advance(db: sqlite3.Connection, name: str, item: int) -> dict[str, object]:
    """POST /items/{item}/{name}: done only when it is the next step of the item's open job."""
    db.execute("INSERT INTO calls (name, item) VALUES (?, ?)", (name, item))
    wanted = db.execute(
        "SELECT name FROM orders JOIN jobs USING (procedure) WHERE jobs.item = ? AND place = done + 1",
        (item,),
    ).fetchone()
    if wanted is None or wanted[0] != name:
        return {"status": "refused"}
    db.execute("UPDATE jobs SET done = done + 1 WHERE item = ?", (item,))
    db.execute("UPDATE items SET state = ? WHERE id = ?", (name, item))
    return {"status": "ok"}


def call(db: sqlite3.Connection, name: str, item: int | None) -> dict[str, object]:
    """Route one API call by operation id."""
    if name in PREPARATIONS and item is None:
        return prepare(db, name)
    if name in OPERATIONS and item is not None:
        return operate(db, name, item)
    if name in STEPS and item is not None:
        return advance(db, name, item)
    return {"status": "unknown"}


def states(db: sqlite3.Connection) -> dict[int, str]:
    """What the verifier compares: the state of every item."""
    return dict(db.execute("SELECT id, state FROM items"))


def verify(initial: dict[int, str], final: dict[int, str], expected: Sequence[tuple[str, int]]) -> dict[str, str]:
    """Complete when exactly the expected operations changed the items and nothing else did."""
    wanted = dict(initial)
    for name, item in expected:
        wanted[item] = name
    return {"result": "complete" if final == wanted else "others"}


def verify_files(initial_db_path: str, final_db_path: str, expected: Sequence[tuple[str, int]]) -> dict[str, str]:
    """The verifier in AWM's form: two database files."""
    found = []
    for path in (initial_db_path, final_db_path):
        db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        try:
            found.append(states(db))
        finally:
            db.close()
    return verify(found[0], found[1], expected)
