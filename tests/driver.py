"""Runs of the real flows without Prefect's engine, in forked children that can be killed, torn or starved.

`python tests/driver.py` is the server: it imports everything heavy once, then forks one child per line of JSON on
stdin and answers with the child's pid, so that a run begins at its first step and not with seconds of imports. The
order of steps is that of flows/: their functions are called bare. `Children` is the client for tests.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
# As small as every part of a round allows: two waves, maintenance, training with a checkpoint, all columns.
SMALL: dict[str, Any] = {
    "rounds": 1,
    "seed": 1,
    "fast.tasks_per_domain": 3,
    "fast.wave_tasks": 3,
    "environments.levels": ["tip"],
    "fast.maintain_every_tasks": 3,
    "fast.microbatch_rollouts": 2,
    "slow.steps": 3,
    "slow.checkpoint_every": 1,
    "slow.mixture": {"act": 6, "write": 2, "select": 2, "maintain": 0, "anchor": 2},
    "slow.anchor_examples": 4,
    "slow.threads": 1,
    "benchmark.test_tasks_per_domain": 2,
    "benchmark.val_tasks_per_domain": 2,
    "benchmark.probe_tasks_per_domain": 2,
    "benchmark.bootstrap_samples": 50,
}


def policy_path(folder: Path) -> str:
    """The seed policy when it is there, else a random one."""
    import opd_evolver

    seed = Path(opd_evolver.__file__).parent / "assets" / "seed-policy"
    if (seed / "model.safetensors").exists():
        return str(seed)
    from checkpoints import tiny_lfm2

    return str(tiny_lfm2(folder))


# ── the client ────────────────────────────────────────────────────────────────────────────────


class Child:
    """One forked run."""

    def __init__(self, server: subprocess.Popen[str], pid: int) -> None:
        self._server, self.pid = server, pid

    def wait(self) -> int:
        """Its exit code, or minus the signal that ended it."""
        _send(self._server, {"wait": self.pid})
        return int(_receive(self._server)["status"])

    def kill_after(self, seconds: float) -> int:
        """SIGKILL after so long, unless it ended before."""
        _send(self._server, {"wait": self.pid, "kill_after": seconds})
        return int(_receive(self._server)["status"])


class Children:
    """The server's client; a context manager, so that no server outlives its tests."""

    def __init__(self) -> None:
        path = os.pathsep.join([str(PROJECT), str(PROJECT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        self._server = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def __enter__(self) -> Children:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(30)

    def start(
        self,
        root: Path,
        name: str,
        overrides: dict[str, Any] | None = None,
        *,
        fork: bool = False,
        resume: bool = False,
        puppet: str = "",
        **fault: Any,
    ) -> Child:
        """Begin or resume `name` in the folder `root`; `puppet`: a dialect, see `_puppet`, `fault` as in `_broken`."""
        root.mkdir(parents=True, exist_ok=True)
        asked = {"root": str(root), "name": name, "overrides": overrides, "fork": fork, "resume": resume}
        asked["puppet"] = puppet
        _send(self._server, {"start": asked, "fault": fault})
        return Child(self._server, int(_receive(self._server)["pid"]))

    def run(self, root: Path, name: str, overrides: dict[str, Any] | None = None, **more: Any) -> int:
        """The same, waited for; its exit code."""
        return self.start(root, name, overrides, **more).wait()


def _send(server: subprocess.Popen[str], tree: dict[str, Any]) -> None:
    assert server.stdin is not None
    print(json.dumps(tree), file=server.stdin, flush=True)


def _receive(server: subprocess.Popen[str]) -> dict[str, Any]:
    assert server.stdout is not None
    line = server.stdout.readline()
    if not line:
        raise RuntimeError(f"the driver ended with {server.wait(30)}")
    return dict(json.loads(line))


def digests(root: Path, lineage: str) -> dict[int, dict[str, str]]:
    """The named digests of every round of a lineage, and of what the gate saw."""
    found = {}
    for path in sorted((root / "runs" / lineage / "rounds").glob("round-*.json")):
        tree = json.loads(path.read_text(encoding="utf-8"))
        found[int(tree["round"])] = {**tree.get("digests", {}), "measurement": json.dumps(tree["measurement"])}
    return found


def said(root: Path) -> str:
    """What the runs in `root` printed."""
    path = root / "driver.log"
    return path.read_text(encoding="utf-8") if path.exists() else ""


# ── the server ────────────────────────────────────────────────────────────────────────────────


class _Bare:
    """A Prefect task's function with the two ways in which the flows call it."""

    def __init__(self, function: Callable[..., str]) -> None:
        self._function = function
        self._pool: ThreadPoolExecutor | None = None

    def __call__(self, *arguments: str) -> str:
        return self._function(*arguments)

    def submit(self, *arguments: str) -> Future[str]:
        self._pool = self._pool or ThreadPoolExecutor(8)  # made in the child: threads do not survive a fork
        return self._pool.submit(self._function, *arguments)


def _tear(descriptor: int) -> None:
    """Cut a file inside its last line, as a power cut before fsync may."""
    path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
    if path.is_file():
        data = path.read_bytes()
        begin = data.rstrip(b"\n").rfind(b"\n") + 1
        os.truncate(path, begin + (len(data) - begin) // 2)


def _broken(die_at: int = 0, after_s: float = 0.0, torn: bool = False, max_bytes: int = 0, count: str = "") -> None:
    """Break this process's disk.

    Args:
        die_at: SIGKILL at the so-manieth call of os.fsync or os.replace.
        after_s: so much later instead, wherever that is.
        torn: the file that was not synced yet loses the end of its last line.
        max_bytes: no file grows beyond.
        count: a file that gets the number of such calls.
    """
    calls = 0
    originals = {"fsync": os.fsync, "replace": os.replace}

    def patched(name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == die_at:
                if torn and name == "fsync":
                    _tear(arguments[0])
                if after_s:
                    threading.Timer(after_s, os.kill, (os.getpid(), signal.SIGKILL)).start()
                else:
                    os.kill(os.getpid(), signal.SIGKILL)
            if count:
                Path(count).write_text(str(calls))
            return originals[name](*arguments, **more)

        return call

    if die_at or count:
        os.fsync, os.replace = patched("fsync"), patched("replace")
    if max_bytes:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, max_bytes))


def _puppet(dialect: str) -> None:
    """Let a scripted agent play the fast loop in the policy's own tokens: a random policy would learn nothing."""
    import instruct_world
    import rollout_world
    from slow_world import Puppet

    agent = {"terse": rollout_world.agent, "instruct": instruct_world.agent}[dialect]
    from opd_evolver.steps import resources

    open_policy = resources.policy

    def policy(job: Any, name: str = "policy") -> Any:
        found = open_policy(job, name)
        if job.step not in ("fast_shard", "barrier"):
            return found
        played = Puppet(found, agent)
        played.version = found.version
        return played

    resources.policy = policy
    from flows import placement

    in_child = placement.run_subprocess
    # A child would not know of the script.
    placement.PLACES["subprocess"] = lambda job: (
        placement.run_inline(job) if job.step in ("fast_shard", "barrier") else in_child(job)
    )


def _bare_flows() -> Callable[..., str]:
    """`coevolve` without Prefect's engine, and without MLflow, which has tests of its own."""
    from flows import benchmark, coevolve, fast_loop, placement, slow_loop
    from opd_evolver.steps import track

    placement.place = _Bare(placement.place.fn)
    coevolve.fast_loop, coevolve.slow_loop = fast_loop.fast_loop.fn, slow_loop.slow_loop.fn
    coevolve.benchmark = benchmark.benchmark.fn
    track.round_ = lambda run, number: None
    return coevolve.coevolve.fn


def _import_all() -> None:
    import importlib

    from opd_evolver import step

    for target in sorted(set(step.STEPS.values())):
        importlib.import_module(target.partition(":")[0])
    for heavy in ("accelerate", "great_expectations", "peft", "torch", "transformers", "flows.coevolve"):
        importlib.import_module(heavy)
    importlib.import_module("opd_evolver.policy.local")
    importlib.import_module("opd_evolver.slow.train")


def _child(run: Callable[..., str], asked: dict[str, Any], fault: dict[str, Any]) -> int:
    from opd_evolver.errors import OpdError

    os.chdir(asked["root"])
    tempfile.tempdir = asked["root"]  # what a killed run leaves goes with its folder
    log = os.open("driver.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    _broken(**fault)
    if asked["puppet"]:
        _puppet(asked["puppet"])
    try:
        preset = None if asked["resume"] else "micro"
        run(asked["name"], preset, asked["overrides"] or {}, asked["fork"], asked["resume"])
    except OpdError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _fork(run: Callable[..., str], asked: dict[str, Any], fault: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        code = _child(run, asked, fault)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _reap(pid: int, kill_after: float | None) -> int:
    import time

    if kill_after is not None:
        end = time.monotonic() + kill_after
        while time.monotonic() < end:
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.002)
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _serve(lines: Sequence[str] | Any) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else prints must not be taken for an answer
    run = _bare_flows()
    _import_all()
    for line in lines:
        tree = json.loads(line)
        if "start" in tree:
            answer = {"pid": _fork(run, tree["start"], tree["fault"])}
        else:
            answer = {"status": _reap(tree["wait"], tree.get("kill_after"))}
        print(json.dumps(answer), file=answers, flush=True)
    os._exit(0)  # without the seconds that so many imports take to unload


if __name__ == "__main__":
    _serve(sys.stdin)
