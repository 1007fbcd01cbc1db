"""`kill -9` at seeded moments, inside writes and between them: what is resumed ends with the same digests."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import driver
import numpy as np
import psutil
import pytest

from opd_evolver.policy.weights import weights_digest

N_ROUNDS = 2
SEED = 20
pytestmark = pytest.mark.timeout(900)


class Undisturbed(NamedTuple):
    """A run that nothing happened to: its digests by round, and how many durable writes it made."""

    overrides: dict[str, Any]
    digests: dict[int, dict[str, str]]
    n_writes: int


@pytest.fixture(scope="module")
def undisturbed(children: driver.Children, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    folder = tmp_path_factory.mktemp("undisturbed")
    overrides = {**driver.SMALL, "rounds": N_ROUNDS, "policy.path": driver.policy_path(folder / "policy")}
    count = folder / "count"
    assert children.run(folder / "run", "m", overrides, count=str(count)) == 0, driver.said(folder / "run")
    found = driver.digests(folder / "run", "m")
    assert sorted(found) == list(range(N_ROUNDS + 1))
    weights = [found[round_]["weights"] for round_ in (1, 2)]
    assert len({*weights, weights_digest(Path(overrides["policy.path"]))}) > 1, "nothing was trained: take more tasks"
    return Undisturbed(overrides, found, int(count.read_text()))


def moments(rng: np.random.Generator, n_writes: int, n_kills: int, *, late: bool = False) -> list[int]:
    """Writes at which a run is killed, each counted from the kill before; in every stretch of the run one.

    `late`: the kill comes a while after the write, when others have followed; so it is in the first half of a stretch.
    """
    stretch = n_writes // n_kills
    margin = stretch // 2 if late else 5
    places = [int(rng.integers(k * stretch, (k + 1) * stretch - margin)) for k in range(n_kills)]
    return [max(1, place - before) for place, before in zip(places, [0, *places], strict=False)]


def killed_run(
    children: driver.Children, root: Path, overrides: dict[str, Any], faults: list[dict[str, Any]]
) -> dict[int, dict[str, str]]:
    """Begin `m`, break it by every fault in turn, resume it to its end."""
    for number, fault in enumerate(faults):
        print(f"kill {number + 1}: {fault}")
        begun = (root / "runs" / "m" / "run.json").exists()
        assert children.run(root, "m", overrides, resume=begun, **fault) == -signal.SIGKILL, driver.said(root)
    assert children.run(root, "m", resume=True) == 0, driver.said(root)
    return driver.digests(root, "m")


def test_killed_inside_writes(children: driver.Children, undisturbed: Undisturbed, tmp_path: Path) -> None:
    """Four kills: before a sync or a rename, the unsynced file torn."""
    rng = np.random.Generator(np.random.Philox(key=SEED))
    faults = [{"die_at": at, "torn": True} for at in moments(rng, undisturbed.n_writes, 4)]
    assert killed_run(children, tmp_path, undisturbed.overrides, faults) == undisturbed.digests
    left = [path for path in (tmp_path / "versions").rglob("*") if ".tmp" in path.name]
    assert not left, "half-written files stay in versions/"


def test_killed_between_writes(children: driver.Children, undisturbed: Undisturbed, tmp_path: Path) -> None:
    """Four kills, each a random while after a random write: while generating, training, committing, deleting."""
    rng = np.random.Generator(np.random.Philox(key=SEED + 1))
    faults = [
        {"die_at": at, "after_s": round(float(rng.uniform(0.001, 0.2)), 3)}
        for at in moments(rng, undisturbed.n_writes, 4, late=True)
    ]
    assert killed_run(children, tmp_path, undisturbed.overrides, faults) == undisturbed.digests


# ── the real flow ─────────────────────────────────────────────────────────────────────────────


def opd(root: Path, *arguments: str) -> subprocess.Popen[str]:
    """`opd … --local` in a project's folder, in a session of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "opd_evolver.cli", *arguments, "--local"],
        cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(driver.PROJECT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def until(found: Callable[[], Any], process: subprocess.Popen[str], timeout_s: float = 240) -> Any:
    """What `found` returns once it is something."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if (value := found()) is not None:
            return value
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    raise TimeoutError


def flow_process(root: Path) -> psutil.Process | None:
    try:
        return psutil.Process(json.loads((root / "runs" / "m" / "writer.json").read_text())["pid"])
    except (FileNotFoundError, psutil.NoSuchProcess):
        return None


def step_process(root: Path) -> psutil.Process | None:
    flow = flow_process(root)
    try:
        running = flow.children(recursive=True) if flow else []
        return next((one for one in running if "opd_evolver.step" in one.cmdline()), None)
    except psutil.NoSuchProcess:
        return None


def gone(processes: list[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=20)
    return not alive


def test_the_flow_and_a_step_of_its_own_process_killed(undisturbed: Undisturbed, tmp_path: Path) -> None:
    """Two kills through `opd run --local`: a step's process, then the flow's. One clear line each, no child left."""
    rng = np.random.Generator(np.random.Philox(key=SEED + 2))
    shutil.copytree(driver.PROJECT / "flows", tmp_path / "flows")
    given = {**undisturbed.overrides, "rounds": 1}
    run = ["run", "--preset", "micro", "--name", "m", *pairs(given)]
    apart = [*run, "--set", "flows.placement=subprocess"]

    first = opd(tmp_path, *apart)
    child = until(lambda: step_process(tmp_path), first)
    time.sleep(moment := float(rng.uniform(0.0, 2.0)))
    print(f"kill 9: the step's process after {moment:.2f} s")
    family = psutil.Process(first.pid).children(recursive=True)
    child.kill()
    _, said = first.communicate(timeout=120)
    assert first.returncode == 1
    errors = [line for line in said.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and "signal 9" in errors[0] and "opd resume m" in errors[0], said
    assert "Traceback" not in said
    assert gone(family)

    second = opd(tmp_path, *apart)
    until(lambda: step_process(tmp_path), second)
    time.sleep(moment := float(rng.uniform(0.0, 2.0)))
    print(f"kill 10: the flow's process after {moment:.2f} s")
    flow = flow_process(tmp_path)
    assert flow is not None
    family = [flow, *flow.children(recursive=True)]
    flow.kill()
    _, said = second.communicate(timeout=120)
    assert second.returncode == 1
    assert "opd resume m" in said and "Traceback" not in said, said
    assert gone(family), [one for one in family if one.is_running()]

    third = opd(tmp_path, *run, "--set", "flows.placement=inline")
    _, said = third.communicate(timeout=600)
    log = (tmp_path / "runs" / "m" / "flow.log").read_text()
    assert third.returncode == 0, said + log
    assert "EventsWorker" not in log, log
    found = driver.digests(tmp_path, "m")
    assert found == {round_: undisturbed.digests[round_] for round_ in (0, 1)}


def pairs(overrides: dict[str, Any]) -> list[str]:
    """Overrides as arguments."""
    return [word for key, value in overrides.items() for word in ("--set", f"{key}={json.dumps(value)}")]
