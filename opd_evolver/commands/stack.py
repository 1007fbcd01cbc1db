"""`opd up`, `opd status`, `opd down`: the local stack on loopback."""

from __future__ import annotations

import argparse
from typing import Any

from opd_evolver.console import result
from opd_evolver.errors import OutageError


def _print(tree: dict[str, Any], given: argparse.Namespace) -> None:
    lines = []
    for name, value in tree.items():
        told = ", ".join(f"{key} {one}" for key, one in value.items()) if isinstance(value, dict) else value
        lines.append(f"{name}: {', '.join(map(str, told)) if isinstance(told, list) else told}")
    result(tree, "\n".join(lines), as_json=given.json)


def up(given: argparse.Namespace) -> int:
    """Start what does not run yet."""
    from opd_evolver import stack
    from opd_evolver.settings import load_settings
    from opd_evolver.stack.begun import EXTRAS

    extras = (*EXTRAS, *(("weaviate",) if given.store == "weaviate" else ()))
    _print(stack.up(load_settings(), extras=extras), given)
    return 0


def status(given: argparse.Namespace) -> int:
    """Exit 0 when all of it runs, 1 otherwise. Tells too whether saved code can run isolated here."""
    from opd_evolver import sandbox, stack

    tree = stack.status()
    try:
        tree["tools"] = sandbox.probe().line()
    except OutageError as error:
        tree["tools"] = f"not known: {error}"
    _print(tree, given)
    return 0 if tree.get("running") else 1


def down(given: argparse.Namespace) -> int:
    """Stop what `up` started, and only that."""
    from opd_evolver import stack

    _print(stack.down(), given)
    return 0
