"""Where and how wide a step runs changes no digest: inline or in processes of its own, one, two or three shards."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import driver
import psutil
import pytest

from flows import placement
from opd_evolver import lineage, step
from opd_evolver.benchmark import measure
from opd_evolver.errors import OpdError, OutageError, SetupError
from opd_evolver.records import canonical_json
from opd_evolver.steps import benchmark as steps_benchmark
from opd_evolver.steps import plan, resources

pytestmark = pytest.mark.timeout(900)


class Inline(NamedTuple):
    """The run that the others are compared with: in process, one shard."""

    root: Path
    overrides: dict[str, Any]
    digests: dict[int, dict[str, str]]


@pytest.fixture(scope="module")
def inline(children: driver.Children, tmp_path_factory: pytest.TempPathFactory) -> Inline:
    folder = tmp_path_factory.mktemp("inline")
    policy = driver.policy_path(folder / "policy")
    one_wave = {"environments.domains": ["apps"], "fast.tasks_per_domain": 6, "fast.wave_tasks": 6}
    overrides = {**driver.SMALL, "policy.path": policy, **one_wave}
    assert children.run(folder / "run", "m", overrides) == 0, driver.said(folder / "run")
    found = driver.digests(folder / "run", "m")
    assert sorted(found) == [0, 1]
    return Inline(folder / "run", overrides, found)


@pytest.mark.parametrize("where, shards", [("inline", 2), ("inline", 3), ("subprocess", 2), ("pool", 2)])
def test_placement_and_shards_change_no_digest(
    children: driver.Children, inline: Inline, tmp_path: Path, where: str, shards: int
) -> None:
    overrides = {**inline.overrides, "flows.placement": where, "flows.shards": shards}
    assert children.run(tmp_path, "m", overrides) == 0, driver.said(tmp_path)
    played = sorted(path.parent.name for path in (tmp_path / "runs/m/steps").glob("*/wave-00/shard-*/result.json"))
    assert played == [f"shard-{shard}-of-{shards}" for shard in range(shards)]
    assert driver.digests(tmp_path, "m") == inline.digests
    ahead = {path.parent.name for path in (tmp_path / "runs/m/steps").glob("*/benchmark-parts/*/result.json")}
    assert ahead == ({one.replace(" ", "-") for one in plan.ROUND_PARTS} if where == "pool" else set())
    lines = [json.loads(line) for line in (tmp_path / "runs/m/progress.jsonl").read_text().splitlines()]
    told = [(one["done"], one["total"]) for one in lines if (one["round"], one["phase"]) == (1, "benchmark")]
    n = len(ahead) + 1
    assert told == [(done, n) for done in range(n + 1)]


def test_what_is_measured_ahead_is_all_that_a_benchmark_measures(inline: Inline, tmp_path: Path) -> None:
    """Once its parts lie in the store, the benchmark opens no policy."""
    root = tmp_path / "run"
    shutil.copytree(inline.root, root)
    shutil.rmtree(root / "runs/m/columns")
    run = lineage.open_run(root, "m")
    for round_, names in ((0, plan.BASE_PARTS), (1, plan.ROUND_PARTS)):
        digests = [inline.digests[1][name] for name in ("entries", "ledger", "weights")] if round_ else ["", "", ""]
        memory, weights = "".join(digests[:2]), digests[2]
        jobs = plan.benchmark_part_jobs(run, round_, memory, weights)
        with steps_benchmark._bench(jobs[0]) as (bench, base, new, champion):
            assert set(measure.parts(bench, base, new, champion)) == {*names}
        for job in jobs:
            step.run(job)
        shutil.rmtree(run.paths.step(round_, "benchmark"))
        job = plan.benchmark_job(run, round_, memory, weights)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(resources, "policy", lambda *_: pytest.fail("measured again"))
            measured = step.run(job).digests["benchmark"]
        before = json.loads((inline.root / f"runs/m/steps/round-{round_:03d}/benchmark/result.json").read_text())
        assert measured == before["digests"]["benchmark"]


def test_a_killed_process_of_the_pool_is_an_outage_and_the_next_try_has_new_ones(
    inline: Inline, tmp_path: Path
) -> None:
    root = tmp_path / "run"
    shutil.copytree(inline.root, root)
    out = Path("runs/m/steps/round-001/gate")
    job = step.load_job(root / out / "job.json").model_copy(update={"root": str(root)})
    shutil.rmtree(root / out)
    n = job.typed_params().flows.shards
    pid = placement._pool(n).submit(os.getpid).result()
    os.kill(pid, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], timeout=30)
    with pytest.raises(OutageError, match=r"was killed.*opd resume m"):
        placement.run_pool(job)
    assert placement.run_pool(job).step == "gate"
    assert placement.run_pool(job) == step.finished(job)
    missing = job.model_copy(update={"step": "gaet"})
    with pytest.raises(SetupError, match="gate"):
        placement.run_pool(missing)


POOL = """
import os, sys, time
from flows import placement
pool = placement._pool(2)
print(*{one.result() for one in [pool.submit(os.getpid), pool.submit(os.getpid)]}, flush=True)
time.sleep(600)
"""


def test_the_pool_ends_with_the_process_that_waits_for_it() -> None:
    with subprocess.Popen([sys.executable, "-c", POOL], cwd=driver.PROJECT, stdout=subprocess.PIPE, text=True) as one:
        assert one.stdout is not None
        workers = [psutil.Process(int(pid)) for pid in one.stdout.readline().split()]
        one.kill()
    assert workers
    _, left = psutil.wait_procs(workers, timeout=60)
    assert not left, "a process of the pool outlived the run"


STAND_IN = """
import sys, types


def gate(job, out):
    print("round 1: gate warns: far", file=sys.stderr)
    if job.options:
        raise RuntimeError("CUDA error: device-side assert\\nCompile with TORCH_USE_CUDA_DSA")
    from opd_evolver.step import result
    return result(job)


module = sys.modules["opd_evolver.steps.benchmark"] = types.ModuleType("benchmark")
module.gate = gate
"""


def test_what_a_step_of_its_own_process_says_is_passed_on_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where it ends well, and where it breaks: an error of two lines, of which the second is a hint."""
    (tmp_path / "sitecustomize.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{driver.PROJECT}")
    job = step.Job(step="gate", lineage="m", round=1, root=str(tmp_path), out="steps/gate", params={})
    assert placement.run_subprocess(job).key == job.key()
    assert capsys.readouterr().err == "round 1: gate warns: far\n"
    log = tmp_path / "steps" / "gate.err"
    with pytest.raises(OpdError) as caught:
        placement.run_subprocess(job.model_copy(update={"options": {"breaks": True}}))
    assert caught.value.seen == (
        f"step gate of round 1 ended with exit 1: RuntimeError: CUDA error: device-side assert; see {log}"
    )
    assert caught.value.mend == "opd resume m"
    kept, said = log.read_text(), capsys.readouterr().err
    assert kept.count("gate warns") == 2 and kept.count("Traceback") == 1 and said in kept
    assert "TORCH_USE_CUDA_DSA" in said and said.startswith("round 1: gate warns: far\n")
    with pytest.raises(SetupError, match="unknown step `gaet`"):
        placement.run_subprocess(job.model_copy(update={"step": "gaet"}))
    assert capsys.readouterr().err == "", "an error that is raised here is not said, too"


def test_streaming_runs_beside_the_default_waves(children: driver.Children, inline: Inline, tmp_path: Path) -> None:
    """W = 1, and the streaming benchmark: another run in the same folder, whose every task sees the one before."""
    root = tmp_path / "run"
    shutil.copytree(inline.root, root)
    overrides = {
        **inline.overrides,
        "fast.tasks_per_domain": 3,
        "fast.wave_tasks": 1,
        "benchmark.protocol": "streaming",
    }
    assert children.run(root, "stream", overrides) == 0, driver.said(root)
    assert driver.digests(root, "m") == inline.digests
    ledger = (root / "versions/stream/round-001/memory/ledger.jsonl").read_text(encoding="utf-8").splitlines()
    waves = [line["wave"] for line in map(json.loads, ledger) if line["kind"] == "segment" and line["part"] == 0]
    assert waves == [0, 1, 2]
    protocols = [json.loads(one["measurement"])["protocol"] for one in driver.digests(root, "stream").values()]
    assert protocols == ["streaming", "streaming"]


def test_a_job_file_gives_what_the_same_step_gives_in_process(inline: Inline, tmp_path: Path) -> None:
    """`python -m opd_evolver.step job.json` on the training step: the same result and the same bytes of weights."""
    root = tmp_path / "run"
    shutil.copytree(inline.root, root)
    out = Path("runs/m/steps/round-001/distil")
    job = step.load_job(root / out / "job.json").model_copy(update={"root": str(root)})
    target = job.path("target")
    shutil.rmtree(root / out)
    shutil.rmtree(target)
    (tmp_path / "job.json").write_text(canonical_json(job))
    child = subprocess.run(
        [sys.executable, "-m", "opd_evolver.step", str(tmp_path / "job.json")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    assert Path(child.stdout.strip()) == root / out / "result.json"
    ours, theirs = (json.loads((one / out / "result.json").read_text()) for one in (root, inline.root))
    assert (ours["key"], ours["digests"]) == (theirs["key"], theirs["digests"])
    weights = target / "model.safetensors"
    assert weights.read_bytes() == (inline.root / weights.relative_to(root)).read_bytes()


def test_a_step_tells_what_it_took(inline: Inline) -> None:
    told = [json.loads(path.read_text()) for path in (inline.root / "runs/m/steps").glob("round-*/*/result.json")]
    assert len(told) > 5
    for one in told:
        # torch alone takes more than 100 MiB; there is no accelerator in tests.
        assert one["peak_bytes"] > 100 * 2**20 and one["peak_device_bytes"] == 0 and one["seconds"] >= 0
