"""Importing trajectories: the format, rejects with reasons, and the way into the next round."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import finished_run
import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory_cases import die, in_child

from opd_evolver import cli, lineage, step
from opd_evolver.memory import edits, importer
from opd_evolver.memory.snapshot import read_entries
from opd_evolver.memory.store import Memory
from opd_evolver.params import Params, merge
from opd_evolver.records import MemoryOperation, Proposal, TipContent, TrajectoryContent
from opd_evolver.settings import load_settings
from opd_evolver.steps import plan

PROJECT = Path(__file__).parents[1]
TRAJECTORY = {
    "domain": "sql",
    "scope": "zora",
    "task": "zora count late",
    "return": 1.0,
    "source": "run-17",
    "steps": [{"action": "select 1", "result": "ok 12", "reward": 1.0}],
    "learnings": ["late is 4"],
}
CHAT = {
    "domain": "sql",
    "scope": "zora",
    "task": "t",
    "return": 0.5,
    "messages": [
        {"role": "system", "content": "be good"},
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": "first"},
        {"role": "tool", "content": "seen"},
        {"role": "assistant", "content": "second"},
    ],
}
TIP = {"level": "tip", "domain": "sql", "scope": "zora", "content": {"trigger": "late", "text": "4"}}


def written(path: Path, *lines: object) -> Path:
    path.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in lines))
    return path


def test_a_trajectory_keeps_its_steps_and_outcome(tmp_path: Path) -> None:
    [proposal] = importer.read(written(tmp_path / "f", TRAJECTORY)).proposals
    content = proposal.content
    assert isinstance(content, TrajectoryContent)
    assert (content.outcome, content.episode_return, content.learnings) == ("success", 1.0, ("late is 4",))
    assert (content.steps[0].action, content.steps[0].result) == ("select 1", "ok 12")
    assert proposal.source_episodes == ("import:run-17",)


def test_a_chat_becomes_steps_with_what_was_seen_and_what_came_back(tmp_path: Path) -> None:
    [proposal] = importer.read(written(tmp_path / "f", CHAT)).proposals
    assert isinstance(proposal.content, TrajectoryContent)
    assert [(s.observation, s.action, s.result) for s in proposal.content.steps] == [
        ("go", "first", "seen"),
        ("seen", "second", ""),
    ]
    assert proposal.content.outcome == "partial"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "Expecting property name"),
        ("[1]", "object"),
        ({**TRAJECTORY, "return": 2}, "return"),
        ({**TRAJECTORY, "retrun": 1}, "retrun"),
        ({key: value for key, value in TRAJECTORY.items() if key != "scope"}, "scope"),
        ({**TRAJECTORY, "steps": []}, "steps"),
        ({**TRAJECTORY, "steps": [{"action": ""}]}, "steps.0.action"),
        ({**TRAJECTORY, "steps": [{"action": "a"}] * 65}, "steps has 65 items, at most 64"),
        ({**CHAT, "messages": [{"role": "assistant", "content": "a"}] * 66}, "steps has 66 items, at most 64"),
        ({**TRAJECTORY, "level": "dream"}, "level"),
        ({**TIP, "content": {"trigger": "late"}}, "content.tip.text: Field required"),
        ({**TIP, "content": {"trigger": "late", "text": 4}}, "content.tip.text: Input should be a valid string"),
        ({**TIP, "level": "tool", "content": {"name": "n", "code": "a"}}, "content.tool.language: Field required"),
        ({**TIP, "level": "skill"}, "content.skill.description: Field required"),
        ({**TIP, "domain": "sql\u202e"}, "control characters: domain holds U+202E"),
        ({**TIP, "scope": "zora\x00"}, "control characters: scope holds U+0000"),
        ({**TIP, "scope": "zora\nask for"}, "control characters: scope holds U+000A"),
        ({**TIP, "scope": "x" * 900_000}, "too long: scope has 900000 characters, at most 200"),
        ({**TRAJECTORY, "source": "run\x1b[2J"}, "control characters: source holds U+001B"),
        ({**TRAJECTORY, "source": "x" * 201}, "too long: source has 201 characters"),
        ('{"a":' * 100_000, ""),
        ('{"task": "' + "x" * 1_000_001, "longer than"),
    ],
)
def test_a_wrong_line_is_listed_and_the_others_are_taken(tmp_path: Path, line: object, reason: str) -> None:
    found = importer.read(written(tmp_path / "f", TIP, line, "", TRAJECTORY))
    assert len(found.proposals) == 2
    [rejected] = found.rejected
    assert rejected.line == 2 and reason.lower() in rejected.reason.lower() and rejected.reason


def test_every_import_is_known_as_one_and_equal_content_as_the_same(tmp_path: Path) -> None:
    other = {**TIP, "content": {"trigger": "late", "text": "5"}}
    found = importer.read(written(tmp_path / "f", TIP, TIP, other))
    sources = [source for one in found.proposals for source in one.source_episodes]
    assert len(set(sources)) == 2 == len(sources) and found.repeated == 1
    assert all(source.startswith(importer.IMPORTED) for source in sources)


def test_defaults_serve_lines_that_name_none(tmp_path: Path) -> None:
    bare = {key: value for key, value in TIP.items() if key not in ("domain", "scope")}
    found = importer.read(written(tmp_path / "f", bare, TIP, TIP), domain="apps", scope="malo")
    assert [(one.domain, one.scope) for one in found.proposals] == [("apps", "malo"), ("sql", "zora")]
    assert found.repeated == 1


@given(st.lists(st.one_of(st.binary(max_size=40), st.text(max_size=40).map(str.encode)), max_size=8))
def test_no_bytes_break_the_reader(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]) -> None:
    path = tmp_path_factory.mktemp("any") / "f"
    path.write_bytes(b"\n".join([*lines, json.dumps(TIP).encode()]) + b"\n")
    assert importer.read(path).proposals[-1].scope == "zora"


# ── the way into a round ──────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("project")
    finished_run.build(root, finished_run.policy_folder(root))
    return root


@pytest.fixture(autouse=True)
def here(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(project)
    load_settings.cache_clear()
    yield
    for path in (project / "runs" / finished_run.NAME / "edits").glob("*"):
        path.unlink()


def run_(project: Path) -> lineage.Run:
    return lineage.open_run(project, finished_run.NAME)


def test_import_waits_for_the_next_round_and_enters_it_once(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path / "f.jsonl", TIP, TRAJECTORY, "{")
    before = plan.begin_job(run_(project), 2).key()
    told = []
    for _ in range(2):
        assert cli.main(["memory", "import", str(file), "--name", finished_run.NAME, "--json"]) == 0
        told.append(json.loads(capsys.readouterr().out))
    assert told[0]["round"] == 2 and told[0]["accepted"] == 2 and told[0]["rejected"][0]["line"] == 3
    job = plan.begin_job(run_(project), 2)
    assert job.key() != before, "an edit is an input of the round"
    with finished_run.scripted():
        done = step.run(job)
    assert done.metrics["n_added"] == 2, "the second import of the file was no other edit"
    with Memory.open(job.path("live"), run_(project).params.memory, read_only=True) as memory:
        brought = [entry for entry in memory.entries() if entry.created_round == 2]
        assert {entry.level for entry in brought} == {"tip", "trajectory"}
        old = read_entries(run_(project).paths.version(1) / "memory")
        assert len(memory.entries(live_only=False)) == len(old) + 2, "the finished round's snapshot is as it was"
    assert plan.next_unbegun(run_(project)) == 3
    import shutil

    shutil.rmtree(job.path("live"))


def test_what_is_imported_while_the_round_begins_enters_it(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The memory is being restored when the user asks: the answer names this round, so it must be in it."""
    job = plan.begin_job(run_(project), 2)
    file = written(tmp_path / "f.jsonl", TIP)
    assert cli.main(["memory", "import", str(file), "--name", finished_run.NAME, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["round"] == 2 and "edits" not in job.inputs
    with finished_run.scripted():
        assert step.run(job).metrics["n_added"] == 1
        assert step.run(plan.begin_job(run_(project), 2)).metrics["n_added"] == 0, "a resumed round has it once"
    import shutil

    shutil.rmtree(job.path("live"))


def test_dry_run_changes_nothing(project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path / "f.jsonl", TIP)
    assert cli.main(["memory", "import", str(file), "--dry-run", "--name", finished_run.NAME]) == 0
    assert "nothing was changed" in capsys.readouterr().out
    assert not (run_(project).paths.run / "edits").exists() or not list((run_(project).paths.run / "edits").iterdir())


def test_what_the_run_could_never_use_is_rejected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    skill = {"level": "skill", "domain": "sql", "scope": "zora", "content": {"description": "close", "steps": ["a"]}}
    file = str(written(tmp_path / "f.jsonl", TIP, {**TIP, "domain": "sqll"}, {**TIP, "domain": "shell"}, skill))
    monkeypatch.chdir(tmp_path)
    lineage.open_or_create(tmp_path, "narrow", merge(Params(), {"memory.levels": ["tip", "trajectory"]}, "test"))
    for dry_run in ("--dry-run",), ():
        assert cli.main(["memory", "import", file, *dry_run, "--name", "narrow", "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        reasons = {one["line"]: one["reason"] for one in told["rejected"]}
        assert told["by_level"] == {"tip": 1} and reasons.keys() == {2, 3, 4}
        assert reasons[2] == "domain: sqll is not in environments.domains: did you mean `sql`?"
        assert reasons[3].startswith("domain: shell is not in environments.domains")
        assert reasons[4] == "level: skill is off"


def test_the_parameters_of_the_project_serve_a_run_that_is_not_there_yet(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = str(written(tmp_path / "f.jsonl", TIP, {**TIP, "domain": "sqll"}))
    monkeypatch.setenv("OPD_ARTIFACT_ROOT", str(project))
    monkeypatch.chdir(tmp_path)
    load_settings.cache_clear()
    arguments = ["memory", "import", file, "--dry-run", "--name", "new", "--json"]
    assert cli.main(arguments) == 0 and json.loads(capsys.readouterr().out)["accepted"] == 2
    (tmp_path / "params.yaml").write_text((PROJECT / "params.yaml").read_text())
    assert cli.main(arguments) == 0 and json.loads(capsys.readouterr().out)["accepted"] == 1
    assert not (project / "runs" / "new").exists()


def test_nothing_readable_is_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["memory", "import", str(written(tmp_path / "f", "{")), "--name", finished_run.NAME]) == 2
    assert "line 1: rejected" in capsys.readouterr().out
    assert cli.main(["memory", "import", str(tmp_path / "absent"), "--name", finished_run.NAME]) == 2
    assert "cannot read" in capsys.readouterr().err


# ── edits ─────────────────────────────────────────────────────────────────────────────────────


def proposal(key: str) -> Proposal:
    return Proposal(domain="sql", scope="zora", content=TipContent(trigger=key, text="4"))


def test_edits_killed_after_their_commit_are_not_applied_again(tmp_path: Path) -> None:
    waiting = [edits.Edit(kind="import", proposals=(proposal("a"), proposal("b")))]

    def killed() -> None:
        with Memory.open(tmp_path) as memory:
            edits.apply(memory, waiting, 1, "run")
            die()

    assert in_child(killed) < 0
    with Memory.open(tmp_path) as memory:
        n = len(memory.ledger.segment_keys())
        assert edits.apply(memory, waiting, 1, "run") == 0
        assert len(memory.ledger.segment_keys()) == n == 1
        assert len(memory.entries()) == 2
        assert edits.apply(memory, [edits.Edit(kind="import", proposals=(proposal("c"),))], 1, "run") == 1


def test_edits_come_before_the_first_wave_of_their_round(tmp_path: Path) -> None:
    from memory_cases import wave

    with Memory.open(tmp_path) as memory:
        edits.apply(memory, [edits.Edit(kind="import", proposals=(proposal("a"),))], 1, "run")
        memory.commit(wave(0))
        [added] = [entry for entry in memory.entries() if getattr(entry.content, "trigger", "") == "a"]
        retire = MemoryOperation(operation_id="o", kind="delete", round=2, retired=(added.entry_id,))
        edits.apply(memory, [edits.Edit(kind="retire", operations=(retire,))], 2, "run")
        memory.commit(wave(0, round=2))
        assert memory.get([added.entry_id])[0].status == "retired"
        assert memory.ledger.rows(1) and memory.ledger.rows(2)


def test_a_torn_last_line_was_never_acknowledged(tmp_path: Path) -> None:
    path = edits.file_of(tmp_path, 2)
    edits.add(path, edits.Edit(kind="import", proposals=(proposal("a"),)))
    whole = edits.digest(path)
    with path.open("a") as file:
        file.write('{"kind": "impo')
    assert edits.digest(path) == whole
    assert edits.add(path, edits.Edit(kind="import", proposals=(proposal("b"),)))
    assert len(edits.read(path)) == 2
