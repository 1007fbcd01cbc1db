"""Ablations: what an arm changes, how it is judged, and two arms for real."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import driver
import pytest
from conftest import Opd
from finished_run import stand_in_flow

from opd_evolver import lineage
from opd_evolver.benchmark import arms, arms_kept, kept
from opd_evolver.errors import SchemaError, SetupError
from opd_evolver.memory.attribution import attribute
from opd_evolver.params import AttributionParams, load_preset, merge
from opd_evolver.records import LedgerRow
from opd_evolver.steps import prepare
from opd_evolver.steps.adopt import adopt
from tests.arm_runs import seed
from tests.attribution_cases import entry, row

pytestmark = pytest.mark.timeout(900)


def test_every_arm_changes_what_it_says_and_the_whole_changes_nothing() -> None:
    whole = load_preset("laptop")
    changed = {name: merge(whole, arm.overrides, name).digest() for name, arm in arms.ARMS.items()}
    assert changed[arms.WHOLE] == whole.digest()
    assert len(set(changed.values())) == len(arms.ARMS)


def test_where_entries_count_alike_outcomes_say_nothing() -> None:
    def value(shown: float, withheld: float) -> float | None:
        rows: list[LedgerRow] = [
            row("a", "g", shown, "m", "m", propensities={"m": 0.5}),
            row("b", "g", withheld, "m", "m", injected=(), withheld=("m",), propensities={"m": 0.5}),
        ]
        found = attribute(rows, [entry("m")], AttributionParams(variant="uniform"))["m"]
        assert (found.n_selected, found.low, found.high) == (1, None, None)
        return found.value

    assert value(1.0, 0.0) == value(0.0, 1.0) == pytest.approx(0.8 * (1 - 0.5**0.5))
    never = [row("b", "g", 1.0, "m", "m", injected=(), withheld=("m",), propensities={"m": 0.5})]
    assert attribute(never, [entry("m")], AttributionParams(variant="uniform"))["m"].value is None


def test_an_arm_is_judged_by_intervals_and_a_level_by_its_own_families() -> None:
    whole = [seed(n, {"last_alone": 6, "last_memory": 9}) for n in range(2)]
    poor = [seed(n, {"last_alone": 3, "last_memory": 9}) for n in range(2)]
    found = arms.compare(whole, poor, "no-anchor", samples=200)
    assert found.alone.mean == pytest.approx(0.3) and found.with_memory.mean == 0.0 and found.own is None
    assert found.verdict == "earns its place alone"
    assert arms.compare(poor, whole, "no-anchor", samples=200).verdict == "costs alone"
    assert arms.compare(whole, whole, "sft", samples=200).verdict == "no difference seen"
    blunt = [seed(n, {"last_alone": 6, "last_memory": 5}) for n in range(2)]
    level = arms.compare(whole, blunt, "no-tool", samples=200)
    assert level.own is not None and level.own.mean == pytest.approx(0.4)
    assert level.verdict == (
        "earns its place with memory; its own family types fall by 0.10 without it at the lower bound"
    )
    text = arms.page([arms.compare(whole, whole, "whole", samples=50), level], command="c", runs=whole)
    assert "Seeds 0, 1. Success" in text and "\n- seed 0, 1: date d\n" in text
    other = [whole[0], whole[1].model_copy(update={"measured": {}})]
    assert "- seed 0: date d\n- seed 1: when and on what is not known\n" in arms.page([level], command="c", runs=other)
    assert "| no-tool | no entries of the level tool | 0.600 [" in text
    assert (
        "- earns its place with memory: `no-tool` (no entries of the level tool)\n- its own family types fall" in text
    )
    unlike = [seed(0, {"last_alone": 6, "last_memory": 5}), whole[1]]
    level = arms.compare(whole, unlike, "no-tool", samples=200)
    assert level.own is not None and level.own.mean == pytest.approx(0.2)
    assert level.verdict == "its own family types fall by 0.10 without it in the mean, not at the lower bound"
    level = arms.compare(whole, whole, "no-tool", samples=200)
    assert level.verdict == "its own family types do not fall by 0.10 without it"
    assert "| no-tool | +0.000, +0.000 | +0.400, +0.400 | 1.000 (1.000) |" in text


def test_an_arm_that_forgets_more_is_said_to() -> None:
    whole = [seed(n, {"last_alone": 6}, kept=0.95) for n in range(2)]
    forgets = [seed(n, {"last_alone": 8}, kept=0.95 - 0.1 * n) for n in range(2)]
    found = arms.compare(whole, forgets, "no-anchor", samples=200)
    assert found.verdict == "costs alone; keeps write_exact at 0.90 of the base's"
    assert found.retained == {"write_exact": pytest.approx((0.95, 0.85))}
    text = arms.page([found], command="c", runs=whole)
    assert "| no-anchor | -0.200, -0.200 | +0.000, +0.000 | 0.900 (0.850) |" in text
    assert "- costs alone: `no-anchor` (no rehearsal)\n- keeps write_exact at 0.90 of the base's: `no-anchor`" in text


def test_seeds_of_two_machines_make_the_page_of_one(tmp_path: Path) -> None:
    def runs(numbers: range) -> dict[str, list[arms.ArmRun]]:
        return {
            "whole": [seed(n, {"last_alone": 6, "last_memory": 9}) for n in numbers],
            "no-tool": [seed(n, {"last_alone": 5 - n, "last_memory": 5}, kept=0.9) for n in numbers],
        }

    def written(numbers: range, name: str) -> Path:
        file = tmp_path / name
        file.write_text(arms_kept.keep(runs(numbers), "p").model_dump_json())
        return file

    def read(file: Path, here: range = range(0)) -> arms_kept.Found:
        return arms_kept.read(file, arms=["whole", "no-tool"], parameters="p", here=here)

    first, later = written(range(2), "first.json"), written(range(2, 3), "later.json")
    joined = arms_kept.joined(runs(range(1, 2)), [read(later), read(written(range(1), "zero.json"), range(1, 2))])
    together = {arm: tuple(found) for arm, found in runs(range(3)).items()}
    assert joined == together
    compared = [arms.compare(one["whole"], one["no-tool"], "no-tool", samples=50) for one in (joined, together)]
    assert compared[0] == compared[1]

    with pytest.raises(SetupError, match="seed 1 here and in"):
        read(first, range(1, 2))
    with pytest.raises(SetupError, match="seed 0 in two files"):
        arms_kept.joined(runs(range(3, 4)), [read(first), read(written(range(1), "again.json"))])
    with pytest.raises(SetupError, match="no 'no-tip' of seed 0"):
        arms_kept.read(first, arms=["whole", "no-tip"], parameters="p", here=())
    with pytest.raises(SetupError, match="is of the parameters p;"):
        arms_kept.read(first, arms=["whole"], parameters="q", here=())
    with pytest.raises(SetupError, match="no file"):
        read(tmp_path / "none.json")
    newer = tmp_path / "newer.json"
    newer.write_text(first.read_text().replace('"schema_version":', '"schema_version":9', 1))
    with pytest.raises(SchemaError, match="upgrade"):
        read(newer)
    first.write_text(first.read_text().replace('"last_alone":"1', '"last_alone":"', 1))
    with pytest.raises(SetupError, match=r"seed 0, whole: last_alone is not a 0 or 1 for each of 80 tasks"):
        read(first)


def test_what_is_pooled_may_differ_in_seed_and_base_policy_alone() -> None:
    whole = load_preset("laptop")

    def digest(**overrides: object) -> str:
        return kept.parameters_digest(merge(whole, {k.replace("__", "."): v for k, v in overrides.items()}, "x"))

    assert digest() == digest(seed=3) == digest(policy__path="other") == digest(flows__shards=1)
    assert len({digest(), digest(rounds=1), digest(slow__steps=1), digest(policy__thinking=True)}) == 4


def test_what_the_whole_played_and_measured_is_taken_over_and_comes_to_the_same(
    children: driver.Children, tmp_path: Path
) -> None:
    """An arm of the slow loop alone, begun anew and begun behind the whole's fast loop: the same bytes at the end."""

    def asked(arm: str) -> dict[str, object]:
        return {**driver.SMALL, **arms.ARMS[arm].overrides}

    def digests(name: str) -> dict[str, str]:
        return dict((lineage.open_run(tmp_path, name).summary(1) or {})["digests"])

    def opened(name: str, arm: str) -> lineage.Run:
        return prepare.open_for_work(tmp_path, name, preset="micro", overrides=asked(arm))

    assert children.run(tmp_path, "whole", asked("whole")) == 0, driver.said(tmp_path)
    assert children.run(tmp_path, "alone", asked("empty-hindsight")) == 0, driver.said(tmp_path)
    whole = lineage.open_run(tmp_path, "whole")
    behind = opened("behind", "empty-hindsight")
    assert adopt(behind, whole)
    (anchors,) = sorted((behind.paths.run / "anchors").glob("*"))
    touched = anchors.stat().st_mtime_ns
    assert children.run(tmp_path, "behind", asked("empty-hindsight")) == 0, driver.said(tmp_path)
    assert digests("behind") == digests("alone") != digests("whole")
    played = {
        name: list((tmp_path / f"runs/{name}/steps/round-001").glob("wave-*/microbatches/*"))
        for name in ("alone", "behind")
    }
    assert played["alone"] and not played["behind"]
    assert anchors.stat().st_mtime_ns == touched
    assert [one.name for one in (behind.paths.run / "anchors").glob("*")] == [anchors.name]
    assert not adopt(behind, whole), "a begun run stays as it is"
    # What plays otherwise takes over no more than measurements of the same base.
    other = opened("other", "no-select")
    assert not adopt(other, whole) and not other.paths.live(1).exists()
    assert list((other.paths.run / "columns").glob("*.json"))


def test_two_arms_of_the_real_flow(
    children: driver.Children, tmp_path: Path, opd: Opd, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("whole", "no-write"):
        asked = {**driver.SMALL, **arms.ARMS[name].overrides, "seed": 0}
        assert children.run(tmp_path, f"a-{name}-s0", asked) == 0, driver.said(tmp_path)
    monkeypatch.chdir(tmp_path)
    stand_in_flow(tmp_path, "raise SystemExit('a finished run is not run again')")
    words = ["bench", "ablations", "--seeds", "1", "--name", "a", "--preset", "micro", "--json"]
    words += ["--arms", "no-write", "--out", "out/ablations.md"]
    for key, value in driver.SMALL.items():
        words += ["--set", f"{key}={json.dumps(value)}"]
    said = opd(*words, "--seeds", "2")
    assert said.code == 1 and not Path("out/ablations.md").exists()
    # Its second seed failed; what the first one came to is on the disk all the same.
    kept = json.loads(Path("out/ablations.seeds.json").read_text())
    assert set(kept["runs"]) == {"0"}
    # What else the file holds stays: another arm of this seed, and the seed that is interrupted again.
    kept["runs"]["0"]["sft"] = kept["runs"]["0"]["no-write"]
    kept["runs"]["1"] = kept["runs"]["0"]
    Path("out/ablations.seeds.json").write_text(json.dumps(kept))
    assert opd(*words, "--seeds", "2").code == 1
    assert json.loads(Path("out/ablations.seeds.json").read_text())["runs"] == kept["runs"]
    Path("out/ablations.seeds.json").unlink()
    # The whole was extended since: its first round is what is asked for.
    shutil.copy("runs/a-whole-s0/rounds/round-001.json", "runs/a-whole-s0/rounds/round-002.json")
    said = opd(*words)
    assert said.code == 0, said.err
    assert json.loads(Path("out/ablations.seeds.json").read_text())["runs"]["0"]["whole"]["round"] == 1
    tree = json.loads(said.out)
    assert set(tree["verdicts"]) == {"whole", "no-write"}
    text = Path("out/ablations.md").read_text()
    assert "| no-write | nothing is written |" in text and "--arms no-write" in text
    (compared,) = [one for one in json.loads(Path("out/ablations.json").read_text()) if one["arm"] == "no-write"]
    # Nothing was written, so its memory is empty, and memory makes no difference.
    assert compared["success"]["last_memory"]["mean"] == compared["success"]["last_alone"]["mean"]
    # The other seed is of another machine, whose runs are not here: the same runs, told as seed 1.
    elsewhere = json.loads(Path("out/ablations.seeds.json").read_text())
    elsewhere["runs"]["1"] = elsewhere["runs"].pop("0")
    for one in elsewhere["runs"]["1"].values():
        one["measured"] = {"date": "elsewhere"}
    Path("elsewhere.json").write_text(json.dumps(elsewhere))
    said = opd(*words, "--add", "elsewhere.json")
    assert said.code == 0, said.err
    text = Path("out/ablations.md").read_text()
    assert "- seed 0: date " in text and "- seed 1: date elsewhere\n" in text
    assert "Seeds 0, 1." in text and "--add elsewhere.json" in text
    measuring = text.split("What measures them:\n\n    ")[1].splitlines()[0]
    assert measuring.startswith("opd bench ablations --seeds 2 --first-seed 0") and "--add" not in measuring
    assert set(json.loads(Path("out/ablations.seeds.json").read_text())["runs"]) == {"0", "1"}
    # Called again it goes on where it was, though its own file now holds the seed that is measured here.
    said = opd(*words, "--add", "out/ablations.seeds.json")
    assert said.code == 0 and Path("out/ablations.md").read_text() == text.replace(
        "elsewhere.json", "out/ablations.seeds.json"
    )
    said = opd(*words, "--add", "elsewhere.json", "--first-seed", "1")
    assert said.code == 2 and "seed 1 here and in elsewhere.json" in said.err
    # Of outcomes alone, without a run: the same page, but for the command.
    shutil.rmtree("runs")
    said = opd(*words, "--add", "out/ablations.seeds.json", "--seeds", "0")
    assert said.code == 0, said.err
    assert Path("out/ablations.md").read_text().split("\n\n")[2:] == text.split("\n\n")[2:]
    assert opd(*words, "--seeds", "0").code == 2
    other = opd(*words, "--set", "slow.steps=2")
    assert other.code == 2 and "out/ablations.seeds.json is of the parameters" in other.err
    assert not Path("runs").exists(), "refused before anything is run"
    wrong = opd("bench", "ablations", "--arms", "no-wrte", "--preset", "micro")
    assert wrong.code == 2 and "no-write" in wrong.err
