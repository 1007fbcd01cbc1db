"""`opd bench rounds`: real runs from several seeds, pooled; a second call does nothing again; claims as asked."""

from __future__ import annotations

import csv
import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import driver
import pytest
from conftest import Opd
from finished_run import stand_in_flow

from opd_evolver.benchmark.measure import Benchmark
from opd_evolver.benchmark.results import CLAIMS, COLUMNS, SeedResult, results
from opd_evolver.benchmark.results_csv import table
from opd_evolver.benchmark.results_page import page
from opd_evolver.benchmark.statistics import Unit
from opd_evolver.errors import SetupError

pytestmark = pytest.mark.timeout(900)


def column(chance: dict[str, int], n_families: int = 6) -> tuple[Unit, ...]:
    """Domain → of ten tasks in each family, how many succeed."""
    return tuple(
        Unit(
            task_id=f"{domain}-{family}-{task}",
            family=f"{domain}-{family}",
            domain=domain,
            numerator=float((task + family) % 10 < won),
        )
        for domain, won in chance.items()
        for family in range(n_families)
        for task in range(10)
    )


def seed(number: int, last: dict[str, int], kept: float = 0.95) -> SeedResult:
    chances = {name: {"sql": 1, "apps": 1} for name in COLUMNS} | {
        "base_memory": {"sql": 5, "apps": 5},
        "last_alone": last,
        "last_memory": {"sql": 7, "apps": 7},
        "novel_fresh": {"sql": 6, "apps": 6},
    }
    return SeedResult(
        seed=number,
        lineage=f"bench-s{number}",
        columns={name: column(chance) for name, chance in chances.items()},
        retention={"memory_use": (1.0, kept)},
        curve=((0.1, None), (0.5, 0.7)),
        digests={name: f"{name}0123456789" for name in ("base", "weights", "entries", "ledger")},
        seconds=(60.0, 90.0),
    )


def command(n_seeds: int, asked: dict[str, Any]) -> list[str]:
    """`opd bench rounds` of the runs b-s0, b-s1, … with these parameters."""
    words = ["bench", "rounds", "--seeds", str(n_seeds), "--name", "b", "--preset", "micro", "--out", "out/results.md"]
    pairs = [f"{key}={json.dumps(value)}" for key, value in asked.items() if key != "seed"]
    return [*words, "--json", *(word for pair in pairs for word in ("--set", pair))]


def test_claims_are_judged_by_their_lower_bounds_and_every_domain() -> None:
    found = results([seed(0, {"sql": 5, "apps": 5}), seed(1, {"sql": 5, "apps": 5})], samples=200)
    assert [one.reached for one in found.verdicts] == [True] * len(CLAIMS)
    assert found.verdicts[1].found.mean == pytest.approx(0.4) and found.values["last_alone"] == (0.5, 0.5)
    # One domain learns nothing: the mean is still far above, and the claim is not reached.
    uneven = results([seed(0, {"sql": 9, "apps": 1}), seed(1, {"sql": 9, "apps": 1})], samples=200)
    by_name = {one.claim.name: one for one in uneven.verdicts}
    given = by_name["distillation alone gives"]
    assert given.found.low is not None and given.found.low > 0.25 and not given.reached
    # Memory that adds more than it costs is judged on the mean alone.
    assert by_name["memory adds to distillation"].claim.per_domain is None


def test_what_was_forgotten_is_said() -> None:
    found = results([seed(0, {"sql": 5, "apps": 5}), seed(1, {"sql": 5, "apps": 5}, kept=0.8)], samples=50)
    [kept] = found.retained
    assert kept.shares == (0.95, 0.8) and not kept.reached
    text = page(found, title="T", command="c", measured=[(0, {"date": "d"})], curves="x.svg")
    assert (
        "| retention: memory_use, share of the base's | 0.800 at least | 0.90 | 0.950, 0.800 |  | **not reached** |"
        in text
    )


def test_a_refused_last_round_stands_beside_what_the_gate_left_to_use() -> None:
    asked = {"sql": 5, "apps": 5}
    found = results([seed(0, asked), seed(1, {"sql": 2, "apps": 2})], samples=50)
    held = [seed(0, asked).model_copy(update={"round": 3}), seed(1, asked).model_copy(update={"round": 2})]
    with pytest.raises(SetupError, match="rounds 3 of bench-s0, 2 of bench-s1; expected the same round"):
        results(held)
    left = results(held, champions=True)
    both = page(found, title="T", command="c", measured=[], curves="x.svg", champion=left)
    assert "seed by seed: round 3, 2." in both and both.count("| distillation alone gives |") == 2
    assert "champion" not in page(found, title="T", command="c", measured=[], curves="x.svg")
    lines = list(csv.DictReader(table(found, left).splitlines()))
    given = {
        row["kind"]: float(row["mean"])
        for row in lines
        if row["name"] == "last_alone - base_alone" and (row["seed"], row["domain"]) == ("1", "")
    }
    assert given == {"difference": pytest.approx(0.1), "champion difference": pytest.approx(0.4)}


def test_what_was_not_measured_is_a_dash() -> None:
    """Without novel tasks no novel column; with too few to fill a memory with, no fresh one."""
    asked = {"sql": 5, "apps": 5}
    for missing in (("novel_alone", "novel_base_fresh", "novel_fresh"), ("novel_base_fresh", "novel_fresh")):
        bare = [
            one.model_copy(update={"columns": {**one.columns, **dict.fromkeys(missing, ())}})
            for one in (seed(0, asked), seed(1, asked))
        ]
        found = results(bare, samples=50)
        assert {name for name, one in found.means.items() if one.mean is None} == {*missing}
        assert [one.said for one in found.verdicts] == ["reached"] * 4 + ["not measured"]
        text = page(found, title="T", command="c", measured=[], curves="x.svg")
        rows = {line.split(" | ")[0]: line for line in text.splitlines() if line.startswith("| ")}
        assert rows["| a fresh memory on novel families"].endswith("| –, – |  | not measured |")
        assert rows[f"| {COLUMNS['novel_fresh']}"].endswith(" | – | – | – | – | – |")
        lines = list(csv.DictReader(table(found).splitlines()))
        assert {row["mean"] for row in lines if row["name"].startswith("novel_fresh")} == {""}


def test_figures_of_real_sizes_stand_on_the_page_where_they_were_measured() -> None:
    found = results([seed(0, {"sql": 5, "apps": 5})], samples=50)
    told = json.loads((Path(__file__).parents[1] / "docs/gpu.json").read_text(encoding="utf-8"))
    with_sizes, without = (
        page(found, title="T", command="c", measured=[], curves="x.svg", sizes=sizes) for sizes in (told, None)
    )
    shown = [line for line in with_sizes.splitlines() if line.startswith("| own: fast loop, tokens/s")]
    wanted = [str(each.get("own: fast loop, tokens/s", "")) for each in told["figures"].values()]
    assert [[cell.strip() for cell in line.split("|")[2:-1]] for line in shown] == [wanted]
    assert with_sizes.startswith(without) and "GPU" not in without


def test_the_champion_of_a_refused_round_is_measured(
    children: driver.Children, tmp_path: Path, opd: Opd, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {**driver.SMALL, "rounds": 2, "seed": 0}
    assert children.run(tmp_path, "b-s0", asked) == 0, driver.said(tmp_path)
    kept = tmp_path / "runs/b-s0/rounds/round-002.json"
    summary = json.loads(kept.read_text())
    kept.write_text(json.dumps({**summary, "champion": 1}))
    monkeypatch.chdir(tmp_path)
    stand_in_flow(tmp_path, "raise SystemExit('a finished seed is not run again')")
    said = opd(*command(1, asked))
    assert said.code == 0, said.err
    measured = json.loads((tmp_path / "runs/b-s0/steps/round-001/benchmark/measurement.json").read_text())
    assert json.loads(said.out)["champion"]["means"]["last_memory"]["mean"] == pytest.approx(
        measured["columns"]["with_memory"]["mean"]
    )
    [one] = json.loads(Path("out/results.json").read_text())["champion"]["seeds"]
    assert one["round"] == 1 and "seed by seed: round 1." in Path("out/results.md").read_text()
    [alone] = json.loads(Path("out/results.seeds.json").read_text())["seeds"].values()
    assert (alone["last"]["round"], alone["held"], alone["champion"]["round"]) == (2, 1, 1)
    # A run that has more rounds than are asked for is measured after those that are; a world may have no novel tasks.
    tasks = Benchmark.tasks
    monkeypatch.setattr(
        Benchmark, "tasks", lambda self, split, n: [] if split == "novel-test" else tasks(self, split, n)
    )
    fewer = command(1, {**asked, "rounds": 1})
    refused = opd(*fewer)
    assert refused.code == 2 and "out/results.seeds.json is of the parameters" in refused.err
    fewer[fewer.index("out/results.md")] = "fewer/results.md"
    said = opd(*fewer)
    assert said.code == 0, said.err
    [one] = json.loads(Path("fewer/results.json").read_text())["seeds"]
    first = json.loads((tmp_path / "runs/b-s0/rounds/round-001.json").read_text())
    assert (one["round"], len(one["curve"]), len(one["seconds"])) == (1, 2, 2)
    assert one["digests"]["weights"] == first["digests"]["weights"] != summary["digests"]["weights"]
    assert json.loads(said.out)["values"]["novel_fresh"] == [None]
    assert "| a fresh memory on novel families | – |" in Path("fewer/results.md").read_text()


def test_two_seeds_of_the_real_flow(
    children: driver.Children, tmp_path: Path, opd: Opd, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (0, 1):
        asked = {**driver.SMALL, "seed": number}
        assert children.run(tmp_path, f"b-s{number}", asked) == 0, driver.said(tmp_path)
    monkeypatch.chdir(tmp_path)
    stand_in_flow(tmp_path, "raise SystemExit('a finished seed is not run again')")
    words = command(2, driver.SMALL)
    said = opd(*words)
    assert said.code == 0, said.err
    tree = json.loads(said.out)
    assert [Path(file).exists() for file in tree["files"]] == [True] * 5
    assert len(tree["values"]["base_alone"]) == 2 and {*tree["means"]} == {*COLUMNS}
    assert tree["champion"] is None  # of one round nothing else is left
    text = Path("out/results.md").read_text()
    assert "seed 0" in text and "`b-s1`" in text and "reached" in text
    numbers = list(csv.DictReader(Path("out/results.csv").read_text().splitlines()))
    columns = [row for row in numbers if row["kind"] == "column" and row["name"] == "last_memory"]
    pooled = [row for row in columns if not row["seed"] and not row["domain"]]
    assert [float(row["mean"]) for row in pooled] == [tree["means"]["last_memory"]["mean"]]
    assert ET.parse("out/results.svg").getroot().tag.endswith("svg")
    timeless = [file for file in tree["files"] if not file.endswith(".md")]  # the page bears the date
    before = [Path(file).read_bytes() for file in timeless]
    assert opd(*words).code == 0
    assert [Path(file).read_bytes() for file in timeless] == before
    # What was kept makes the page without a run, and with one of the two measured here.
    kept = Path("out/results.seeds.json")
    for n_seeds, added in ((0, kept), (1, seed_alone(kept, "1"))):
        words = command(n_seeds, driver.SMALL)
        words[words.index("out/results.md")] = "again/results.md"
        said = opd(*words, "--add", str(added))
        assert said.code == 0, said.err
        assert [Path("again", Path(file).name).read_bytes() for file in timeless] == before
        measures = " ".join(["opd bench rounds --seeds 2 --first-seed 0 --name b --out again/results.md", "--preset"])
        assert measures in Path("again/results.md").read_text().partition("What measures them:")[2]
    # Seeds of several base policies are named one by one; a seed that is missing between them has no one command.
    for second, said_then in (("1", "--policy seed other"), ("2", None)):
        tree = json.loads(kept.read_text())
        tree["seeds"] = {"0": tree["seeds"]["0"], second: {**tree["seeds"]["1"], "policy": "other"}}
        Path("others.json").write_text(json.dumps(tree))
        words = command(0, driver.SMALL)
        words[words.index("out/results.md")] = f"{second}/results.md"
        said = opd(*words, "--add", "others.json")
        assert said.code == 0, said.err
        measures = Path(second, "results.md").read_text().partition("What measures them:")[2]
        assert (said_then or "") in measures and bool(measures) == (said_then is not None)


def seed_alone(kept: Path, seed: str) -> Path:
    tree = json.loads(kept.read_text())
    alone = kept.with_name("alone.json")
    alone.write_text(json.dumps({**tree, "seeds": {seed: tree["seeds"][seed]}}))
    return alone
