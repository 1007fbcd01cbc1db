"""Which isolation this machine has: tried, not guessed."""

from __future__ import annotations

import os
import shutil
import sys
from functools import lru_cache
from pathlib import Path

from opd_evolver.errors import OpdError, OutageError
from opd_evolver.records import Record
from opd_evolver.sandbox import seccomp
from opd_evolver.sandbox.limits import LANGUAGES, MODES, Language, Mode, Outcome
from opd_evolver.sandbox.run import LATE, Sandbox

MEND = "apt-get install bubblewrap, or allow user namespaces (sysctl user.max_user_namespaces)"
TRIES = 2
# What must hold inside: no rights, no way to new ones, the filter, nothing of this machine, a pid of its own.
BASH_CHECK = """
while read -r key value; do
  case $key in CapEff:|CapPrm:|CapBnd:|CapInh:|CapAmb:) [ "$value" = 0000000000000000 ] || echo "$key $value";;
    NoNewPrivs:) [ "$value" = 1 ] || echo "$key $value";; Seccomp:) [ "$value" = 2 ] || echo "$key $value";; esac
done < /proc/self/status
for path in "$@"; do [ ! -e "$path" ] || echo "sees $path"; done
[ $$ -lt 100 ] || echo "pid $$"
[ "$EUID" != 0 ] || echo "is root"
echo done
"""
PYTHON_CHECK = """
import os, socket, sys
try:
    socket.socket(socket.AF_INET); print("has a network socket")
except OSError:
    print("done")
"""


class Isolation(Record):
    """What `probe` found.

    Attributes:
        mode: how code is isolated; None: it is not run at all.
        languages: what can be run.
        detail: why other modes were not taken, or what mends it.
    """

    mode: Mode | None
    languages: tuple[Language, ...] = ()
    detail: str = ""

    def line(self) -> str:
        """One line for `opd status`."""
        if self.mode is None:
            return f"python and bash are shown only, no isolation on this machine ({self.detail})"
        if self.languages != LANGUAGES:
            return f"only {' and '.join(self.languages)} in a sandbox ({self.mode}), others shown ({self.detail})"
        return f"{' and '.join(self.languages)} run in a sandbox ({self.mode})"


def _run(mode: Mode, language: Language, check: str, words: tuple[str, ...]) -> Outcome | None:
    """A trial run; None when `TRIES` did not end in time: on a busy machine that says nothing of the isolation."""
    for _ in range(TRIES):
        try:
            outcome = Sandbox(mode).run(language, check, words)
        except OutageError as error:
            if error.expected != LATE:
                raise
            continue
        if not outcome.timed_out:
            return outcome
    return None


def _trial(mode: Mode) -> tuple[tuple[Language, ...], str]:
    """Languages that ran and were found isolated, and what was wrong."""
    hidden = (os.path.expanduser("~/.ssh"), str(Path(__file__).resolve()), "/etc/shadow", "/root", "/home", "/var")
    held: list[Language] = []
    faults: list[str] = []
    for language in LANGUAGES:
        check, words = (BASH_CHECK, hidden) if language == "bash" else (PYTHON_CHECK, ())
        try:
            outcome = _run(mode, language, check, words)
        except (OpdError, OSError) as error:
            faults.append(f"{mode}: {error}")
            continue
        if outcome is None:
            raise OutageError(f"{mode}: trial runs of {language} took too long", LATE, "let the machine do less")
        if outcome.stdout.split() == ["done"]:
            held.append(language)
        else:
            faults.append(f"{mode}: {language} {' '.join((outcome.stdout + outcome.stderr).split())[:200]}")
    return tuple(held) if "bash" in held else (), "; ".join(faults)


def try_mode(mode: Mode) -> Isolation:
    """Whether this very mode holds here.

    Raises:
        OutageError: the machine was too busy to tell.
    """
    if not sys.platform.startswith("linux") or not seccomp.supported():
        return Isolation(mode=None, detail="isolation needs Linux on x86_64 or aarch64")
    if mode == "bubblewrap" and shutil.which("bwrap") is None:
        return Isolation(mode=None, detail="bubblewrap is not installed")
    languages, faults = _trial(mode)
    return Isolation(mode=mode if languages else None, languages=languages, detail=faults)


@lru_cache(maxsize=1)
def probe() -> Isolation:
    """The best isolation of this machine, tried once per process (about 0.1 s): the first mode with all languages.

    Raises:
        OutageError: the machine was too busy to tell; the next call tries again.
    """
    tried: list[str] = []
    best: Isolation | None = None
    late: OutageError | None = None
    for mode in MODES:
        try:
            found = try_mode(mode)
        except OutageError as error:
            late = error
            continue
        tried += [found.detail] if found.detail else []
        if found.mode is not None and (best is None or len(found.languages) > len(best.languages)):
            best = found
        if found.languages == LANGUAGES:
            break
    if best is not None:
        return best.model_copy(update={"detail": "; ".join(tried)})
    if late is not None:
        raise late
    return Isolation(mode=None, detail="; ".join([*tried, MEND]))


def available() -> Sandbox | None:
    """A sandbox where this machine can isolate, else None: then tools are shown, never run.

    Raises:
        OutageError: as `probe`.
    """
    found = probe()
    return Sandbox(found.mode, languages=found.languages) if found.mode is not None else None
