"""A full disk, no permission, a busy port, Ctrl-C, two runs at once: one clear line, finished rounds intact."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Opd, Said
from finished_run import stand_in_flow
from one_line import one_line

from opd_evolver import cli, step
from opd_evolver.processes import started

LIBC = ctypes.CDLL(None)
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2
CANNOT_CONFINE = 77
SOURCE = Path(__file__).parents[1]


def _give_up_root() -> None:
    """From here on file modes bind this process, as they bind every user but root."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice
    failed = LIBC.capget(header, data)
    for at in range(3):
        data[at] &= ~(1 << CAP_DAC_OVERRIDE | 1 << CAP_DAC_READ_SEARCH)
    if failed or LIBC.capset(header, data) != 0:
        os._exit(CANNOT_CONFINE)


def child(
    *arguments: str,
    limit_bytes: int | None = None,
    obeys_modes: bool = False,
    entry: Callable[[list[str]], int] = cli.main,
) -> Said:
    """The command in a process of its own: on a small disk, or without root's right to read everything."""
    pipes = [os.pipe(), os.pipe()]
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            sys.stdout, sys.stderr = (open(write, "w", encoding="utf-8") for _, write in pipes)  # noqa: SIM115
            if limit_bytes is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
            if obeys_modes and os.geteuid() == 0:
                _give_up_root()
            status = entry(list(arguments))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    texts = []
    for read, write in pipes:
        os.close(write)
        with open(read, encoding="utf-8") as stream:
            texts.append(stream.read())
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code == CANNOT_CONFINE:
        pytest.skip("root that may not give up its rights ignores modes")
    return Said(code, *texts)


# ── disk and permissions ───────────────────────────────────────────────────────────────────────────────


def test_a_full_disk(intact: Path) -> None:
    """RLIMIT_FSIZE stands for it: a write beyond the limit fails as on a full disk."""
    one_line(child("run", "--local", "--name", "new", limit_bytes=200), "no space left", "opd resume")
    assert not list((intact / "runs" / "new").glob(".*.tmp"))
    one_line(child("memory", "log", "--name", "done", limit_bytes=2000), "no space left")
    job = next((intact / "runs" / "done" / "steps" / "round-001").glob("wave-00/shard-0-of-1/job.json"))
    fresh = json.loads(job.read_text())["job"]
    fresh.update(out="runs/new/steps/x", root=str(intact), lineage="new")
    (intact / "job.json").write_text(json.dumps(fresh))
    said = child("job.json", limit_bytes=200, entry=step.main)
    assert said.code == 2 and said.out == "" and "no space left" in json.loads(said.err.splitlines()[-1])["seen"]


@pytest.mark.parametrize(
    "file, command",
    [
        ("params.yaml", ("run", "--local", "--name", "new")),
        ("runs/done/run.json", ("rounds", "done")),
        ("runs/done/HEAD.jsonl", ("rounds", "done")),
        ("runs/done/rounds/round-001.json", ("rounds", "done")),
        ("versions/done/round-001/memory/manifest.json", ("memory", "log", "--name", "done")),
        ("versions/done/round-001/memory/ledger.jsonl", ("memory", "log", "--name", "done")),
        ("versions/done/round-001/policy/model.safetensors", ("evaluate", "versions/done/round-001/policy")),
        (".env", ("rounds", "done")),
    ],
)
def test_no_read_permission(intact: Path, file: str, command: tuple[str, ...]) -> None:
    (intact / ".env").touch()
    (intact / file).chmod(0)
    said = child(*command, obeys_modes=True)
    (intact / file).chmod(0o644)
    one_line(said, Path(file).name, "chmod")


def test_no_write_permission(intact: Path) -> None:
    (intact / "runs").chmod(0o555)
    said = child("run", "--local", "--name", "new", obeys_modes=True)
    (intact / "runs").chmod(0o755)
    one_line(said, "no permission to write", "chmod")
    assert not (intact / "runs" / "new").exists()


# ── interruptions and two at once ─────────────────────────────────────────────────────────────


def beginning(project: Path, name: str) -> subprocess.Popen[str]:
    """`opd run` as a terminal starts it, in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "opd_evolver.cli", "run", "--local", "--name", name],
        cwd=project,
        env={**os.environ, "PYTHONPATH": f"{project}:{SOURCE}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    while not path.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("number", "whole_group"),
    [(signal.SIGINT, True), (signal.SIGINT, False), (signal.SIGTERM, False)],
    ids=["terminal", "kill -INT", "kill"],
)
def test_ctrl_c_names_the_command_that_goes_on(intact: Path, number: signal.Signals, whole_group: bool) -> None:
    stand_in_flow(intact, "import os\npathlib.Path('here').write_text(str(os.getpid()))\ntime.sleep(600)")
    process = beginning(intact, "new")
    wait_for(intact / "here", process)
    if whole_group:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert not Path(f"/proc/{(intact / 'here').read_text()}").exists()
    assert process.returncode == 130 and out == ""
    assert "Traceback" not in err and "finished rounds are kept" in err and "opd resume new" in err


WITH_A_STACK = """
import pathlib, time
from opd_evolver import cli, stack
from opd_evolver.steps import dispatch


def run(*_):
    pathlib.Path("here").touch()
    time.sleep(600)


stack.up = lambda *_, **__: {}
stack.down = lambda: pathlib.Path("stopped").touch()
dispatch.through_worker = run
raise SystemExit(cli.main(["run", "--up", "--name", "new"]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_whatever_interrupts_a_run_with_a_stack_of_its_own_ends_it_alike(intact: Path, number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WITH_A_STACK],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(intact / "here", process)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and out == "" and (intact / "stopped").exists()
    assert "Traceback" not in err and "opd resume new" in err


def test_a_flow_that_breaks_says_its_last_words(intact: Path) -> None:
    stand_in_flow(intact, "raise OSError(28, 'No space left on device')")
    process = beginning(intact, "new")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1 and out == "" and "Traceback" not in err
    last = err.splitlines()[-1]
    assert "[Errno 28] No space left on device; see " in last and last.endswith("mend: opd resume new")


def test_a_second_run_on_one_name_waits_for_the_first(intact: Path) -> None:
    """The first one here is a process that holds the run; when it ends with all rounds done, nothing is left to do."""
    shutil.copytree(intact / "runs" / "done", intact / "runs" / "twin")
    for path in ("run.json", "HEAD.jsonl"):
        file = intact / "runs" / "twin" / path
        file.write_text(file.read_text().replace('"done"', '"twin"'))
    summary = intact / "runs" / "twin" / "rounds" / "round-001.json"
    later = summary.with_suffix(".later")
    summary.rename(later)
    first = subprocess.Popen(["sleep", "600"])
    holder = {"schema_version": 1, "pid": first.pid, "started": started(first.pid), "flow_run_id": None}
    (intact / "runs" / "twin" / "writer.json").write_text(json.dumps(holder))
    stand_in_flow(intact, "pathlib.Path('played').touch()")
    second = beginning(intact, "twin")
    try:
        time.sleep(3)  # long enough to begin, were it not waiting
        assert second.poll() is None and not (intact / "played").exists()
        later.rename(summary)
        first.kill()
        first.wait()
        out, err = second.communicate(timeout=60)
    finally:
        first.kill()
        second.kill()
    assert second.returncode == 0 and "nothing to do" in err and out.startswith("run twin")
    assert not (intact / "played").exists()


def test_a_busy_port(intact: Path, opd: Opd, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(SOURCE / "prefect.yaml", intact)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        monkeypatch.setenv("OPD_PREFECT_PORT", port)
        one_line(opd("up"), port, "OPD_PREFECT_PORT")
    assert not (intact / "prefect.toml").exists() and json.loads(opd("status", "--json").out)["running"] is False
