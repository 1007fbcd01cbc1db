"""The step contract: keyed, idempotent, the same in process and as a child."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
from memory_cases import die, in_child

from opd_evolver import durable, step
from opd_evolver.durable import new_folder, write_bytes, write_text
from opd_evolver.errors import SetupError
from opd_evolver.params import Params, merge
from opd_evolver.records import canonical_json
from opd_evolver.steps import publish


def job(root: Path, **changes: object) -> step.Job:
    fields: dict[str, object] = {
        "step": "count",
        "lineage": "a",
        "round": 1,
        "root": str(root),
        "out": "steps/count",
        "params": Params().model_dump(mode="json"),
        "input_digests": {"memory": "m1"},
    }
    return step.Job.model_validate(fields | changes)


CALLS: list[str] = []


def counting(asked: step.Job, out: Path) -> step.StepResult:
    CALLS.append(asked.key())
    return step.result(asked, digests={"x": "1"})


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    CALLS.clear()
    monkeypatch.setitem(step.STEPS, "count", f"{__name__}:counting")


def test_a_finished_step_is_not_run_again_but_a_changed_key_is(tmp_path: Path) -> None:
    first = step.run(job(tmp_path))
    assert step.run(job(tmp_path)) == first
    assert len(CALLS) == 1
    step.run(job(tmp_path, input_digests={"memory": "m2"}))
    assert len(CALLS) == 2
    stray = tmp_path / "steps" / "count" / "left-over"
    stray.write_text("of other inputs")
    changed = merge(Params(), {"slow.steps": 3}, "test").model_dump(mode="json")
    step.run(job(tmp_path, params=changed))
    assert len(CALLS) == 3
    assert not stray.exists()


def test_where_and_how_wide_enters_no_key(tmp_path: Path) -> None:
    wide = merge(Params(rounds=9), {"flows.shards": 3, "flows.placement": "subprocess"}, "test")
    assert job(tmp_path, params=wide.model_dump(mode="json")).key() == job(tmp_path).key()
    assert job(tmp_path, round=2).key() != job(tmp_path).key()
    assert job(tmp_path, options={"wave": 1}).key() != job(tmp_path).key()


def test_a_torn_result_runs_again(tmp_path: Path) -> None:
    step.run(job(tmp_path))
    path = tmp_path / "steps" / "count" / "result.json"
    path.write_text(path.read_text()[:20])
    step.run(job(tmp_path))
    assert len(CALLS) == 2


def test_as_a_child_an_error_is_one_line_and_its_exit_code(tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    write_text(path, canonical_json(job(tmp_path, step="no_such_step")))
    child = subprocess.run(
        [sys.executable, "-m", "opd_evolver.step", str(path)], capture_output=True, text=True, check=False
    )
    assert child.returncode == 2
    assert json.loads(child.stderr)["error"] == "SetupError"
    assert "no_such_step" in child.stderr
    with pytest.raises(SetupError, match="unknown step"):
        step.run(job(tmp_path, step="no_such_step"))


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    """A full disk, made by a limit on file size in a child (root passes permission checks)."""
    path = tmp_path / "x.json"
    write_text(path, "old")
    script = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from opd_evolver.durable import write_bytes\n"
        "from opd_evolver.errors import SetupError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n    write_bytes(Path(sys.argv[1]), b'x' * 5000)\n"
        "except SetupError as error:\n    print(error)\n"
    )
    child = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert "no space left" in child.stdout
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "snapshot"
    with pytest.raises(RuntimeError), new_folder(target) as folder:
        (folder / "half").write_text("x")
        raise RuntimeError
    assert not target.exists()
    with new_folder(target) as folder:
        write_bytes(folder / "a", b"1")
    with new_folder(target) as folder:
        write_bytes(folder / "b", b"2")
    assert os.listdir(target) == ["b"]
    assert os.listdir(tmp_path) == ["snapshot"]


def test_a_folder_that_was_moved_away_when_its_rewriting_was_killed_comes_back(tmp_path: Path) -> None:
    target = tmp_path / "snapshot"
    with new_folder(target) as folder:
        write_bytes(folder / "a", b"1")

    def killed() -> None:
        moves = [die, os.replace]

        def move(old: Path, new: Path) -> None:
            moves.pop()(old, new)

        with new_folder(target) as folder:
            write_bytes(folder / "b", b"2")
            patch.object(durable.os, "replace", move).start()

    assert in_child(killed) < 0 and not target.exists()
    durable.recover(target)
    assert os.listdir(target) == ["a"] and os.listdir(tmp_path) == ["snapshot"]
    durable.recover(target)
    assert os.listdir(target) == ["a"]


def test_time_that_steps_spent_beside_each_other_counts_once() -> None:
    def step_(ended: float, seconds: float) -> dict[str, float]:
        return {"ended": ended, "seconds": seconds}

    one, beside, inside, later = step_(110, 10), step_(115, 10), step_(108, 2), step_(130, 5)
    assert publish.spanned([]) == 0
    assert publish.spanned([later, beside, one, inside]) == 15 + 5
    # Results of before, which did not say when they ended.
    assert publish.spanned([{"seconds": 4.0}, {"seconds": 3.0}, one]) == 17
