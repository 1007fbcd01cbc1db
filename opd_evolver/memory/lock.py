"""One committer per ledger. The lock names host, pid and birth; a dead owner's lock is taken over."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from opd_evolver import durable
from opd_evolver.errors import SetupError
from opd_evolver.processes import lives, me
from opd_evolver.records import canonical_json

LOCK = "lock"


def is_held(folder: Path) -> bool:
    """Whether a live process writes to the ledger in `folder`; it may begin or end at any time."""
    owner = _read(folder / LOCK)
    return owner is not None and _is_alive(owner)


class LedgerLock:
    """Held from construction until `release`.

    Args:
        folder: the ledger's folder.

    Raises:
        SetupError: a live process holds it, this one included.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK
        self._guard_path = folder / ".lock-guard"
        mine = canonical_json({**me(), "host": socket.gethostname(), "key": os.urandom(8).hex()})
        with durable.explained(self.path), self._guarded():
            owner = _read(self.path)
            if owner is not None and _is_alive(owner):
                raise SetupError(
                    f"ledger {folder} is being written by process {owner.get('pid')} on {owner.get('host')}",
                    "one committer",
                    f"wait for it, or stop it; if it is gone for sure, remove {self.path}",
                )
            durable.write_text(self.path, mine)
        self._mine = mine

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Two processes that find the same dead owner must not both take over."""
        with self._guard_path.open("a") as guard:
            fcntl.flock(guard, fcntl.LOCK_EX)
            yield

    def release(self) -> None:
        """Gives the lock back, if it is still this one's."""
        if self._guard_path.exists():
            with self._guarded():
                if self.path.exists() and self.path.read_text(encoding="utf-8") == self._mine:
                    self.path.unlink()


def _read(path: Path) -> dict[str, object] | None:
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return owner if isinstance(owner, dict) else None


def _is_alive(owner: dict[str, object]) -> bool:
    if owner.get("host") != socket.gethostname():
        return True
    return isinstance(owner.get("pid"), int) and isinstance(owner.get("started"), (int, float)) and lives(owner)
