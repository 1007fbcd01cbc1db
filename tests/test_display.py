"""Progress of a run: a bar with ETA on a real pseudo-terminal, plain lines in a pipe, nothing when quiet."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from opd_evolver import lineage
from opd_evolver.commands.display import Event, Pace, Watch, parse
from opd_evolver.params import Params

SOURCE = Path(__file__).parents[1]
SCRIPT = """
import json, sys
from pathlib import Path
from opd_evolver import lineage
from opd_evolver.commands.display import Watch
run = lineage.open_run(Path.cwd(), "a")
with Watch(run) as watch:
    watch.say("begins")
    for done in range(3):
        line = {"time": 300.0 + 10 * done, "round": 2, "phase": "fast loop", "done": done, "total": 2}
        with run.paths.progress.open("a") as file:
            file.write(json.dumps(line) + "\\n")
        watch.tick()
print("result")
"""


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A run of three rounds whose first took 100 seconds."""
    run = lineage.open_or_create(tmp_path, "a", Params())
    events = [(200.0, "fast loop", 0), (220.0, "fast loop", 1), (240.0, "fast loop", 2), (250.0, "benchmark", 0)]
    lines = [{"time": at, "round": 1, "phase": phase, "done": done, "total": 2} for at, phase, done in events]
    run.paths.progress.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def call(folder: Path, stderr: int, display: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OPD_DISPLAY": display, "TERM": "xterm", "COLUMNS": "80"}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=stderr
    )


def on_terminal(folder: Path, display: str) -> tuple[str, str]:
    """Both streams, stderr being a pseudo-terminal."""
    ours, theirs = pty.openpty()
    child = call(folder, theirs, display)
    os.close(theirs)
    said = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # how Linux says that the other end is closed
            break
        if not part:
            break
        said += part
    os.close(ours)
    out = child.communicate()[0].decode()
    assert child.returncode == 0, said
    return out, said.decode()


def in_pipe(folder: Path, display: str) -> tuple[str, str]:
    child = call(folder, subprocess.PIPE, display)
    out, err = child.communicate()
    assert child.returncode == 0, err
    return out.decode(), err.decode()


@pytest.mark.parametrize("display", ["auto", "bars"])
def test_on_a_terminal_one_line_is_rewritten(begun: Path, display: str) -> None:
    out, err = on_terminal(begun, display)
    assert out == "result\n"
    first, *_ = err.split("\r\n")
    assert first == "begins"
    shown = re.findall(r"\r\x1b\[2K([^\r]*)", err)
    assert len(shown) == 3 and all(len(line) < 80 for line in shown)
    assert shown[0].startswith("round 2/3 · fast loop ──") and "0/2" in shown[0]
    assert "━━━━━━━━━━──────────" in shown[1] and "about 3 min 0 s left" in shown[1]
    assert "━" * 20 in shown[2] and "about" in shown[2] and err.endswith("\r\n")


@pytest.mark.parametrize("display", ["auto", "plain"])
def test_in_a_pipe_lines_are_plain(begun: Path, display: str) -> None:
    out, err = in_pipe(begun, display)
    assert out == "result\n" and "\x1b" not in err and "\r" not in err
    lines = err.splitlines()
    assert lines[0] == "begins" and len(lines) == 3  # where a phase begins and where it ends
    assert re.fullmatch(r"round 2/3 · fast loop 0/2 · \d+ s, about .* left", lines[1])
    assert lines[2].startswith("round 2/3 · fast loop 2/2 · ")


def test_quiet_is_quiet_on_a_terminal_too(begun: Path) -> None:
    assert on_terminal(begun, "quiet") == ("result\n", "")


def test_plain_is_plain_on_a_terminal_too(begun: Path) -> None:
    assert "\x1b" not in on_terminal(begun, "plain")[1]


def test_what_is_left_follows_the_round_before() -> None:
    pace = Pace(n_rounds=3)
    events = [("fast loop", 0, 0.0), ("fast loop", 1, 40.0), ("benchmark", 0, 90.0)]
    pace.add(Event(0.0, 0, "benchmark", 0, 1))
    assert pace.left_s() is None
    for phase, done, at in events:
        pace.add(Event(10 + at, 1, phase, done, 2))
        assert pace.left_s() is None  # round 0 is no measure: it only benchmarks
    pace.add(Event(110.0, 2, "fast loop", 0, 2))
    assert pace.left_s() == 200.0
    pace.add(Event(130.0, 2, "fast loop", 1, 2))  # faster now, but the rest is still judged by the round before
    assert pace.left_s() == 160.0
    pace.add(Event(170.0, 2, "distillation", 1, 2))  # a phase that the round before did not have
    assert pace.left_s() == 140.0
    pace.add(Event(200.0, 3, "fast loop", 0, 2))
    assert pace.left_s() == 90.0


@pytest.mark.parametrize("line", [b"", b"{", b"[]", b'{"time": 1}', b'{"time": "x", "round": 1}'])
def test_a_torn_line_is_no_event(line: bytes) -> None:
    assert parse(line) is None


def test_half_a_line_is_shown_when_it_is_whole(begun: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = lineage.open_run(begun, "a")
    with Watch(run) as watch, run.paths.progress.open("a") as file:
        file.write('{"time": 300.0, "round": 2, "phase": "fast loop", ')
        file.flush()
        watch.tick()
        assert capsys.readouterr().err == ""
        file.write('"done": 0, "total": 2}\n')
        file.flush()
        watch.tick()
        assert capsys.readouterr().err.startswith("round 2/3 · fast loop 0/2")
