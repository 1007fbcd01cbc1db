"""Who is a process: pid and birth together, since pids are reused. Children die with their parent."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

POLL_S = 1.0
KILLED = 137


def started(pid: int) -> float | None:
    """Start time of a process (epoch seconds), or None when there is none (a zombie counts as none)."""
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except psutil.NoSuchProcess:
        return None


def born(pid: int) -> str | None:
    """The boot, and the tick of it, in which a process began: unlike its start time, no clock that is set moves them.

    None where there is no such process (a zombie counts as none), and where no /proc tells.
    """
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return None if state == b"Z" else f"{_boot()} {int(rest[18])}"
    except (FileNotFoundError, ProcessLookupError):
        return None


def alive(pid: int, started_at: float, birth: str | None = None) -> bool:
    """Whether the very process that was recorded still runs.

    Args:
        pid: of the record.
        started_at: decides where `birth` is None.
        birth: as `born` gave it; None in records of earlier versions and where no /proc tells.
    """
    if birth is not None:
        return born(pid) == birth
    now = started(pid)
    return now is not None and abs(now - started_at) < 1.0


def lives(record: Mapping[str, Any]) -> bool:
    """Whether the process of a record, as `me` makes it, still runs. Earlier versions wrote no birth down."""
    return alive(int(record["pid"]), float(record["started"]), record.get("birth"))


def me() -> dict[str, Any]:
    """This process, for a record."""
    return {"pid": os.getpid(), "started": started(os.getpid()), "birth": born(os.getpid())}


def peak_bytes() -> tuple[int, int]:
    """Most memory that this process held so far, and most that it held of its accelerator (0 where it used none)."""
    torch = sys.modules.get("torch")
    on_device = int(torch.cuda.max_memory_allocated()) if torch is not None and torch.cuda.is_initialized() else 0
    # Kilobytes on Linux, bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024), on_device


def carrying(name: str) -> Iterator[tuple[int, float, str]]:
    """(pid, start time, value) of every process of ours that was started with `name` in its environment, but this."""
    import psutil

    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and (value := process.environ().get(name)) is not None:
                yield process.pid, float(process.create_time()), value
        except (psutil.NoSuchProcess, psutil.AccessDenied, OSError):
            continue  # gone meanwhile, or another user's: neither can be ours


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def place() -> str:
    """Where pids mean the same: this boot of this machine, and this container's own numbering."""
    if sys.platform != "linux":
        return platform.node()
    return f"{platform.node()} {_boot()} {os.readlink('/proc/self/ns/pid')}"


def waiting() -> dict[str, Any]:
    """This process, for those who work for it: what `end_without` takes."""
    return {**me(), "place": place()}


def end_without(waiting: Mapping[str, Any] | None) -> None:
    """End this process when the one that waits for its work has gone, however it went.

    For a process whose parent is a worker, not whoever waits, so that the kernel cannot be asked as in
    `die_with_parent`. On another machine nothing happens: pids mean nothing there.

    Args:
        waiting: what `waiting` gave; None when nobody waits.
    """
    if waiting is None or waiting["place"] != place():
        return

    def look() -> None:
        while lives(waiting):
            time.sleep(POLL_S)
        os._exit(KILLED)

    if not lives(waiting):
        os._exit(KILLED)
    threading.Thread(target=look, name="end-without", daemon=True).start()


def serve(waiting: Mapping[str, Any]) -> None:
    """Begin a process of a pool: Ctrl-C is for the one that waits, and this one ends with it.

    Not by `die_with_parent`: the kernel means the thread that started it, which may end earlier.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_without(waiting)


def share_cores() -> None:
    """Let threads that wait for each other sleep; call before torch is loaded, children inherit it.

    By default they spin, and take the core that the thread they wait for needs: on two cores beside other work,
    training took 2 to 5 times as long. The bytes are the same.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def die_with_parent(parent: int | None = None) -> None:
    """Ask the kernel to kill this process when its parent dies (Linux; elsewhere nothing happens).

    Args:
        parent: who started it. An orphan may be handed to another process than 1, so only this shows that the
            parent died before it was asked.
    """
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == 1 if parent is None else os.getppid() != parent:
            os._exit(KILLED)
