"""Attacks on the sandbox: 0 escapes, and the same attack without isolation succeeds, so that no test passes idly."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import sandbox_attacks as attacks
import sandbox_bounds as bounds
from sandbox_boxes import box_of

from opd_evolver.sandbox import LANGUAGES, Limits, Outcome, Sandbox, probe
from opd_evolver.sandbox.limits import MODES, Language

REPOSITORY = Path(__file__).resolve().parents[1]
PIDS = os.readlink("/proc/self/ns/pid") if os.path.exists("/proc/self/ns/pid") else ""


@pytest.fixture(scope="module", params=MODES)
def box(request: pytest.FixtureRequest) -> Sandbox:
    """A sandbox of each mode this machine has."""
    return box_of(request.param)


def unisolated(language: Language, code: str, *words: str, cwd: Path, close_fds: bool = True) -> str:
    """The control: the same code as any program of this user."""
    command = [sys.executable, "-c", code] if language == "python" else ["bash", "-c", code, "bash"]
    done = subprocess.run([*command, *words], cwd=cwd, close_fds=close_fds, capture_output=True, timeout=60, check=True)
    return done.stdout.decode()


def held(outcome: Outcome) -> None:
    assert "ESCAPED" not in outcome.stdout and "ESCAPED" not in outcome.stderr, outcome
    assert outcome.stdout.split() == ["held"], outcome


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text("top secret")
    path.chmod(0o644)
    return path


@pytest.fixture
def victim() -> Iterator[psutil.Process]:
    process = subprocess.Popen(["sleep", "60"], start_new_session=True)
    yield psutil.Process(process.pid)
    process.kill()
    process.wait()


def named(marker: str) -> list[psutil.Process]:
    """Processes of the whole machine that have this word in their command line."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        if marker in (process.info["cmdline"] or [])[:1] and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def test_the_default_mode_here_isolates() -> None:
    found = probe()
    if found.mode is None:
        pytest.skip(f"no isolation on this machine: {found.detail}")
    assert found.languages == LANGUAGES and found.mode in found.line()


def test_files_outside_cannot_be_read(box: Sandbox, secret: Path, tmp_path: Path) -> None:
    own = (str(secret), str(REPOSITORY / "pyproject.toml"), __file__, "/etc/passwd")
    never = ("/etc/shadow", "/etc/hostname", "/root/.bashrc", "/proc/kcore", "/proc/kmsg", "/sys/kernel/notes")
    held(box.run("python", attacks.READ, [*own, *never]))
    assert unisolated("python", attacks.READ, *own, cwd=tmp_path).count("ESCAPED") == len(own)


def test_nothing_can_be_written_outside_the_private_folder(box: Sandbox, tmp_path: Path) -> None:
    places = ("/", "/usr/bin", "/usr/lib", "/etc", "/dev", "/proc", "/python", str(tmp_path))
    held(box.run("python", attacks.WRITE, places))
    assert not (tmp_path / "opd-planted").exists()
    assert "ESCAPED" in unisolated("python", attacks.WRITE, str(tmp_path), cwd=tmp_path)


def test_the_private_folder_is_gone_after_the_run(box: Sandbox) -> None:
    planted = f"opd-{uuid.uuid4().hex}"
    first = box.run("bash", 'echo x > "/work/$1"; echo y > "/tmp/$1-t"; ls /tmp', [planted])
    assert planted in first.stdout and f"{planted}-t" in first.stdout
    assert planted not in box.run("bash", "ls /work /tmp").stdout
    assert not any(Path(folder, planted + end).exists() for folder in ("/work", "/tmp") for end in ("", "-t"))


def test_links_lead_nowhere(box: Sandbox, secret: Path, tmp_path: Path) -> None:
    held(box.run("python", attacks.LINKS, [str(secret)]))
    assert "ESCAPED" in unisolated("python", attacks.LINKS, str(secret), cwd=tmp_path)


def test_no_network(box: Sandbox, tmp_path: Path) -> None:
    name = f"opd-{uuid.uuid4().hex}"
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local:
        port = str(server.getsockname()[1])
        local.bind("\0" + name)
        local.listen()
        held(box.run("python", attacks.CONNECT, [port, name]))
        held(box.run("bash", attacks.CONNECT_BASH, [port]))
        seen = unisolated("python", attacks.CONNECT, port, name, cwd=tmp_path)
        assert "ESCAPED tcp" in seen and "ESCAPED abstract" in seen
        assert "ESCAPED" in unisolated("bash", attacks.CONNECT_BASH, port, cwd=tmp_path)


def test_no_descriptor_is_inherited(box: Sandbox, secret: Path, tmp_path: Path) -> None:
    with secret.open("rb") as file:
        os.set_inheritable(file.fileno(), True)
        held(box.run("python", attacks.DESCRIPTORS))
        assert "ESCAPED" in unisolated("python", attacks.DESCRIPTORS, cwd=tmp_path, close_fds=False)
    # 3 is the listing itself.
    listed = box.run("python", "import os, sys; print(*sorted(os.listdir('/proc/self/fd')), repr(sys.stdin.read()))")
    assert listed.stdout.split() == ["0", "1", "2", "3", "''"]


def test_no_environment_is_inherited(box: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    word = uuid.uuid4().hex
    monkeypatch.setenv("OPD_TEST_SECRET_OF_SANDBOX", word)
    held(box.run("python", attacks.ENVIRONMENT, [word]))
    assert "ESCAPED" in unisolated("python", attacks.ENVIRONMENT, word, cwd=tmp_path)


def test_other_processes_are_unseen(box: Sandbox, victim: psutil.Process, tmp_path: Path) -> None:
    words = ("sleep\00060", str(victim.pid))
    held(box.run("python", attacks.PROCESSES, [words[0].split("\0")[0], words[1]]))
    assert unisolated("python", attacks.PROCESSES, "sleep", words[1], cwd=tmp_path).count("ESCAPED") >= 2


def test_nothing_can_be_traced(box: Sandbox, victim: psutil.Process, tmp_path: Path) -> None:
    held(box.run("python", attacks.TRACE, [str(victim.pid)]))
    held(box.run("python", attacks.TRACE, ["1"]))
    assert "ESCAPED process_vm_readv" in unisolated("python", attacks.TRACE, str(victim.pid), cwd=tmp_path)


def test_signals_stay_inside(box: Sandbox, victim: psutil.Process) -> None:
    held(box.run("python", attacks.SIGNALS, [str(victim.pid), str(os.getpid()), PIDS]))
    assert victim.is_running() and victim.status() != psutil.STATUS_ZOMBIE
    control = unisolated("python", attacks.SIGNALS, str(victim.pid), "0", PIDS, cwd=Path("/"))
    assert "ESCAPED into the machine" in control


def test_no_namespace_no_mount_no_kernel_door(box: Sandbox, tmp_path: Path) -> None:
    held(box.run("python", attacks.KERNEL, ["isolated"]))
    control = unisolated("python", attacks.KERNEL, cwd=tmp_path)
    assert {"unshare user", "clone", "memfd", "shmget"} <= {
        line.removeprefix("ESCAPED ") for line in control.splitlines()
    }


def test_no_rights_and_no_way_to_any(box: Sandbox, tmp_path: Path) -> None:
    held(box.run("python", attacks.RIGHTS))
    control = unisolated("python", attacks.RIGHTS, cwd=tmp_path)
    assert "ESCAPED new privileges" in control and "ESCAPED setuid files" in control


def test_it_is_another_place(box: Sandbox, tmp_path: Path) -> None:
    here = [os.readlink(path) for path in Path("/proc/self/ns").iterdir()]
    held(box.run("python", attacks.PLACE, here))
    control = unisolated("python", attacks.PLACE, *here, cwd=tmp_path)
    assert control.count("ESCAPED namespace") == 7 and "ESCAPED into etc" in control


def test_no_devices(box: Sandbox, tmp_path: Path) -> None:
    held(box.run("python", attacks.DEVICES))
    assert "ESCAPED" in unisolated("python", attacks.DEVICES, cwd=tmp_path)


# ── limits: each attack says how far it came ──────────────────────────────────────────────────

BOUNDS = {
    "processes": (bounds.FORKS, Limits(processes=8), 8, 24),
    "threads": (bounds.THREADS, Limits(processes=8), 8, 24),
    "memory in MiB": (bounds.MEMORY, Limits(memory_bytes=64 << 20), 64, 96),
    "disk in MiB": (bounds.DISK, Limits(disk_bytes=4 << 20), 4, 6),
    "one file in MiB": (bounds.ONE_FILE, Limits(file_bytes=2 << 20), 2, 4),
    "open files": (bounds.OPEN_FILES, Limits(open_files=32), 32, 48),
}


@pytest.mark.parametrize("what", BOUNDS)
def test_what_a_program_takes_is_bounded(box: Sandbox, what: str, tmp_path: Path) -> None:
    code, limits, bound, wanted = BOUNDS[what]
    outcome = box.run("python", code, [str(wanted)], limits=limits)
    assert outcome.stdout.strip().isdigit(), outcome
    assert 0 < int(outcome.stdout) <= bound
    assert int(unisolated("python", code, str(wanted), cwd=tmp_path)) == wanted > bound


def test_a_fork_bomb_ends_with_the_wall_time(box: Sandbox, tmp_path: Path) -> None:
    limits = Limits(wall_s=1.0, processes=12, output_bytes=1 << 20)
    # No bomb where its bound does not hold.
    assert int(box.run("python", bounds.FORKS, ["24"], limits=limits).stdout) <= 12
    assert int(unisolated("python", bounds.FORKS, "24", cwd=tmp_path)) == 24
    most = 0
    seen = threading.Event()
    before = len(psutil.pids())

    def watch() -> None:
        nonlocal most
        while not seen.wait(0.02):
            most = max(most, len(psutil.pids()) - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        outcome = box.run("bash", attacks.FORK_BOMB, limits=limits)
    finally:
        seen.set()
        watcher.join()
    assert outcome.timed_out and outcome.killed_by == "wall time"
    assert most < 100  # 12, its set-up, and what else this machine starts meanwhile


@pytest.mark.parametrize("stream", ["yes", "yes >&2", "cat /dev/zero", "while :; do echo -n x; done"])
def test_endless_output_is_cut_and_ended(box: Sandbox, stream: str) -> None:
    outcome = box.run("bash", stream, limits=Limits(output_bytes=1000, wall_s=20, cpu_s=10))
    assert outcome.truncated and outcome.killed_by == "output" and not outcome.timed_out
    assert len(outcome.stdout) + len(outcome.stderr) == 1000
    control = subprocess.Popen(
        ["bash", "-c", stream], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        assert control.stdout is not None and len(control.stdout.read(4000)) == 4000
    finally:
        # The shell may have started a child, which must not outlive it; nor is the rest of the output read.
        os.killpg(control.pid, signal.SIGKILL)
        control.wait()
        if control.stdout is not None:
            control.stdout.close()


def test_an_endless_run_is_ended(box: Sandbox) -> None:
    marker = f"opd-{uuid.uuid4().hex}"
    stubborn = "trap '' TERM INT HUP; exec >&- 2>&-; bash -c 'exec -a \"$0\" sleep 30' \"$1\""
    outcome = box.run("bash", stubborn, [marker], limits=Limits(wall_s=0.4))
    assert outcome.timed_out and outcome.killed_by == "wall time" and outcome.exit_code != 0
    assert not named(marker)


def test_cpu_time_is_bounded(box: Sandbox) -> None:
    outcome = box.run("bash", "while :; do :; done", limits=Limits(cpu_s=1, wall_s=30))
    assert not outcome.timed_out and outcome.killed_by in ("SIGXCPU", "SIGKILL")


@pytest.mark.parametrize("output", ["closed", "open"])
def test_a_daemon_dies_with_the_run(box: Sandbox, output: str, tmp_path: Path) -> None:
    marker = f"opd-{uuid.uuid4().hex}"
    held(box.run("bash", attacks.DAEMON, [marker, output], limits=Limits(wall_s=20)))
    assert not named(marker)
    if output == "closed":
        unisolated("bash", attacks.DAEMON, marker, output, cwd=tmp_path)
        survivors = named(marker)
        assert survivors
        for process in survivors:
            process.kill()


def test_a_run_dies_with_its_parent(box: Sandbox) -> None:
    marker = f"opd-{uuid.uuid4().hex}"
    code = "import sys; from opd_evolver.sandbox import Sandbox, Limits\n"
    code += "Sandbox(sys.argv[1], Limits(wall_s=60)).run('bash', 'exec -a \"$1\" sleep 60', [sys.argv[2]])"
    parent = subprocess.Popen([sys.executable, "-c", code, box.mode, marker])
    try:
        while not (inside := named(marker)):
            assert parent.poll() is None
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    psutil.wait_procs(inside, timeout=30)
    assert not named(marker)


def test_the_tool_that_makes_the_sandbox_is_not_left_running(box: Sandbox) -> None:
    me = psutil.Process()
    before = {child.pid for child in me.children(recursive=True)}
    descriptors = me.num_fds()
    for _ in range(3):
        box.run("bash", "sleep 20 & echo x", limits=Limits(wall_s=5))
        box.run("bash", "sleep 20", limits=Limits(wall_s=0.05))
    assert {child.pid for child in me.children(recursive=True)} <= before
    assert me.num_fds() == descriptors


def test_bubblewrap_is_tried_first_where_it_is_installed() -> None:
    if shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed (apt-get install bubblewrap)")
    assert probe().mode == "bubblewrap"
