"""A real browser for tests: Debian's chromium, headless, with a profile of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

WAIT_S = 120.0


def chromium() -> str:
    """Its path; skips, loudly, where there is none."""
    found = shutil.which("chromium")
    if found is None:
        pytest.skip("NOT SEEN in a browser: chromium is not installed (apt-get install chromium)")
    return found


def page(url: str, wanted: tuple[str, ...], profile: Path) -> str:
    """The page's document once its scripts have put every wanted text into it, or as it is after WAIT_S."""
    command = [
        chromium(),
        "--headless",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        f"--user-data-dir={profile}",
        "--window-size=1600,1200",
        "--virtual-time-budget=15000",
        "--dump-dom",
        *(["--no-sandbox"] if os.geteuid() == 0 else []),
        url,
    ]
    deadline = time.monotonic() + WAIT_S
    while True:
        done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
        if all(one in done.stdout for one in wanted) or time.monotonic() > deadline:
            return done.stdout or done.stderr
