"""Progress of a run on stderr, from its progress file: a bar with ETA on a terminal, plain lines elsewhere."""

from __future__ import annotations

import json
import sys
import time
from types import TracebackType
from typing import Any

from opd_evolver.lineage import Run


class Watch:
    """Tails runs/<lineage>/progress.jsonl; `tick()` shows what is new.

    On a terminal the last line is rewritten in place, elsewhere each phase prints one line when it
    begins. The ETA is that of the rounds still to come, from the mean of the finished ones.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._terminal = sys.stderr.isatty()
        self._offset = self._size()
        self._last: tuple[int, str] | None = None
        self._began = time.monotonic()
        self._first_round: int | None = None

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._terminal and self._last is not None:
            print(file=sys.stderr)

    def say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def tick(self) -> None:
        """Show the progress lines written since the last call."""
        path = self._run.paths.progress
        if self._size() <= self._offset:
            return
        with path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        whole = data.rfind(b"\n") + 1
        self._offset += whole
        for line in data[:whole].splitlines():
            self._show(json.loads(line))

    def _size(self) -> int:
        path = self._run.paths.progress
        return path.stat().st_size if path.exists() else 0

    def _show(self, event: dict[str, Any]) -> None:
        round_, phase = int(event["round"]), str(event["phase"])
        self._first_round = round_ if self._first_round is None else self._first_round
        text = f"round {round_}/{self._run.params.rounds} · {phase} {event['done']}/{event['total']}{self._eta(round_)}"
        if self._terminal:
            print(f"\r\x1b[2K{text}", end="", file=sys.stderr, flush=True)
        elif self._last != (round_, phase) or event["done"] == event["total"]:
            print(text, file=sys.stderr, flush=True)
        self._last = (round_, phase)

    def _eta(self, round_: int) -> str:
        elapsed = time.monotonic() - self._began
        finished = round_ - (self._first_round or 0)
        if finished < 1:
            return f" · {elapsed:.0f} s"
        left = (self._run.params.rounds - round_ + 1) * elapsed / finished
        return f" · {elapsed:.0f} s, about {left:.0f} s left"
