"""One error family. Every message says what was seen, what was expected, and the one thing that mends it.

Exit codes of the `opd` command (documented in the README):
0 done · 1 failed · 2 set-up or input error · 3 outage (environment, endpoint, store) · 4 gate refused for good ·
130 Ctrl-C or SIGTERM
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path


class OpdError(Exception):
    """Base of every error this project raises on purpose.

    Args:
        seen: what was found.
        expected: what should have been there.
        mend: the one command or key that mends it.
    """

    exit_code = 1

    def __init__(self, seen: str, expected: str = "", mend: str = "") -> None:
        self.seen, self.expected, self.mend = seen, expected, mend
        parts = [seen]
        if expected:
            parts.append(f"expected {expected}")
        if mend:
            parts.append(f"mend: {mend}")
        super().__init__("; ".join(parts))

    def __reduce__(self) -> tuple[type[OpdError], tuple[str, str, str]]:
        return type(self), (self.seen, self.expected, self.mend)


class SetupError(OpdError):
    """The user's set-up or input is wrong; printed in one line without a traceback."""

    exit_code = 2


class SchemaError(SetupError):
    """A record, ledger, snapshot or store was written by a newer version or is malformed."""


class CorruptionError(SetupError):
    """Bytes on disk do not match their digest, or cannot be read."""


class OutageError(OpdError):
    """Something outside the agent is down. Retried; never counted as a failure of the agent."""

    exit_code = 3


class GateRefusal(OpdError):
    """The gate refused the new policy too many times."""

    exit_code = 4


KINDS: tuple[type[OpdError], ...] = (OpdError, SetupError, SchemaError, CorruptionError, OutageError, GateRefusal)


TOLD = '{"error"'
_NAMED = re.compile(r"[A-Za-z_][\w.]*(Error|Exception)(: |$)")


def told(error: OpdError) -> str:
    """An error as one line, for the process that waits for this one."""
    tree = {"error": type(error).__name__, "seen": error.seen, "expected": error.expected, "mend": error.mend}
    return json.dumps(tree, ensure_ascii=False, sort_keys=True)


def retold(line: str) -> OpdError | None:
    """The error that `told` wrote, or None where the line is none."""
    if not line.startswith(TOLD):
        return None
    tree = json.loads(line)
    kind = next((one for one in KINDS if one.__name__ == tree["error"]), OpdError)
    return kind(tree["seen"], tree["expected"], tree["mend"])


def pass_on(line: str) -> None:
    """A line of another process's stderr on that of this one, but for the error it tells, which is raised here."""
    if not line.startswith(TOLD):
        sys.stderr.write(line)  # inside a flow `print` is Prefect's
        sys.stderr.flush()


def left_by(stderr: str, seen: str, mend: str, log: Path) -> OpdError:
    """The error of a process that failed: the one that its last line tells, else how it ended and what it said of it.

    That is the last line that names an error, as a traceback does: hints may follow. Without one it is the last line.

    Args:
        stderr: all it said.
        seen: which process, and how it ended.
        mend: of an end that told no error.
        log: where what it said is kept.
    """
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    if not lines:
        return OpdError(seen, "exit 0", mend)
    if (error := retold(lines[-1])) is not None:
        return error
    last = next((line for line in reversed(lines) if _NAMED.match(line)), lines[-1])
    return OpdError(f"{seen}: {last}; see {log}", "exit 0", mend)
