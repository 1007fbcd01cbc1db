"""A whole round whose memory a real Weaviate server hosts; the server is killed in mid-epoch and comes back."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from unittest.mock import patch

import driver
import pytest
from weaviate_server import serving

from opd_evolver.benchmark.measure import RoundMeasurement
from opd_evolver.memory.segment import SegmentKey
from opd_evolver.memory.snapshot import read_entries, read_rows, verify

pytestmark = pytest.mark.timeout(900)
ASKED = {**driver.SMALL, "fast.tasks_per_domain": 6, "fast.wave_tasks": 3, "benchmark.test_tasks_per_domain": 6}
WAIT_S = 240.0


def with_memory(root: Path) -> RoundMeasurement:
    tree = json.loads((root / "runs" / "hosted" / "rounds" / "round-001.json").read_text())
    return RoundMeasurement.model_validate(tree["measurement"])


def segments(snapshot: Path) -> list[SegmentKey]:
    """The commits of a snapshot's ledger: waves, and the operations at their barriers."""
    lines = (json.loads(line) for line in (snapshot / "ledger.jsonl").read_text().splitlines())
    return [SegmentKey(one["round"], one["wave"], one["part"]) for one in lines if one["kind"] == "segment"]


def test_the_server_is_killed_in_mid_epoch_and_nothing_is_lost(tmp_path: Path) -> None:
    with (
        serving(tmp_path / "weaviate") as server,
        patch.dict(os.environ, server.settings),
        driver.Children() as children,
    ):
        child = children.start(tmp_path / "remote", "hosted", {**ASKED, "memory.store": "weaviate"})
        ledger = tmp_path / "remote" / "runs" / "hosted" / "live" / "round-001" / "ledger"
        deadline = time.monotonic() + WAIT_S
        while not list(ledger.glob("segment-*.jsonl")):
            assert time.monotonic() < deadline, driver.said(tmp_path / "remote")
            time.sleep(0.02)
        acknowledged = [path.name for path in ledger.glob("segment-*.jsonl")]
        server.kill()
        time.sleep(1.0)
        server.start()
        assert child.wait() == 0, driver.said(tmp_path / "remote")
        assert children.run(tmp_path / "local", "hosted", ASKED) == 0, driver.said(tmp_path / "local")
    remote, local = (tmp_path / one / "versions" / "hosted" / "round-001" / "memory" for one in ("remote", "local"))
    verify(remote)  # the entries are those that the ledger tells of
    committed = {key.name for key in segments(remote)}
    assert acknowledged and set(acknowledged) <= committed
    assert [row.rollout_id for row in read_rows(remote)] == [row.rollout_id for row in read_rows(local)]
    assert read_entries(remote)
    hosted, embedded = (with_memory(tmp_path / one).columns.with_memory for one in ("remote", "local"))
    assert hosted is not None and embedded is not None
    assert embedded.low is not None and embedded.high is not None and hosted.mean is not None
    assert embedded.low <= hosted.mean <= embedded.high
