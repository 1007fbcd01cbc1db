"""`shell`: real commands that stay in their folder, a check that wants exactly the change asked for, no traces."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from opd_evolver.environments import shell_commands
from opd_evolver.environments.playing import play
from opd_evolver.environments.shell import FOLDERS, OPS, Shell, log_of
from opd_evolver.environments.shell_tree import Node, Tree, folder
from opd_evolver.environments.tasks import moves_of, subs_of, word_of
from opd_evolver.errors import OutageError, SetupError
from opd_evolver.records import LEVELS, Task
from tests.task_worlds import wrong_value

OUTSIDE = Path(__file__).resolve()


def asking(environment: Shell, operation: str) -> Task:
    """A task with one sub-question, about this operation."""
    return next(t for t in environment.tasks("deploy-train", 200) if [s.arg for s in subs_of(t)] == [operation])


def root_of(environment: Shell) -> Path:
    assert environment._tree is not None
    return environment._tree.root


def nodes_of(environment: Shell) -> dict[str, Node]:
    assert environment._tree is not None
    return environment._tree.nodes()


@pytest.mark.parametrize("operation", OPS)
def test_every_folder_has_a_log_and_only_the_live_one_is_right(operation: str) -> None:
    environment = Shell()
    task = asking(environment, operation)
    (sub,) = subs_of(task)
    live = task.gold["facts"][sub.key]
    for name in FOLDERS:
        environment.reset(task)
        before = nodes_of(environment)
        step = environment.step(environment.action(sub, name))
        assert step.observation.split()[0] == ("ok" if name == live else "no")
        assert step.info["success"] == (name == live)
        assert (nodes_of(environment) != before) == (name == live and operation in ("keep", "hide"))
    environment.close()


def test_the_answers_of_the_folders_differ() -> None:
    found = log_of("zora", 0, "web")
    assert set(found) == set(FOLDERS)
    for place in (0, 1):
        assert len({pair[place] for pair in found.values()}) == len(FOLDERS)


def test_other_commands_with_the_same_effect_are_right_and_more_is_wrong() -> None:
    environment = Shell()
    task = asking(environment, "keep")
    (sub,) = subs_of(task)
    live, log = task.gold["facts"][sub.key], f"{sub.key}.log"

    def says(*actions: str) -> list[str]:
        environment.reset(task)
        return [environment.step(action).observation.split()[0] for action in actions]

    assert says(f"cp {live}/{log} bak/{log}") == ["ok"]
    assert says(f"mv {live}/{log} bak", f"cp {live}/{log} bak") == ["no", "ok"]
    assert says(f"cp {live}/{log} bak/copy", f"rm {live}/{log}") == ["no", "no"]
    counted = asking(environment, "faults")
    (sub,) = subs_of(counted)
    environment.reset(counted)
    path = f"{counted.gold['facts'][sub.key]}/{sub.key}.log"
    assert not environment.step(f"wc -l {path}").info["success"]
    assert environment.step(f"grep -c fault {path}").info["success"]
    environment.close()


REFUSED = [
    f"cat {OUTSIDE}",
    f"cp {OUTSIDE} bak",
    "cat ../outside",
    "cat alpha/../../outside",
    "cp bak/.. alpha",
    "rm -r alpha",
    "rm -rf /",
    "cp -r alpha bak",
    "ln -s / bak/root",
    "chmod 777 .",
    "chmod +x certs",
    "sh -c id",
    "bash",
    "find . -delete",
    "tail -f certs",
    "head -n 99999999999 certs",
    "grep -r fault .",
    "grep -f certs docs",
    "sort -o certs docs",
    "ls | cat",
    "cat certs > docs",
    "cat certs ; rm docs",
    "cat $( ls )",
    "cat `ls`",
    "cat ~",
    "cat *",
    "cat 'certs'",
    "cp certs",
    "/bin/cat certs",
    "cat " + "certs " * 20,
    "cat " + "x" * 100,
    "cat certs\x00docs",
    "cat \ud800",
    "",
]


@pytest.mark.parametrize("action", REFUSED)
def test_what_is_not_on_the_list_never_runs(action: str, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = Shell(levels=LEVELS)
    task = environment.tasks("deploy-test", 1)[0]
    environment.reset(task)
    before = nodes_of(environment)
    monkeypatch.setattr(shell_commands, "run", lambda *_: pytest.fail("it ran"))
    step = environment.step(action)
    monkeypatch.undo()
    assert step.observation.startswith("error ") and step.reward == 0.0
    assert nodes_of(environment) == before
    while not step.terminated:
        step = environment.step(environment.oracle(task))
    assert step.info["success"]
    environment.close()


TRACES = "rm certs", "mv alpha d2", "mkdir new", "touch alpha/x", "chmod 000 docs", "mv certs conf", "cp certs bak/x"


@pytest.mark.parametrize("action", [*TRACES, "ls -R", "cat alpha"])
def test_a_refused_action_leaves_no_trace(action: str) -> None:
    environment = Shell(levels=LEVELS)
    environment.reset(environment.tasks("deploy-test", 1)[0])
    before = nodes_of(environment)
    assert environment.step(action).reward == 0.0
    assert nodes_of(environment) == before
    environment.close()


def test_a_link_in_the_folder_is_not_followed_out(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "out").symlink_to(tmp_path)
    with pytest.raises(shell_commands.Refused, match="not a path"):
        shell_commands.parse("cat out/secret", (tmp_path / "tree").resolve())


def test_spaced_and_plain_paths_are_the_same(tmp_path: Path) -> None:
    for action in ("tail -n 1 gamma / web . log", "tail  -n 1  gamma/web.log"):
        assert shell_commands.parse(action, tmp_path.resolve()) == ("tail", "-n", "1", "gamma/web.log")


def test_limits_bind_and_nothing_of_our_environment_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPD_SECRET", "canary")
    cut = shell_commands.run(("cp", "/dev/zero", "big"), tmp_path)
    assert cut.code != 0 and (tmp_path / "big").stat().st_size <= 256 * 1024
    assert "canary" not in shell_commands.run(("cat", "/proc/self/environ"), tmp_path).stdout
    assert "Max open files            32" in shell_commands.run(("cat", "/proc/self/limits"), tmp_path).stdout


def test_a_command_without_end_or_limits_is_an_outage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shell_commands, "WALL_S", 0.2)
    (tmp_path / "x").touch()
    began = time.monotonic()
    with pytest.raises(OutageError, match=r"an end within 0\.2 s"):
        shell_commands.run(("tail", "-f", "x"), tmp_path)
    assert time.monotonic() - began < 5
    monkeypatch.setattr(shell_commands, "CONFINE", "ulimit -n nonsense || exit 125")
    with pytest.raises(OutageError, match="limits of cat"):
        shell_commands.run(("cat", "x"), tmp_path)


def test_a_missing_command_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shell_commands, "PROGRAMS", str(tmp_path))
    shell_commands.program.cache_clear()
    with pytest.raises(SetupError, match="install coreutils"):
        shell_commands.program("cat")
    shell_commands.program.cache_clear()


def test_a_folder_that_vanishes_is_an_outage_and_the_episode_can_be_played_again() -> None:
    plain = Shell(levels=LEVELS)
    task = next(t for t in plain.tasks("deploy-test", 60) if len(moves_of(t)) > 3)
    expected = play(plain, task, lambda _: plain.oracle(task))
    lost = Shell(levels=LEVELS)
    actions = [plain.action(move, word_of(task, move)) for move in moves_of(task)]

    def choose(steps: list[object]) -> str:
        if len(steps) == 2:
            shutil.rmtree(root_of(lost))
        return actions[len(steps)]

    with pytest.raises(OutageError, match="could not be run"):
        play(lost, task, choose)
    with pytest.raises(OutageError, match="TMPDIR"):
        lost.reset(task)
    assert play(lost, task, lambda steps: actions[len(steps)]).observations == expected.observations
    plain.close()
    lost.close()


def test_the_folder_is_removed_by_close_and_with_its_owner() -> None:
    environment = Shell()
    task = environment.tasks("deploy-test", 1)[0]
    environment.reset(task)
    first = root_of(environment)
    assert first.is_dir()
    environment.close()
    assert not first.exists()
    with pytest.raises(SetupError, match="step before reset"):
        environment.step("ls")
    environment.reset(task)
    second = root_of(environment)
    del environment
    assert not second.exists()


def test_a_tree_is_put_back_whatever_was_done_to_it() -> None:
    tree = Tree()
    wanted = {"a": folder(), "a/x": Node(b"1"), "b": folder(), "c": Node(b"2", 0o600)}
    tree.restore(wanted)
    assert tree.nodes() == wanted
    (tree.root / "a" / "x").unlink()
    (tree.root / "a" / "x").mkdir()
    (tree.root / "a" / "x" / "deep").write_text("?")
    (tree.root / "b").rmdir()
    (tree.root / "b").write_text("no folder")
    (tree.root / "c").chmod(0)
    tree.restore(wanted)
    assert tree.nodes() == wanted
    tree.close()


def test_a_wrong_first_attempt_of_a_change_does_not_spoil_the_second() -> None:
    environment = Shell()
    for operation in ("keep", "hide"):
        task = asking(environment, operation)
        (sub,) = subs_of(task)
        environment.reset(task)
        assert not environment.step(environment.action(sub, wrong_value(environment, task, 0))).info["success"]
        assert environment.step(environment.oracle(task)).info["success"]
    environment.close()
