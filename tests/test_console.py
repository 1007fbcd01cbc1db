"""Displays: results on stdout, progress on stderr, plain lines off a terminal."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from opd_evolver import console
from opd_evolver.errors import SetupError
from opd_evolver.settings import check_names, load_settings


@pytest.fixture
def display(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    return monkeypatch


def choose(display: pytest.MonkeyPatch, mode: str) -> None:
    display.setenv("OPD_DISPLAY", mode)
    load_settings.cache_clear()


def test_off_a_terminal_lines_are_plain_and_stdout_stays_clean(capsys: pytest.CaptureFixture[str]) -> None:
    assert console.mode() == "plain"
    console.say("hello")
    with console.progress(3, "evaluate") as bar:
        bar.advance()
        bar.advance(2)
    said = capsys.readouterr()
    assert said.out == ""
    lines = said.err.splitlines()
    assert lines[:2] == ["hello", "evaluate 0/3"] and lines[-1].startswith("evaluate 3/3 · ")
    assert len(lines) == 3 and "\x1b" not in said.err


def test_a_slow_task_shows_what_is_left(display: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    display.setattr(console, "PLAIN_EVERY_S", 0.0)
    with console.progress(4, "evaluate") as bar:
        bar.advance()
    assert "evaluate 1/4 · 0 s, about 0 s left" in capsys.readouterr().err


def test_quiet_says_nothing(display: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    choose(display, "quiet")
    console.say("hello")
    with console.progress(3, "evaluate") as bar:
        bar.advance(3)
    said = capsys.readouterr()
    assert said.out == said.err == ""


def test_bars_are_drawn_on_stderr(display: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    choose(display, "bars")
    with console.progress(3, "evaluate") as bar:
        bar.advance(3)
    said = capsys.readouterr()
    assert said.out == "" and "evaluate" in said.err and "3/3" in said.err


def test_an_unknown_display_names_the_setting(display: pytest.MonkeyPatch) -> None:
    choose(display, "loud")
    with pytest.raises(SetupError, match="OPD_DISPLAY is not valid"):
        console.mode()


def test_results_are_one_json_object_or_text(capsys: pytest.CaptureFixture[str]) -> None:
    console.result({"a": "ü"}, "text", as_json=True)
    assert json.loads(capsys.readouterr().out) == {"a": "ü"}
    console.result({"a": 1}, "text", as_json=False)
    assert capsys.readouterr().out == "text\n"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59, "59 s"), (200, "3 min 20 s"), (3900, "1 h 5 min"), (-3, "0 s")]
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert console.duration(seconds) == text


def test_rich_is_imported_only_for_a_bar() -> None:
    code = "import sys\nfrom opd_evolver import console\nconsole.say('x')\nprint('rich' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n" and done.stderr == "x\n"


def test_an_unknown_setting_names_the_nearest() -> None:
    with pytest.raises(SetupError, match=r"unknown setting OPD_DISPLY.*OPD_DISPLAY"):
        check_names({"OPD_DISPLY", "HOME"})
    with pytest.raises(SetupError, match="OPD_MLFLOW_TRACKING_URI"):
        check_names({"OPD_MLFLOW_TRACKING_URL"})
