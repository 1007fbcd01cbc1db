"""A sandbox of each mode: skipped where the machine cannot make it, failed where what it makes leaks."""

from __future__ import annotations

import pytest

from opd_evolver.sandbox import LANGUAGES, Sandbox
from opd_evolver.sandbox.limits import Mode
from opd_evolver.sandbox.probe import try_mode

NOT_HERE = ("could not be set up", "is not installed", "cannot start", "isolation needs Linux")


def box_of(mode: Mode) -> Sandbox:
    """The sandbox of a mode."""
    found = try_mode(mode)
    if found.mode is None and any(word in found.detail for word in NOT_HERE):
        pytest.skip(f"no {mode} here: {found.detail}")
    assert found.languages == LANGUAGES, found.detail
    return Sandbox(mode)
