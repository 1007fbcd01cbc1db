"""Ways through a run: back to a round and forward again, other parameters, more rounds; a full disk and Ctrl-C."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import driver
import pytest
from conftest import Opd

from opd_evolver import tracking
from opd_evolver.lineage import open_or_create, open_run
from opd_evolver.params import merge
from opd_evolver.steps import plan, track

pytestmark = pytest.mark.timeout(900)
NAMED = ("entries", "ledger", "examples", "weights")


class Done(NamedTuple):
    """A finished run of two rounds, in a folder that tests copy."""

    root: Path
    overrides: dict[str, Any]


@pytest.fixture(scope="module")
def done(children: driver.Children, tmp_path_factory: pytest.TempPathFactory) -> Done:
    folder = tmp_path_factory.mktemp("done")
    policy = driver.policy_path(folder / "policy")
    overrides = {
        **driver.SMALL,
        "policy.path": policy,
        "environments.domains": ["apps", "sql"],
        "fast.tasks_per_domain": 6,
    }
    assert children.run(folder / "run", "m", {**overrides, "rounds": 2}) == 0, driver.said(folder / "run")
    return Done(folder / "run", overrides)


@pytest.fixture
def root(done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished run, and the current folder."""
    copy = tmp_path / "run"
    shutil.copytree(done.root, copy)
    monkeypatch.chdir(copy)
    return copy


def named(root: Path, lineage: str) -> dict[int, tuple[str, ...]]:
    """The named digests of the finished rounds from 1 on."""
    found = driver.digests(root, lineage)
    return {round_: tuple(one[name] for name in NAMED) for round_, one in found.items() if round_}


def contents(root: Path, lineage: str) -> dict[str, bytes]:
    """Everything the finished rounds of a lineage left."""
    folders = (root / "versions" / lineage, root / "runs" / lineage / "rounds")
    return {str(path): path.read_bytes() for one in folders for path in sorted(one.rglob("*")) if path.is_file()}


def test_back_to_a_round_and_forward_again(children: driver.Children, done: Done, root: Path, opd: Opd) -> None:
    """Rolled back to round 1, round 2 is played again in a lineage of its own and has the same digests."""
    before = contents(root, "m")
    assert "m~2" in opd("memory", "rollback", "1", "--name", "m").out
    assert children.run(root, "m", resume=True) == 0, driver.said(root)
    assert named(root, "m~2") == {2: named(root, "m")[2]}
    assert contents(root, "m") == before
    rounds = json.loads(opd("rounds", "m", "--json").out)
    assert rounds["lineage"] == "m~2" and [one["round"] for one in rounds["rounds"]] == [1, 2]

    assert opd("memory", "undo", "--name", "m").code == 0
    assert json.loads(opd("rounds", "m", "--json").out)["lineage"] == "m"
    assert contents(root, "m") == before
    assert children.run(root, "m", {**done.overrides, "rounds": 3}) == 0, driver.said(root)
    assert sorted(named(root, "m")) == [1, 2, 3]
    assert {path: data for path, data in contents(root, "m").items() if path in before} == before


def test_another_science_parameter_gives_other_digests(
    children: driver.Children, done: Done, root: Path, opd: Opd
) -> None:
    before = contents(root, "m")
    changed = {**done.overrides, "slow.learning_rate": 3e-3}
    assert children.run(root, "m", changed) == 2
    assert "slow.learning_rate: 0.001 → 0.003" in driver.said(root) and "--fork" in driver.said(root)
    assert children.run(root, "m", changed, fork=True) == 0, driver.said(root)
    ours, theirs = (dict(zip(NAMED, named(root, lineage)[1], strict=True)) for lineage in ("m", "m~2"))
    assert ours["weights"] != theirs["weights"]
    assert ours["ledger"] == theirs["ledger"], "the first fast loop does not depend on how the policy is trained"
    assert contents(root, "m") == before
    assert opd("memory", "undo", "--name", "m").code == 0
    assert json.loads(opd("rounds", "m", "--json").out)["lineage"] == "m"


def test_a_fork_after_a_rollback_keeps_the_rounds_before_it(
    children: driver.Children, done: Done, root: Path, opd: Opd
) -> None:
    """Round 2 with another learning rate: other weights, the same round 1; what decides round 1 begins anew."""
    assert opd("memory", "rollback", "1", "--name", "m").code == 0
    changed = {**done.overrides, "rounds": 2, "slow.learning_rate": 3e-3}
    assert children.run(root, "m", changed, fork=True) == 0, driver.said(root)
    assert sorted(named(root, "m~3")) == [2]
    ours, theirs = (dict(zip(NAMED, named(root, lineage)[2], strict=True)) for lineage in ("m", "m~3"))
    assert ours["weights"] != theirs["weights"] and ours["ledger"] == theirs["ledger"]
    assert [one["round"] for one in json.loads(opd("rounds", "m", "--json").out)["rounds"]] == [1, 2]
    other = open_or_create(root, "m", merge(open_run(root, "m").params, {"seed": 5}, "test"), fork=True)
    assert other.identity.parent is None, "another seed decides the first round, too"


def test_rollback_verifies_memory_and_policy_before_it_changes_anything(root: Path, opd: Opd) -> None:
    weights = root / "versions" / "m" / "round-001" / "policy" / "model.safetensors"
    sound = weights.read_bytes()
    weights.write_bytes(sound[:-4] + bytes(4))
    said = opd("memory", "rollback", "1", "--name", "m")
    assert said.code == 2 and "weights of round 1" in said.err and "dvc checkout" in said.err
    assert open_run(root, "m").lineage == "m" and not (root / "runs" / "m~2").exists()
    weights.write_bytes(sound)
    assert opd("memory", "rollback", "1", "--name", "m").code == 0


def test_the_alias_follows_rollback_and_undo(root: Path, opd: Opd) -> None:
    run = open_run(root, "m")
    for number in (0, 1, 2):
        track.round_(run, number)
    tracker = tracking.open_tracker(root)
    digests = {number: summary["digests"]["weights"] for number in (1, 2) if (summary := run.summary(number))}
    promoted = plan.champion(run, 3).round
    back = plan.champion(run, 2).round
    assert (tracker.champion("m") or {}).get("policy.digest") == digests.get(promoted)
    assert opd("memory", "rollback", "1", "--name", "m").code == 0
    assert (tracker.champion("m") or {}).get("policy.digest") == digests.get(back)
    assert opd("memory", "undo", "--name", "m").code == 0
    assert (tracker.champion("m") or {}).get("policy.digest") == digests.get(promoted)


def roll_back_and_tell(root: Path, opd: Opd) -> str:
    """A lineage that has round 1 and lacks round 2."""
    opd("memory", "rollback", "1", "--name", "m")
    (root / "driver.log").unlink(missing_ok=True)
    return "m~2"


def test_a_full_disk_stops_the_run_and_costs_nothing_finished(
    children: driver.Children, done: Done, root: Path, opd: Opd
) -> None:
    """RLIMIT_FSIZE stands for it, at three sizes: in a small file, in the index or a ledger, in the weights."""
    before = contents(root, "m")
    lineage = roll_back_and_tell(root, opd)
    for max_bytes in (1_000, 20_000, 1_000_000):
        (root / "driver.log").unlink(missing_ok=True)
        code = children.run(root, "m", resume=True, max_bytes=max_bytes)
        said = driver.said(root)
        errors = [line for line in said.splitlines() if line.startswith("error:")]
        assert code == 2 and len(errors) == 1 and "opd resume" in errors[0], (max_bytes, said)
        assert "Traceback" not in said
        assert contents(root, "m") == before
        assert not named(root, lineage)
    assert children.run(root, "m", resume=True) == 0, driver.said(root)
    assert named(root, lineage) == {2: named(root, "m")[2]}


def test_ctrl_c_leaves_finished_rounds_and_names_the_command(root: Path, opd: Opd) -> None:
    """SIGINT to `opd` and all it started, as from a terminal, while the real flow plays a wave."""
    shutil.copytree(driver.PROJECT / "flows", root / "flows")
    before = contents(root, "m")
    lineage = roll_back_and_tell(root, opd)
    process = subprocess.Popen(
        [sys.executable, "-m", "opd_evolver.cli", "resume", "m", "--local"],
        cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(driver.PROJECT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    progress = root / "runs" / lineage / "progress.jsonl"
    while not progress.exists() or "fast loop" not in progress.read_text():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130 and out == ""
    assert "Traceback" not in err and "opd resume m" in err, err
    assert contents(root, "m") == before
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and in_session(process.pid):
        time.sleep(0.1)
    assert not in_session(process.pid), "something it started still runs"


def in_session(session: int) -> list[int]:
    """Live processes of a session."""
    import psutil

    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found
