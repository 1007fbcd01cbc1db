"""`check_env` passes what keeps the protocol, finds each breach, and takes a package from outside."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from opd_evolver import cli
from opd_evolver.environments import extras, registry
from opd_evolver.environments.check import CheckReport, check_env
from opd_evolver.environments.domain import TIPS_ONLY
from opd_evolver.environments.sql import Sql
from opd_evolver.records import Split, Step, Task
from tests.plain_worlds import Answering, Patient, Plain, Unlabelled

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "outside_environment"


@pytest.mark.parametrize("name", ["sql", "apps"])
def test_built_in_domains_pass_and_keep_the_floor(name: str) -> None:
    report = check_env(name, levels=TIPS_ONLY)
    assert report.passed
    assert report.problems == ()
    assert report.below_floor == ()
    assert report.splits["deploy-test"].families == 12
    assert report.splits["deploy-test"].tasks >= 100
    assert report.splits["deploy-test"].new_texts >= 0.9
    assert report.expert == 1.0
    assert (report.facts, report.facts_per_family, report.values_per_fact) == (72, 6, 10)
    assert report.two_fact_share == pytest.approx(0.4)
    assert report.chance is not None
    assert report.chance < 0.25
    assert report.exploration is not None
    assert report.exploration < 0.25
    assert report.longest_episode <= 4
    assert CheckReport.model_validate_json(report.model_dump_json()) == report
    for part in ("passed", "deploy-test", "chance", "expert 1.00", "ms a step"):
        assert part in report.text()


def test_the_report_is_the_same_each_time() -> None:
    ours = [check_env("apps", 30).model_copy(update={"ms_per_step": 0.0}) for _ in range(2)]
    assert ours[0] == ours[1]


def test_the_command_checks_the_worlds_that_are_deployed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # no params.yaml: the defaults
    assert cli.main(["check-env", "sql", "--tasks", "24", "--json"]) == 0
    [plain] = json.loads(capsys.readouterr().out)
    assert plain["homes"] == {"skill": 3, "tip": 3, "tool": 3, "trajectory": 3}
    assert not any(split["headroom"] for split in plain["splits"].values())
    words = ["check-env", "sql", "--tasks", "24", "--preset", "laptop", "--set", "environments.levels=[tip]"]
    assert cli.main([*words, "--json"]) == 0
    [full] = json.loads(capsys.readouterr().out)
    assert full["homes"] == {} and full["passed"] and full["expert"] == 1.0
    for split in ("deploy-train", "deploy-val", "deploy-test"):
        assert {"misleading", "drift", "wording"} <= full["splits"][split]["headroom"].keys()
    assert not full["splits"]["novel-test"]["headroom"]
    shown = full["splits"]["deploy-test"]["headroom"]["misleading"]
    assert cli.main(words) == 0
    assert f"misleading {shown:.2f}" in capsys.readouterr().out


class Shared(Sql):
    """Deployed families come again as novel ones."""

    domain = "broken"

    def tasks(self, split: Split, n: int, seed: int = 0) -> tuple[Task, ...]:
        found = super().tasks("deploy-test" if split == "novel-test" else split, n, seed)
        return tuple(task.model_copy(update={"domain": "broken", "split": split}) for task in found)


class Renamed(Sql):
    domain = "broken"

    def tasks(self, split: Split, n: int, seed: int = 0) -> tuple[Task, ...]:
        return tuple(task.model_copy(update={"domain": "broken"}) for task in super().tasks(split, n, seed))


class Telling(Renamed):
    """Shows its gold and the family."""

    def step(self, action: str) -> Step:
        step = super().step(action)
        assert self._task is not None
        return step.model_copy(update={"observation": f"{step.observation} {self._task.gold}"})


class Restless(Renamed):
    count = 0

    def reset(self, task: Task) -> str:
        Restless.count += 1
        super().reset(task)
        return str(Restless.count)


class Unsuccessful(Renamed):
    def step(self, action: str) -> Step:
        return super().step(action).model_copy(update={"info": {"progress": 0.0}, "reward": 3.0})


class NoPrefix(Renamed):
    def tasks(self, split: Split, n: int, seed: int = 0) -> tuple[Task, ...]:
        return tuple(reversed(super().tasks(split, n, seed)))


class Repeated(Renamed):
    """Asks in validation what was asked in training."""

    def tasks(self, split: Split, n: int, seed: int = 0) -> tuple[Task, ...]:
        found = super().tasks(split, n, seed)
        asked = super().tasks("deploy-train", n, seed) if split == "deploy-val" else found
        return tuple(
            task.model_copy(update={"scope": other.scope, "text": other.text, "gold": other.gold})
            for task, other in zip(found, asked, strict=True)
        )


class ValueInText(Renamed):
    def tasks(self, split: Split, n: int, seed: int = 0) -> Sequence[Task]:  # type: ignore[override]
        return [
            task.model_copy(update={"text": f"{task.text} {self.needed(task)[0].value}"})
            for task in super().tasks(split, n, seed)
        ]


class Named(Renamed):
    """Has the family in its texts, as a word."""

    def tasks(self, split: Split, n: int, seed: int = 0) -> tuple[Task, ...]:
        return tuple(
            task.model_copy(update={"text": f"{task.text} ({task.family})"}) for task in super().tasks(split, n, seed)
        )


class Endless(Renamed):
    def step(self, action: str) -> Step:
        return super().step(action).model_copy(update={"terminated": False})


class Raising(Renamed):
    def step(self, action: str) -> Step:
        raise ValueError("no such action")


class Gymnasium(Renamed):
    def reset(self, task: Task) -> str:
        return super().reset(task), {}  # type: ignore[return-value]


@pytest.mark.parametrize("world", [Plain, Unlabelled, Patient])
def test_a_world_without_families_passes_whatever_its_label(
    monkeypatch: pytest.MonkeyPatch, world: type[Plain]
) -> None:
    monkeypatch.setitem(registry.BUILT_IN, "broken", f"{world.__module__}:{world.__name__}")
    report = check_env("broken", 24)
    assert report.problems == () and report.expert == 1.0 and not report.has_families


@pytest.mark.parametrize(
    ("world", "problem"),
    [
        (Shared, "is in deploy-train and in novel-test"),
        (Shared, "is listed twice"),
        (Telling, "shows gold or family"),
        (Restless, "not deterministic"),
        (Unsuccessful, r'info\["success"\] is missing'),
        (Unsuccessful, r"outside \[0, 1\]"),
        (NoPrefix, "are no prefix"),
        (Repeated, r"^24 tasks of deploy-val are in deploy-train too: '\w+ "),
        (ValueInText, "tells a hidden value"),
        (Named, "the family label stands in the text"),
        (Endless, "no end within 50 steps"),
        (Answering, "tells a hidden value"),
        (Raising, "an episode raised ValueError: no such action"),
        (Gymnasium, "an episode raised TypeError: reset returned a tuple, no str"),
    ],
)
def test_each_breach_is_found(monkeypatch: pytest.MonkeyPatch, world: type[Sql | Plain], problem: str) -> None:
    monkeypatch.setitem(registry.BUILT_IN, "broken", f"{world.__module__}:{world.__name__}")
    report = check_env("broken", 24)
    assert not report.passed
    assert any(re.search(problem, found) for found in report.problems), report.problems
    assert "FAILED" in report.text()


def test_an_outside_package_adds_an_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an installer would leave behind: the module on the path and a dist-info with the entry point."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    assert len((EXAMPLE / "keydoor.py").read_text().splitlines()) < 50
    info = tmp_path / f"{project['name']}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = [f"[{registry.GROUP}]"]
    lines += [f"{name} = {where}" for name, where in project["entry-points"][registry.GROUP].items()]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(EXAMPLE))
    assert "keydoor" in registry.names()
    report = check_env("keydoor", 120)
    assert report.problems == ()
    assert report.expert == 1.0
    assert report.facts == 48
    assert report.chance is None
    assert {report.splits[split].new_texts for split in ("deploy-val", "deploy-test")} == {1.0}
    # A one-door world is honest but too easy, and the report says so.
    assert any("two-fact" in finding for finding in report.below_floor)


def test_the_documented_example_is_the_shipped_one() -> None:
    text = (ROOT / "docs" / "environments.md").read_text()
    assert (EXAMPLE / "keydoor.py").read_text() in text
    assert '[project.entry-points."opd_evolver.environments"]\nkeydoor = "keydoor:KeyDoor"' in text


def test_all_environments_in_one_table_and_missing_engines_by_name(
    monkeypatch: pytest.MonkeyPatch, opd: Callable[..., Any]
) -> None:
    monkeypatch.setitem(extras.EXTRAS, "grid", ("no_such_module",))
    monkeypatch.setattr(registry, "names", lambda: ("apps", "grid", "sql"))
    said = opd("check-env", "--all", "--tasks", "12")
    assert said.code == 0
    lines = said.out.splitlines()[-4:]
    assert lines[0].split() == ["environment", "families", "facts", "chance", "expert", "exploring", "ms", "a", "step"]
    assert [lines[1].split()[0], lines[2].split()[0]] == ["apps", "sql"]
    assert lines[1].split()[1:3] == ["12", "72"] and lines[1].split()[4] == "1.00"
    assert lines[3].split(maxsplit=1) == ["grid", "not installed: pip install 'opd-evolver[grid]'"]
    found = json.loads(opd("check-env", "--all", "--tasks", "12", "--json").out)
    assert [one["name"] for one in found] == ["apps", "sql", "grid"]
    assert found[2] == {"name": "grid", "not_installed": "pip install 'opd-evolver[grid]'"}
    named = opd("check-env", "grid")
    assert named.code == 2 and "pip install 'opd-evolver[grid]'" in named.err


def test_contradictory_or_empty_requests_are_refused(opd: Callable[..., Any]) -> None:
    said = opd("check-env", "sql", "--all")
    assert said.code == 2 and said.err.startswith("error: --all and the name sql; expected one of the two; mend: ")
    for n in ("0", "-3"):
        said = opd("check-env", "sql", "--tasks", n)
        assert said.code == 2 and said.err.startswith(f"error: --tasks {n}; expected at least 1")
