"""Runs code that a policy wrote: namespaces, a private tree, no network, limits on all it can take.

Two modes with the same tree and the same filter of system calls: `bubblewrap` where it is
installed, else `namespaces` by our own launcher. Without either nothing is run.
"""

from opd_evolver.sandbox.limits import LANGUAGES, Language, Limits, Mode, Outcome
from opd_evolver.sandbox.probe import Isolation, available, probe
from opd_evolver.sandbox.run import Sandbox

__all__ = ["LANGUAGES", "Isolation", "Language", "Limits", "Mode", "Outcome", "Sandbox", "available", "probe"]
