"""HEAD.jsonl of a run: which lineage is current, and why. Append-only; an undo is a line, too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from opd_evolver.durable import append_line, check_schema
from opd_evolver.errors import CorruptionError
from opd_evolver.records import SCHEMA_VERSION, Record, canonical_json

Action = Literal["open", "rollback", "fork", "reembed", "undo"]


class Head(Record):
    """One line of HEAD.jsonl."""

    schema_version: int = SCHEMA_VERSION
    lineage: str
    action: Action
    reason: str = ""


def append(root: Path, name: str, head: Head) -> None:
    """The run's current lineage is another one from now on."""
    append_line(_file(root, name), canonical_json(head))


def read(root: Path, name: str) -> list[Head]:
    """Oldest first; none where the run was never begun. A torn last line was never acknowledged.

    Raises:
        CorruptionError: a line is malformed.
    """
    path = _file(root, name)
    if not path.exists():
        return []
    *whole, _torn = path.read_text(encoding="utf-8").split("\n")
    lines = [line for line in whole if line]
    heads = []
    for number, line in enumerate(lines, start=1):
        try:
            tree = json.loads(line)
            check_schema(tree, f"{path} line {number}")
            heads.append(Head.model_validate(tree))
        except (ValidationError, ValueError):
            raise CorruptionError(f"{path} line {number} is malformed", "a HEAD record", f"restore {path}") from None
    return heads


def before(root: Path, name: str) -> str | None:
    """The lineage to which an undo returns; None where the first one is current."""
    stack = [name]  # its `open` line is missing where the process was killed between run.json and HEAD.jsonl
    for head in read(root, name):
        if head.action == "undo":
            stack.pop()
        elif head.action != "open":
            stack.append(head.lineage)
    return stack[-2] if len(stack) > 1 else None


def _file(root: Path, name: str) -> Path:
    return root / "runs" / name / "HEAD.jsonl"
