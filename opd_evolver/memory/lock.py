"""One committer per ledger. The lock names host, pid and start time; a dead owner's lock is taken over."""

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
from opd_evolver.processes import alive, me
from opd_evolver.records import canonical_json


class LedgerLock:
    """Held from construction until `release`.

    Args:
        folder: the ledger's folder.

    Raises:
        SetupError: a live process holds it, this one included.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "lock"
        self._guard_path = folder / ".lock-guard"
        mine = canonical_json({**me(), "host": socket.gethostname(), "key": os.urandom(8).hex()})
        with durable.explained(self.path), self._guarded():
            owner = self._read()
            if owner is not None and self._is_alive(owner):
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

    def _read(self) -> dict[str, object] | None:
        try:
            owner = json.loads(self.path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        return owner if isinstance(owner, dict) else None

    @staticmethod
    def _is_alive(owner: dict[str, object]) -> bool:
        if owner.get("host") != socket.gethostname():
            return True
        pid, started = owner.get("pid"), owner.get("started")
        return isinstance(pid, int) and isinstance(started, (int, float)) and alive(pid, float(started))

    def release(self) -> None:
        """Gives the lock back, if it is still this one's."""
        if self._guard_path.exists():
            with self._guarded():
                if self.path.exists() and self.path.read_text(encoding="utf-8") == self._mine:
                    self.path.unlink()
