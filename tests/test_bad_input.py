"""Bad input: one clear line with its mend, the documented exit code, no traceback, finished rounds intact."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Opd, Said
from finished_run import params_of
from one_line import contents, one_line

from flows.__main__ import main as flows
from flows.coevolve import coevolve
from opd_evolver import lineage
from opd_evolver.errors import SetupError
from opd_evolver.memory.segment import encode_lines, split_lines
from opd_evolver.memory.store import Memory
from opd_evolver.memory.stores import INDEX_FILE
from opd_evolver.params import MemoryParams

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


def test_a_run_goes_on_with_no_other_base_policy(project: Path, opd: Opd, capsys: pytest.CaptureFixture[str]) -> None:
    """Trained anew in its place; rounds that are added and a finished run that is asked for again are refused alike."""
    told, own = project / "runs/done/base.json", project.parent / "base"
    tree = json.loads(told.read_text())
    shutil.copytree(tree["policy"], own)
    told.write_text(json.dumps({**tree, "policy": str(own)}))
    weights = own / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    before = contents(project)
    words = (f"the base policy in {own} is another one than `done` began with", "restore it", "--name")
    for more in ([], ["--set", "rounds=2"]):
        one_line(opd("run", "--local", "--name", "done", *more), *words)
    code = flows(["coevolve", "--name", "done"])
    said = capsys.readouterr()
    one_line(Said(code, said.out, said.err), *words)
    with pytest.raises(SetupError, match="is another one than `done` began with"):
        coevolve.fn("done", overrides={"rounds": 2})
    assert contents(project) == before
    longer = lineage.open_run(project, "done").params.model_copy(update={"rounds": 2})
    lineage.open_or_create(project, "done", longer)
    one_line(opd("resume", "done", "--local"), *words)
    weights.write_bytes(whole)
    assert opd("resume", "done", "--local").code == 1, "the stand-in for the flow plays no round"


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


def test_params_of_the_fixture_are_the_ones_on_disk(project: Path) -> None:
    assert lineage.open_run(project, "done").params == params_of(Path(params_of_project(project)))
