"""Distillation in two processes: the same training but for the last bits, the same bytes again, and nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from slow_toys import N, World, slow

from opd_evolver.errors import OpdError, SetupError
from opd_evolver.records import canonical_json
from opd_evolver.slow import launch, train

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("together"), "lfm2")


def test_two_processes_train_what_one_does_and_the_same_bytes_again(world: World) -> None:
    seen: list[tuple[int, int]] = []
    one = world.train("one", slow())
    two = world.train("two", slow(slow__processes=2), on_progress=lambda done, n: seen.append((done, n)))
    assert seen == [(done, 6) for done in range(1, 7)]
    assert two.weights_digest != one.weights_digest  # gradients are added in another order
    for ability in (*N, "anchor"):
        assert two.log[0][ability] == pytest.approx(one.log[0][ability], abs=1e-4)
        assert two.log[-1][ability]["kl_nats"] == pytest.approx(one.log[-1][ability]["kl_nats"], abs=1e-2)
    assert two.metrics["tokens"]["sampled"] == pytest.approx(one.metrics["tokens"]["sampled"], rel=0.1)
    again = world.train("again", slow(slow__processes=2))
    assert (again.weights_digest, again.log) == (two.weights_digest, two.log)


PARENT = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from slow_toys import World, slow
world = World.found(Path({folder!r}))
world.train("killed", slow(slow__processes=2, slow__steps=60), on_progress=lambda done, n: print(done, flush=True))
"""


def test_killed_in_the_middle_its_processes_end_and_it_goes_on_to_the_same_bytes(world: World) -> None:
    script = PARENT.format(tests=str(Path(__file__).parent), folder=str(world.folder))
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    for line in parent.stdout:
        if int(line) == 5:
            break
    ranks = psutil.Process(parent.pid).children()
    assert len(ranks) == 2
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    until = time.monotonic() + 30
    while any(rank.is_running() and rank.status() != psutil.STATUS_ZOMBIE for rank in ranks):
        assert time.monotonic() < until
        time.sleep(0.05)
    resumed = world.train("killed", slow(slow__processes=2, slow__steps=60))
    assert resumed.metrics["resumed_from"] >= 4
    whole = world.train("whole", slow(slow__processes=2, slow__steps=60))
    assert (resumed.weights_digest, resumed.log) == (whole.weights_digest, whole.log)


def test_the_error_of_a_process_comes_back_as_it_was(world: World, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="gone"):
        world.train("gone", slow(slow__processes=2), policy_path=tmp_path / "gone")


def test_a_lost_process_is_said_and_the_others_end(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []

    def kill_the_second(done: int, n: int) -> None:
        ranks = {rank: one for one in psutil.Process().children() if (rank := one.environ().get("RANK")) is not None}
        started.extend(one.pid for one in ranks.values())
        ranks["1"].kill()

    with pytest.raises(OpdError, match="process 1 of the distillation ended with -9"):
        world.train("lost", slow(slow__processes=2, slow__steps=500), on_progress=kill_the_second)
    assert not any(psutil.pid_exists(pid) for pid in started)


def test_one_process_is_this_one(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_ranks", lambda *arguments: pytest.fail("a process was started"))
    world.train("alone", slow(slow__steps=1))


STAND_IN = """
import os, sys, time, types


def distil(what, on_progress):
    if on_progress is None:
        time.sleep(600)
    print("a warning", file=sys.stderr)
    print("grid: 12 rooms loaded", flush=True)
    on_progress(1, 6)
    while not os.path.exists(os.environ["HEARD"]):
        time.sleep(0.05)
    raise RuntimeError("CUDA error: device-side assert\\nCompile with TORCH_USE_CUDA_DSA")


module = sys.modules["opd_evolver.slow.train"] = types.ModuleType("train")
module.DistilReport, module.OnProgress, module.distil = object, object, distil
module.Distillation = types.SimpleNamespace(model_validate=lambda tree: None)
"""


def asked_of(folder: Path, device: str = "cpu", **params: int) -> train.Distillation:
    names = ("policy_path", "base_path", "examples_folder", "target", "work")
    paths = {name: folder / name for name in names}
    return train.Distillation(**paths, params=slow(**params), round=1, device=device)


def test_what_a_process_says_is_passed_on_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sitecustomize.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{Path(__file__).parents[1]}")
    monkeypatch.setenv("HEARD", str(tmp_path / "heard"))
    seen: list[tuple[int, int]] = []

    def hear(done: int, total: int) -> None:
        seen.append((done, total))
        (tmp_path / "heard").touch()

    with pytest.raises(OpdError, match=r"ended with 1: RuntimeError: CUDA error: device-side assert; see ") as caught:
        launch.distil(asked_of(tmp_path, slow__processes=2), hear)
    log = Path(caught.value.seen.rpartition("see ")[2])
    assert log.parent == tmp_path / "work" and "Traceback" in log.read_text()
    said = capsys.readouterr().err
    assert "a warning\n" in said and "grid: 12 rooms loaded\n" in said
    assert seen == [(1, 6)]


WAITING = """
import sys, torch.distributed
from opd_evolver.records import canonical_json
from opd_evolver.slow import train


def init(*, timeout=None, **_):
    print(timeout.days)
    raise SystemExit


torch.distributed.init_process_group = init
train.distil(train.Distillation.model_validate_json(sys.argv[1]))
"""


def test_processes_wait_for_the_first_one_however_long_its_anchors_take(tmp_path: Path) -> None:
    """Those of a large model, or of a machine that slept, take longer than the ten minutes of NCCL."""
    given = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    command = [sys.executable, "-c", WAITING, canonical_json(asked_of(tmp_path))]
    done = subprocess.run(command, env={**os.environ, **given}, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and int(done.stdout) > 1, done.stderr[-500:]


class Opened(Exception):
    """With the device it was to be on."""


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:1"])
def test_one_process_trains_on_the_device_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    def load(path: Path, *, device: str, **_: object) -> None:
        raise Opened(device)

    monkeypatch.setattr(train.LocalPolicy, "load", load)
    with pytest.raises(Opened) as opened:
        launch.distil(asked_of(tmp_path, device))
    assert opened.value.args == (device,)
