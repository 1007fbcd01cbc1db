"""The contract of a round's example sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from opd_evolver.contracts.engine import Contract, ContractReport, expectations, id_rules, true
from opd_evolver.errors import CorruptionError
from opd_evolver.records import ABILITIES, SCHEMA_VERSION, Example


def contract(path: Path, hindsight: str = "full") -> Contract:
    """Ids unique, abilities known, student equals teacher outside the hindsight.

    Args:
        path: examples.jsonl, or the folder that holds it.
        hindsight: the arm; `empty` allows teachers without hindsight.

    Raises:
        CorruptionError: missing or not lines of `Example`.
    """
    gxe = expectations()
    examples = _read(path / "examples.jsonl" if path.is_dir() else path)
    suite = [
        *id_rules(gxe, "example_id"),
        gxe.ExpectColumnValuesToBeInSet(column="schema_version", value_set=[SCHEMA_VERSION]),
        gxe.ExpectColumnValuesToBeInSet(column="ability", value_set=list(ABILITIES)),
        gxe.ExpectColumnValuesToMatchRegex(column="rollout_id", regex=r"\S"),
        gxe.ExpectColumnValuesToMatchRegex(column="group", regex=r"\S"),
        gxe.ExpectColumnValuesToBeBetween(column="n_student_tokens", min_value=1),
        gxe.ExpectColumnValuesToBeBetween(column="max_new_tokens", min_value=1),
        gxe.ExpectColumnValuesToBeBetween(column="trust", min_value=0.0),
        true(gxe, "spans_lie_in_teacher"),
        true(gxe, "student_is_teacher_without_hindsight"),
    ]
    if hindsight == "full":
        suite.append(gxe.ExpectColumnValuesToBeBetween(column="n_hindsight_tokens", min_value=1))
    return Contract("examples", [_columns(example) for example in examples], "example_id", suite)


def check_examples(path: Path, hindsight: str = "full") -> ContractReport:
    """Validates example sets; see `contract`."""
    return contract(path, hindsight).check()


def _columns(example: Example) -> dict[str, Any]:
    blind: list[int] = []
    at, lie = 0, True
    for start, end in example.hindsight_spans:
        lie = lie and at <= start < end <= len(example.teacher_ids)
        blind += example.teacher_ids[at:start]
        at = end
    blind += example.teacher_ids[at:]
    return {
        "example_id": example.example_id,
        "schema_version": example.schema_version,
        "ability": example.ability,
        "rollout_id": example.rollout_id,
        "group": example.group,
        "n_student_tokens": len(example.student_ids),
        "n_hindsight_tokens": sum(end - start for start, end in example.hindsight_spans),
        "max_new_tokens": example.max_new_tokens,
        "trust": example.trust,
        "spans_lie_in_teacher": lie,
        "student_is_teacher_without_hindsight": tuple(blind) == example.student_ids,
    }


def _read(path: Path) -> list[Example]:
    try:
        with path.open(encoding="utf-8") as file:
            return [Example.model_validate_json(line) for line in file]
    except (OSError, ValidationError, UnicodeDecodeError) as error:
        raise CorruptionError(
            f"cannot read examples {path}: {str(error).splitlines()[0]}",
            "lines of examples",
            "opd resume makes them again",
        ) from None
