"""Rounds of two lineages side by side in MLflow's own pages, seen by a real browser."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import browser
import pytest
from weaviate_server import answers, free_ports

from opd_evolver.tracking import EXPERIMENT, RoundRecord, open_tracker

pytestmark = pytest.mark.timeout(600)
START_S = 180.0


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """`mlflow ui` on what lies in a folder, as the README says to start it."""
    [port] = free_ports(1)
    log = (folder / "ui.log").open("wb")
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    child = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, start_new_session=True)
    try:
        deadline = time.monotonic() + START_S
        while not answers(f"http://127.0.0.1:{port}/health"):
            assert child.poll() is None and time.monotonic() < deadline, (folder / "ui.log").read_text()[-2000:]
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(child.pid, 15)
        child.wait(30)
        log.close()


def record(lineage: str, round_: int) -> RoundRecord:
    return RoundRecord(
        name="default",
        lineage=lineage,
        preset="micro",
        round=round_,
        digest=f"{lineage}-{round_}",
        params={"seed": "0"},
        metrics={"alone/mean": 0.25 * round_},
        headline={"alone/mean": 0.25 * round_},
    )


def test_both_lineages_are_in_the_page(tmp_path: Path) -> None:
    browser.chromium()
    tracker = open_tracker(tmp_path)
    for lineage in ("default", "default~2"):
        for round_ in (0, 1):
            tracker.log_round(record(lineage, round_))
    experiment = tracker._client.get_experiment_by_name(EXPERIMENT).experiment_id
    with served(tmp_path) as url:
        seen = browser.page(f"{url}/#/experiments/{experiment}/runs", ("default~2",), tmp_path / "profile")
    assert ">default<" in seen and ">default~2<" in seen, seen[-3000:]
