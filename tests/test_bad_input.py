"""Bad input: one clear line with its mend, the documented exit code, no traceback, finished rounds intact."""

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
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Opd, Said
from finished_run import params_of, stand_in_flow

from opd_evolver import cli, lineage, step
from opd_evolver.memory.segment import encode_lines, split_lines
from opd_evolver.memory.store import INDEX_FILE, Memory
from opd_evolver.params import MemoryParams
from opd_evolver.processes import started

LIBC = ctypes.CDLL(None)
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2
CANNOT_CONFINE = 77
SOURCE = Path(__file__).parents[1]


def one_line(said: Said, *words: str, code: int = 2) -> None:
    """The documented exit code, nothing on stdout, and one line that says what mends it."""
    assert said.code == code, said
    assert said.out == "", said.out
    lines = said.err.splitlines()
    assert len(lines) == 1, said.err
    assert lines[0].startswith("error: ") and "mend: " in lines[0]
    for word in words:
        assert word in lines[0], f"{word!r} not in {lines[0]!r}"


def contents(project: Path) -> dict[str, bytes]:
    """Everything a finished round left: its records and its versions."""
    kept = [project / "versions", project / "runs" / "done" / "rounds", project / "runs" / "done" / "run.json"]
    files = [path for one in kept for path in ([one] if one.is_file() else sorted(one.rglob("*")))]
    return {str(path): path.read_bytes() for path in files if path.is_file()}


@pytest.fixture
def intact(project: Path) -> Iterator[Path]:
    """The project; after the test its finished rounds must be what they were."""
    before = contents(project)
    yield project
    assert contents(project) == before


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


# ── parameters and names ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "pair, words",
    [
        ("fast.wave_task=1", ("unknown parameter `fast.wave_task`", "did you mean `fast.wave_tasks`?")),
        ("nonsense.of.mine=1", ("unknown parameter `nonsense.of.mine`",)),
        ("rounds=none", ("parameter `rounds`", "valid integer")),
        ("seed=[", ("--set seed=[",)),
        ("environments.domains=[sqk]", ("unknown environment 'sqk'", "did you mean 'sql'")),
        ("policy.path=/nowhere/at/all", ("no folder /nowhere/at/all", "policy.path")),
    ],
)
def test_wrong_parameters_begin_no_run(intact: Path, opd: Opd, pair: str, words: tuple[str, ...]) -> None:
    one_line(opd("run", "--local", "--name", "new", "--set", pair), *words)
    assert not (intact / "runs" / "new").exists()


def test_a_misspelt_key_in_params_yaml(intact: Path, opd: Opd) -> None:
    path = intact / "params.yaml"
    path.write_text(path.read_text().replace("wave_tasks:", "wave_tsaks:"))
    one_line(opd("run", "--local", "--name", "new"), "`fast.wave_tsaks` in params.yaml", "`fast.wave_tasks`")


def test_changed_parameters_are_listed_and_refused(intact: Path, opd: Opd) -> None:
    said = opd("run", "--local", "--name", "done", "--set", "seed=7", "--set", "slow.steps=9")
    one_line(said, "seed: 0 → 7", "slow.steps: 6 → 9", "--fork", "--name")


def test_an_unknown_setting_names_the_nearest(intact: Path, opd: Opd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPD_DISPLY", "plain")
    one_line(opd("rounds", "done"), "OPD_DISPLY", "OPD_DISPLAY")


@pytest.mark.parametrize("name", ["../out", "a b", "", "x" * 65, "~2"])
def test_names_that_are_no_names(intact: Path, opd: Opd, name: str) -> None:
    said = opd("run", "--local", "--name", name)
    assert said.code == 2 and said.err.startswith("error: ") and "Traceback" not in said.err


@pytest.mark.parametrize(
    "command", [("rounds",), ("resume",), ("memory", "log", "--name"), ("memory", "undo", "--name")]
)
def test_an_unknown_run_names_the_nearest(intact: Path, opd: Opd, command: tuple[str, ...]) -> None:
    one_line(opd(*command, "doen"), "no run `doen`", "did you mean `done`?")


def test_an_unknown_round_entry_or_domain(intact: Path, opd: Opd) -> None:
    one_line(opd("memory", "rollback", "7", "--name", "done"), "round 7 of `done` has not finished")
    one_line(opd("memory", "show", "nosuchentry", "--name", "done"), "nosuchentry")
    one_line(opd("evaluate", str(intact / "versions/done/round-001/policy"), "--domains", "sqk"), "'sqk'", "'sql'")
    one_line(opd("evaluate", "seed", "--tasks", "0"), "--tasks 0")
    one_line(opd("check-env", "aps"), "'aps'", "did you mean 'apps'")


@pytest.mark.parametrize(
    "arguments", [("run", "--local"), ("run", "--local", "--preset", "micro"), ("resume",), ("rounds",)]
)
def test_outside_a_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opd: Opd, arguments: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    one_line(opd(*arguments))
    assert list(tmp_path.iterdir()) == []


# ── checkpoints ───────────────────────────────────────────────────────────────────────────────


def _without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    "harm, word", [(_without_weights, "no weights"), (_truncated, "as its header says"), (_pickled, "pickled")]
)
@pytest.mark.parametrize("command", ["run", "evaluate"])
def test_damaged_checkpoints(
    intact: Path, tmp_path: Path, opd: Opd, harm: Callable[[Path], None], word: str, command: str
) -> None:
    sound = Path(params_of_project(intact))
    folder = tmp_path / "policy"
    shutil.copytree(sound, folder)
    harm(folder)
    if command == "evaluate":
        one_line(opd("evaluate", str(folder), "--tasks", "2"), word, str(folder))
        return
    arguments = ("run", "--local", "--name", "new", "--set", f"policy.path={folder}")
    one_line(opd(*arguments), word, str(folder))
    assert not (intact / "runs" / "new").exists()  # the mended path is no changed parameter


def params_of_project(project: Path) -> str:
    return str(lineage.open_run(project, "done").params.policy.path)


# ── memory ────────────────────────────────────────────────────────────────────────────────────


def test_a_corrupt_index_is_mended_by_the_command_that_the_error_names(intact: Path, opd: Opd) -> None:
    before = opd("memory", "log", "--name", "done")
    assert before.code == 0
    live = intact / "runs" / "done" / "live"
    spoilt = list(live.rglob(INDEX_FILE))
    assert len(spoilt) == 2  # the live memory and the view that `memory log` made
    for path in spoilt:
        path.write_bytes(b"no database at all" * 400)
    one_line(opd("memory", "log", "--name", "done"), "not a database", "`opd memory reindex`")
    told = opd("memory", "reindex", "--name", "done", "--json")
    assert told.code == 0 and json.loads(told.out)["entries"] > 0
    assert opd("memory", "log", "--name", "done") == before
    with Memory.open(live / "round-001", MemoryParams(), read_only=True) as memory:
        assert memory.digest() == lineage.open_run(intact, "done").summary(1)["digests"]["entries"]  # type: ignore[index]


@pytest.mark.parametrize("command", [("log",), ("rollback", "1")])
def test_a_corrupt_snapshot(project: Path, opd: Opd, command: tuple[str, ...]) -> None:
    path = project / "versions" / "done" / "round-001" / "memory" / "entries.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"live", b"LIVE", 1))
    heads = (project / "runs" / "done" / "HEAD.jsonl").read_bytes()
    one_line(opd("memory", *command, "--name", "done"), "entries.jsonl has digest", "dvc checkout")
    assert (project / "runs" / "done" / "HEAD.jsonl").read_bytes() == heads
    path.write_bytes(whole)
    assert opd("memory", *command, "--name", "done").code == 0


def _newer(path: Path) -> None:
    tree = json.loads(path.read_text())
    path.write_text(json.dumps({**tree, "schema_version": 99}))


@pytest.mark.parametrize(
    "file, command",
    [
        ("runs/done/run.json", ("rounds", "done")),
        ("runs/done/run.json", ("run", "--local", "--name", "done")),
        ("runs/done/rounds/round-001.json", ("rounds", "done")),
        ("versions/done/round-001/memory/manifest.json", ("memory", "log", "--name", "done")),
    ],
)
def test_a_newer_schema_is_refused_and_left_alone(project: Path, opd: Opd, file: str, command: tuple[str, ...]) -> None:
    _newer(project / file)
    before = contents(project)
    one_line(opd(*command), "schema 99", "pip install -U opd-evolver")
    assert contents(project) == before


def test_a_newer_ledger_is_refused_and_left_alone(intact: Path, opd: Opd) -> None:
    segment = min((intact / "runs" / "done" / "live" / "round-001" / "ledger").glob("segment-*"))
    lines, _ = split_lines(segment.read_bytes(), segment)
    segment.write_bytes(encode_lines({**lines[0], "schema_version": 99}, lines[1:]))
    before = segment.read_bytes()
    one_line(opd("memory", "reindex", "--name", "done"), "schema 99", "pip install -U opd-evolver")
    assert segment.read_bytes() == before


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema_version": 1}'])
def test_a_damaged_record_of_the_run(project: Path, opd: Opd, text: str) -> None:
    (project / "runs" / "done" / "run.json").write_text(text)
    one_line(opd("rounds", "done"), "run.json", "restore")


def test_parameters_that_this_version_does_not_know(project: Path, opd: Opd) -> None:
    path = project / "runs" / "done" / "run.json"
    tree = json.loads(path.read_text())
    tree["params"]["fast"]["gone"] = 1
    path.write_text(json.dumps(tree))
    one_line(opd("rounds", "done"), "unknown parameter `fast.gone`", "run.json")


# ── the machine ───────────────────────────────────────────────────────────────────────────────


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


@pytest.mark.parametrize("whole_group", [True, False], ids=["terminal", "kill -INT"])
def test_ctrl_c_names_the_command_that_goes_on(intact: Path, whole_group: bool) -> None:
    stand_in_flow(intact, "pathlib.Path('here').touch()\ntime.sleep(600)")
    process = beginning(intact, "new")
    wait_for(intact / "here", process)
    if whole_group:
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and out == ""
    assert "Traceback" not in err and "finished rounds are kept" in err and "opd resume new" in err


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


def test_params_of_the_fixture_are_the_ones_on_disk(project: Path) -> None:
    assert lineage.open_run(project, "done").params == params_of(Path(params_of_project(project)))
