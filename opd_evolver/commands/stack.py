"""`opd up`, `opd status`, `opd down`: the local stack on loopback."""

from __future__ import annotations

import argparse
import json
from typing import Any


def _print(tree: Any, given: argparse.Namespace) -> None:
    if given.json:
        print(json.dumps(tree, ensure_ascii=False, indent=2))
        return
    for name, value in tree.items():
        print(f"{name}: {value if not isinstance(value, dict) else ', '.join(f'{k}={v}' for k, v in value.items())}")


def up(given: argparse.Namespace) -> int:
    """Start what does not run yet."""
    from opd_evolver import stack
    from opd_evolver.settings import load_settings

    _print(stack.up(load_settings()), given)
    return 0


def status(given: argparse.Namespace) -> int:
    """Exit 0 when all of it runs, 1 otherwise."""
    from opd_evolver import stack

    tree = stack.status()
    _print(tree, given)
    return 0 if tree.get("running") else 1


def down(given: argparse.Namespace) -> int:
    """Stop what `up` started, and only that."""
    from opd_evolver import stack

    _print(stack.down(), given)
    return 0
