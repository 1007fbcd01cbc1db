"""Finds environments by name.

An outside package adds an environment by an entry point of the group `opd_evolver.environments`
that names a class or function without required arguments (see docs/environments.md).
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
from collections.abc import Callable, Sequence
from typing import Any

from opd_evolver.environments.domain import TIPS_ONLY
from opd_evolver.environments.protocol import Environment
from opd_evolver.errors import SetupError
from opd_evolver.records import Level
from opd_evolver.sections import NO_HEADROOM, EnvironmentParams, HeadroomParams

GROUP = "opd_evolver.environments"
# Known without being installed, and never shadowed by an outside package.
BUILT_IN = {
    "sql": "opd_evolver.environments.sql:Sql",
    "apps": "opd_evolver.environments.apps:Apps",
    "shell": "opd_evolver.environments.shell:Shell",
    "grid": "opd_evolver.environments.grid:Grid",
    "household": "opd_evolver.environments.household:Household",
}


def names() -> tuple[str, ...]:
    """Every name that `load` knows, sorted."""
    return tuple(sorted({*BUILT_IN, *(point.name for point in importlib.metadata.entry_points(group=GROUP))}))


def loader(worlds: EnvironmentParams) -> Callable[[str], Environment]:
    """`load` for these levels and this headroom, as pools of environments want it."""
    return lambda name: load(name, worlds.levels, worlds.headroom)


def load(name: str, levels: Sequence[Level] = TIPS_ONLY, headroom: HeadroomParams = NO_HEADROOM) -> Environment:
    """A new instance of an environment.

    Args:
        name: a built-in domain or an entry point of the group `opd_evolver.environments`.
        levels: home levels of the families of a built-in domain; an outside one has its own.
        headroom: of a built-in domain, see `environments/headroom.py`.

    Raises:
        SetupError: the name is unknown (the nearest one is named), its package cannot be imported, or what it
            names is not an environment.
    """
    made = _factory(name)(levels=levels, headroom=headroom) if name in BUILT_IN else _factory(name)()
    if not isinstance(made, Environment):
        raise SetupError(
            f"environment {name!r} is a {type(made).__name__} without {', '.join(_missing(made))}",
            "the methods of opd_evolver.environments.protocol.Environment",
            "see docs/environments.md",
        )
    if made.domain != name:
        raise SetupError(
            f"environment {name!r} calls its domain {made.domain!r}", "the same name", f"set `domain = {name!r}`"
        )
    return made


def _factory(name: str) -> Callable[..., Any]:
    try:
        if name in BUILT_IN:
            module, attribute = BUILT_IN[name].split(":")
            found: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
            return found
        for point in importlib.metadata.entry_points(group=GROUP, name=name):
            found = point.load()
            return found
    except (ImportError, AttributeError) as error:
        raise SetupError(
            f"environment {name!r} cannot be imported: {error}",
            "an importable module and attribute",
            "install the package that offers it, with its dependencies",
        ) from error
    near = difflib.get_close_matches(name, names(), n=1, cutoff=0.0)
    raise SetupError(
        f"unknown environment {name!r}",
        f"one of {', '.join(names())}",
        f"did you mean {near[0]!r}? Others come with packages that offer an entry point in {GROUP}",
    )


def _missing(made: object) -> list[str]:
    return [part for part in ("domain", "tasks", "reset", "step", "close") if not hasattr(made, part)]
