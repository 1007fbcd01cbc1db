"""Terminal displays: results on stdout, progress on stderr. A bar with ETA on a terminal, plain lines elsewhere.

`OPD_DISPLAY` chooses: auto | bars | plain | quiet. rich is imported only when a bar is drawn.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, Protocol

Mode = Literal["bars", "plain", "quiet"]
PLAIN_EVERY_S = 10.0


class Progress(Protocol):
    """What a `progress` block receives."""

    def advance(self, n: int = 1) -> None:
        """`n` more units are done."""


def mode() -> Mode:
    """The display of this process.

    Raises:
        SetupError: OPD_DISPLAY, or another setting, is not valid.
    """
    from opd_evolver.settings import load_settings

    chosen = load_settings().display
    if chosen != "auto":
        return chosen
    return "bars" if sys.stderr.isatty() and os.environ.get("TERM") != "dumb" else "plain"


def say(line: str) -> None:
    """One line of progress on stderr; nothing when quiet."""
    if mode() != "quiet":
        print(line, file=sys.stderr, flush=True)


def result(tree: Any, text: str, *, as_json: bool) -> None:
    """A command's result on stdout: one JSON object, or `text`."""
    print(json.dumps(tree, ensure_ascii=False, indent=2) if as_json else text, flush=True)


def duration(seconds: float) -> str:
    """12 s, 3 min 20 s, 1 h 5 min."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class _Quiet:
    def advance(self, n: int = 1) -> None:
        """Shows nothing."""


class _Plain:
    """A line at the beginning, one every ten seconds, one at the end."""

    def __init__(self, total: int, label: str) -> None:
        self._total, self._label, self._done = total, label, 0
        self._began = self._shown = time.monotonic()

    def advance(self, n: int = 1) -> None:
        self._done += n
        now = time.monotonic()
        if self._done < self._total and now - self._shown < PLAIN_EVERY_S:
            return
        self._shown = now
        elapsed = now - self._began
        left = elapsed * (self._total - self._done) / self._done if self._done else 0.0
        tail = f"{duration(elapsed)}, about {duration(left)} left" if self._done < self._total else duration(elapsed)
        print(f"{self._label} {self._done}/{self._total} · {tail}", file=sys.stderr, flush=True)


@contextmanager
def _bar(total: int, label: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with RichProgress(*columns, console=Console(stderr=True)) as shown:
        task = shown.add_task(label, total=total)

        class _Bar:
            def advance(self, n: int = 1) -> None:
                shown.advance(task, n)

        yield _Bar()


@contextmanager
def progress(total: int, label: str) -> Iterator[Progress]:
    """Show the progress of `total` units of work; call `advance()` for each.

    Args:
        total: number of units.
        label: what is being done, e.g. "evaluate".
    """
    chosen = mode()
    if chosen == "bars":
        with _bar(total, label) as bar:
            yield bar
    elif chosen == "plain":
        print(f"{label} 0/{total}", file=sys.stderr, flush=True)
        yield _Plain(total, label)
    else:
        yield _Quiet()
