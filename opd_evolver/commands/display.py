"""Progress of a run on stderr, from its progress file: a bar with ETA on a terminal, plain lines elsewhere."""

from __future__ import annotations

import json
import shutil
import sys
import time
from types import TracebackType
from typing import NamedTuple

from opd_evolver import console
from opd_evolver.lineage import Run

BAR_CELLS = 20


class Event(NamedTuple):
    """One line of progress.jsonl. `time` is in epoch seconds."""

    time: float
    round: int
    phase: str
    done: int
    total: int


def parse(line: bytes) -> Event | None:
    """An event, or None for a line that a crash tore."""
    try:
        tree = json.loads(line)
        return Event(float(tree["time"]), int(tree["round"]), str(tree["phase"]), int(tree["done"]), int(tree["total"]))
    except (ValueError, KeyError, TypeError):
        return None


class Pace:
    """What is left, judged by the last round that ended: how long it took from the same point on."""

    def __init__(self, n_rounds: int) -> None:
        self._n_rounds = n_rounds
        self._current: list[Event] = []
        self._before: list[Event] = []
        self._length_s = 0.0

    def add(self, event: Event) -> None:
        """Take note of the next event; a new round makes the one before it the measure."""
        if self._current and event.round != self._current[-1].round:
            if self._current[-1].round > 0:
                self._before, self._length_s = self._current, event.time - self._current[0].time
            self._current = []
        self._current.append(event)

    def left_s(self) -> float | None:
        """Seconds to the end of the run; None while no round has ended."""
        if not self._before:
            return None
        now = self._current[-1]
        begin = self._before[0].time
        same = [one.time - begin for one in self._before if (one.phase, one.done) == (now.phase, now.done)]
        here = same[0] if same else now.time - self._current[0].time
        return max(self._length_s - here, 0.0) + max(self._n_rounds - now.round, 0) * self._length_s


class Watch:
    """Tails runs/<lineage>/progress.jsonl; `tick()` shows what is new.

    On a terminal the last line is rewritten in place, elsewhere each phase prints a line when it begins
    and one when it ends. Rounds that ended before this process began count for the ETA, and are not shown.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._mode = console.mode()
        self._offset = 0
        self._last: Event | None = None
        self._pace = Pace(run.params.rounds)
        self._began = time.monotonic()
        self._read()

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end_line()

    def say(self, line: str) -> None:
        """One line of its own; nothing when quiet."""
        self._end_line()
        console.say(line)

    def tick(self) -> None:
        """Show the progress lines written since the last call."""
        events = self._read()
        if self._mode == "plain":
            for event in events:
                self._plain(event)
        elif self._mode == "bars" and events:
            self._bar(events[-1])

    def _read(self) -> list[Event]:
        path = self._run.paths.progress
        if not path.exists() or path.stat().st_size <= self._offset:
            return []
        with path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        whole = data.rfind(b"\n") + 1
        self._offset += whole
        events = [event for line in data[:whole].splitlines() if (event := parse(line)) is not None]
        for event in events:
            self._pace.add(event)
        return events

    def _plain(self, event: Event) -> None:
        begins = self._last is None or (self._last.round, self._last.phase) != (event.round, event.phase)
        self._last = event
        if begins or event.done == event.total:
            print(f"{self._where(event)} {event.done}/{event.total} · {self._times()}", file=sys.stderr, flush=True)

    def _bar(self, event: Event) -> None:
        self._last = event
        filled = round(BAR_CELLS * event.done / event.total) if event.total else 0
        bar = "━" * filled + "─" * (BAR_CELLS - filled)
        text = f"{self._where(event)} {bar} {event.done}/{event.total} · {self._times()}"
        width = shutil.get_terminal_size().columns - 1  # a wrapped line could not be rewritten in place
        print(f"\r\x1b[2K{text[:width]}", end="", file=sys.stderr, flush=True)

    def _where(self, event: Event) -> str:
        return f"round {event.round}/{self._run.params.rounds} · {event.phase}"

    def _times(self) -> str:
        elapsed = console.duration(time.monotonic() - self._began)
        left = self._pace.left_s()
        return elapsed if left is None else f"{elapsed}, about {console.duration(left)} left"

    def _end_line(self) -> None:
        if self._mode == "bars" and self._last is not None:
            print(file=sys.stderr, flush=True)
            self._last = None
