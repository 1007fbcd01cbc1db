"""What a sandboxed run returns, what it refuses, and which isolation is found. Attacks: test_sandbox_attacks.py."""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import psutil
import pytest
from conftest import Opd
from hypothesis import given, settings
from hypothesis import strategies as st
from sandbox_bounds import FORKS
from sandbox_boxes import box_of

from opd_evolver.errors import OutageError, SetupError
from opd_evolver.records import Entry, ToolContent
from opd_evolver.rollout import tools
from opd_evolver.sandbox import LANGUAGES, Isolation, Limits, Outcome, Sandbox, available, commands, probe, run, seccomp
from opd_evolver.sandbox.limits import MODES
from opd_evolver.sandbox.probe import try_mode
from opd_evolver.sandbox.tree import tree


@pytest.fixture(scope="module", params=MODES)
def box(request: pytest.FixtureRequest) -> Sandbox:
    return box_of(request.param)


def test_the_exit_code_and_both_streams_come_back(box: Sandbox) -> None:
    outcome = box.run("bash", "echo out; echo err >&2; exit 7")
    assert (outcome.exit_code, outcome.stdout, outcome.stderr) == (7, "out\n", "err\n")
    assert outcome.killed_by is None and not outcome.timed_out and not outcome.truncated


@pytest.mark.parametrize("language", ["python", "bash"])
def test_arguments_arrive_as_they_are(box: Sandbox, language: str) -> None:
    words = ["", "a b", "-c", "$(id)", "`id`", "*", "ü漢", "'\"", "x;y", "\n", "--"]
    code = {"python": "import sys; print(*sys.argv[1:], sep='\\0', end='')", "bash": "printf '%s\\0' \"$@\""}[language]
    said = box.run(language, code, words).stdout  # type: ignore[arg-type]
    assert said.removesuffix("\0").split("\0") == words


def test_files_are_copies_in_the_private_folder(box: Sandbox) -> None:
    files = {"data.csv": b"1,2\n", "module.py": b"x = 42\n", "odd name": bytes(range(256))}
    code = (
        "import module, pathlib; print(module.x, len(open('odd name', 'rb').read()), open('data.csv').read(), end='')"
    )
    assert box.run("python", code, files=files).stdout == "42 256 1,2\n"
    assert box.run("bash", "echo 3 >> data.csv && cat data.csv", files=files).stdout == "1,2\n3\n"


def test_a_signal_is_named(box: Sandbox) -> None:
    outcome = box.run("bash", "kill -SEGV $$")
    assert (outcome.exit_code, outcome.killed_by) == (139, "SIGSEGV")


def test_output_that_is_no_text_is_replaced(box: Sandbox) -> None:
    assert box.run("bash", "printf 'a\\xff\\xfeb'").stdout == "a\ufffd\ufffdb"


def test_two_runs_of_one_program_say_the_same(box: Sandbox) -> None:
    code = "print(list({str(n) for n in range(30)}), __import__('os').getpid(), __import__('os').uname().nodename)"
    assert box.run("python", code) == box.run("python", code)


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x", "tool", "./tool", "a\0b"])
def test_a_path_that_leaves_the_folder_is_refused(name: str) -> None:
    with pytest.raises(SetupError, match="sandbox"):
        Sandbox("namespaces").run("bash", "true", files={name: b""})


@pytest.mark.parametrize("fields", [{"code": "x" * 2000}, {"arguments": ["x" * 2000]}, {"files": {"f": b"x" * 2000}}])
def test_too_much_input_is_refused(fields: dict[str, object]) -> None:
    small = Sandbox("namespaces", Limits(input_bytes=1000))
    with pytest.raises(SetupError, match="1000 bytes"):
        small.run("bash", **{"code": "true", **fields})  # type: ignore[arg-type]


def test_a_nul_byte_in_an_argument_is_refused() -> None:
    with pytest.raises(SetupError, match="NUL"):
        Sandbox("namespaces").run("bash", "true", ["a\0b"])


def test_a_set_up_that_fails_runs_nothing(monkeypatch: pytest.MonkeyPatch, box: Sandbox) -> None:
    if box.mode != "namespaces":
        pytest.skip("one mode suffices: the tree is the same")
    whole = tree(as_nobody=False)
    broken = type(whole)((*whole.binds, ("/nowhere/at/all", "/x")), whole.covers, whole.symlinks, whole.python, None)
    monkeypatch.setattr(commands, "tree", lambda *, as_nobody: broken)
    with pytest.raises(OutageError, match=r"could not be set up .*/x"):
        box.run("bash", "echo ran")


def test_a_start_that_fails_leaves_no_descriptor(monkeypatch: pytest.MonkeyPatch, box: Sandbox) -> None:
    gc.collect()  # what other tests left to the collector must not be closed in between
    before = psutil.Process().num_fds()
    monkeypatch.setattr(commands.sys, "executable", "/nowhere/python")
    monkeypatch.setattr(commands.shutil, "which", lambda name: "/nowhere/bwrap")
    with pytest.raises(OutageError, match="cannot start /nowhere"):
        box.run("bash", "true")
    assert psutil.Process().num_fds() == before


def held_up(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Every set-up begins so much later, as on a busy machine."""

    def start(*words: object) -> commands.Started:
        begun = commands.start(*words)  # type: ignore[arg-type]
        code = f"import os, sys, time; time.sleep({seconds}); os.execvp(sys.argv[1], sys.argv[1:])"
        return replace(begun, argv=(sys.executable, "-c", code, *begun.argv))

    monkeypatch.setattr(run, "start", start)


def test_the_wall_time_begins_when_the_set_up_held(monkeypatch: pytest.MonkeyPatch, box: Sandbox) -> None:
    held_up(monkeypatch, 1.5)
    outcome = box.run("bash", "echo ran", limits=Limits(wall_s=1.4))
    assert (outcome.stdout, outcome.killed_by) == ("ran\n", None)
    began = time.monotonic()
    hasty = box.run("bash", "sleep 5", limits=Limits(wall_s=0.001))
    assert hasty.timed_out and time.monotonic() - began > 1.5


def test_a_set_up_that_takes_too_long_is_an_outage(monkeypatch: pytest.MonkeyPatch, box: Sandbox) -> None:
    held_up(monkeypatch, 5)
    monkeypatch.setattr(run, "SET_UP_S", 0.2)
    with pytest.raises(OutageError, match="a set-up within"):
        box.run("bash", "echo ran", limits=Limits(wall_s=0.001))


def test_runs_beside_each_other_have_their_own_limits(box: Sandbox) -> None:
    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(box.run, "python", FORKS, ["24"], limits=Limits(processes=8)) for _ in range(4)]
        reached = [int(one.result().stdout) for one in runs]
    assert all(4 <= n <= 8 for n in reached), reached


def test_nothing_of_users_is_in_the_tree() -> None:
    for as_nobody in (False, True):
        found = tree(as_nobody=as_nobody)
        inside = [target for _, target in found.binds]
        assert not any(
            target.startswith(("/root", "/home", "/proc", "/sys", "/var", "/tmp", "/run")) for target in inside
        )
        assert not any(source in ("/", "/etc", "/dev", "/usr", "/usr/local") for source, _ in found.binds)
        hidden = [target for target in found.covers if target.endswith("-packages")]
        assert found.libraries is None or any(target.startswith(found.libraries) for target in hidden)


# ── probe ─────────────────────────────────────────────────────────────────────────────────────


def test_a_machine_without_isolation_says_so_and_how_to_mend_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*words: object) -> None:
        raise OutageError("unshare: Operation not permitted")

    monkeypatch.setattr(run.Sandbox, "run", refuse)
    probe.cache_clear()
    try:
        found = probe()
    finally:
        probe.cache_clear()
    assert found.mode is None and found.languages == ()
    assert "bubblewrap" in found.detail and "Operation not permitted" in found.detail
    assert "shown only" in found.line()


@pytest.fixture
def forgotten() -> Iterator[None]:
    """What other tests found of this machine is tried again, and so is what this one finds."""
    probe.cache_clear()
    yield
    probe.cache_clear()


@pytest.mark.usefixtures("forgotten")
def test_a_trial_that_a_busy_machine_did_not_end_is_repeated_and_never_remembered(
    monkeypatch: pytest.MonkeyPatch, opd: Opd
) -> None:
    late, done = Outcome(exit_code=143, timed_out=True, killed_by="wall time"), Outcome(exit_code=0, stdout="done\n")
    said = [late, done, late, done]
    monkeypatch.setattr("shutil.which", lambda _: "/usr/bin/bwrap")
    monkeypatch.setattr(run.Sandbox, "run", lambda *_: said.pop(0))
    assert try_mode("namespaces").languages == LANGUAGES and not said
    monkeypatch.setattr(run.Sandbox, "run", lambda *_: late)
    with pytest.raises(OutageError, match="took too long"):
        probe()
    slow = OutageError("could not be set up", run.LATE)
    monkeypatch.setattr(run.Sandbox, "run", lambda *_: (_ for _ in ()).throw(slow))
    with pytest.raises(OutageError, match="took too long"):
        probe()
    status = opd("status", "--json")
    assert status.code == 1 and "took too long" in json.loads(status.out)["tools"], "the stack is told all the same"
    monkeypatch.setattr(run.Sandbox, "run", lambda *_: done)
    assert probe().languages == LANGUAGES


@pytest.mark.usefixtures("forgotten")
def test_a_mode_for_all_languages_is_taken_before_one_for_some(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {
        "bubblewrap": Isolation(mode="bubblewrap", languages=("bash",), detail="bubblewrap: python ValueError"),
        "namespaces": Isolation(mode="namespaces", languages=LANGUAGES),
    }
    monkeypatch.setattr(sys.modules["opd_evolver.sandbox.probe"], "try_mode", found.__getitem__)
    assert probe().mode == "namespaces"
    probe.cache_clear()
    found["namespaces"] = Isolation(mode=None, detail="no namespaces")
    box = available()
    assert box is not None and (box.mode, box.languages) == ("bubblewrap", ("bash",))
    assert probe().line().startswith("only bash in a sandbox (bubblewrap), others shown (bubblewrap: python ValueError")


@pytest.mark.usefixtures("forgotten")
def test_a_tool_in_a_language_that_is_not_isolated_is_shown_only(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = commands.tree
    monkeypatch.setattr(commands, "tree", lambda *, as_nobody: replace(whole(as_nobody=as_nobody), python=None))
    if available() is None:
        pytest.skip(f"no isolation on this machine: {probe().detail}")
    assert probe().languages == ("bash",)
    for language, code, said in (("python", "print(1)", tools.SHOWN_ONLY), ("bash", "echo 2", "2")):
        content = ToolContent(name="report", language=language, code=code)
        entry = Entry(entry_id="one", domain="toy", scope="zora", content=content, created_round=1)
        called = tools.call("run report", None, [entry], steps_left=1, sandbox=available)
        assert called.step.observation == said


def test_a_mode_that_leaks_is_not_taken(monkeypatch: pytest.MonkeyPatch, box: Sandbox) -> None:
    """With a folder of the host in its tree the trial run must notice."""
    whole = tree(as_nobody=True)
    open_tree = type(whole)((*whole.binds, ("/var", "/var")), whole.covers, whole.symlinks, whole.python, None)
    monkeypatch.setattr(commands, "tree", lambda *, as_nobody: open_tree)
    leaky = try_mode(box.mode)
    assert leaky.mode is None and "sees /var" in leaky.detail


def test_other_systems_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert try_mode("namespaces") == Isolation(mode=None, detail="isolation needs Linux on x86_64 or aarch64")


@settings(max_examples=5)
@given(st.sampled_from(sorted(seccomp.ARCHITECTURES)))
def test_the_filter_is_a_whole_program(machine: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("platform.machine", lambda: machine)
        code = seccomp.program()
    steps = [code[at : at + 8] for at in range(0, len(code), 8)]
    assert len(code) % 8 == 0 and len(steps) < 4096
    for at, step in enumerate(steps):
        kind, yes, no = int.from_bytes(step[:2], sys.byteorder), step[2], step[3]
        if kind & 7 == 5:
            assert at + 1 + max(yes, no) < len(steps)  # no jump leaves the program
    assert int.from_bytes(steps[-1][:2], sys.byteorder) == seccomp.RETURN
