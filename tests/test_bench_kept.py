"""The files of outcomes that benches keep: what is in them stays, and seeds of two machines make the page of one."""

from __future__ import annotations

from pathlib import Path

import pytest

from opd_evolver.benchmark import arms, arms_kept, kept, rows, seeds_kept
from opd_evolver.benchmark.results import COLUMNS, DEPLOYED, SeedResult, results
from opd_evolver.benchmark.seeds_kept import MeasuredSeed
from opd_evolver.benchmark.statistics import Unit
from opd_evolver.errors import SetupError
from tests.arm_runs import seed


def test_runs_of_other_rounds_are_not_compared() -> None:
    whole, arm = ([seed(n, {}).model_copy(update={"round": 1}) for n in range(2)] for _ in range(2))
    assert arms.compare(whole, arm, "sft", samples=50).alone.mean == 0.0
    # What was kept before the round was written down is taken at its word.
    assert arms.compare(whole, [one.model_copy(update={"round": None}) for one in arm], "sft", samples=50)
    longer = [arm[0], arm[1].model_copy(update={"round": 3})]
    with pytest.raises(SetupError, match="sft: rounds 1 and 3; expected the same round of every run"):
        arms.compare(whole, longer, "sft", samples=50)


def test_what_a_file_held_stays_but_for_what_was_measured_again() -> None:
    def won(chance: int) -> dict[str, list[arms.ArmRun]]:
        names = ("whole", "sft", "no-tip")
        return {name: [seed(n, {"last_alone": chance}) for n in range(2)] for name in names}

    before, again = arms_kept.keep(won(4), "p"), arms_kept.keep(won(6), "p")
    assert arms_kept.Kept.model_validate_json(before.model_dump_json()) == before
    # One arm of one seed measured again; the whole of both is told as well, one of them by another's file.
    found = {"whole": won(6)["whole"], "sft": won(6)["sft"][1:]}
    now = arms_kept.keep(found, "p", before, here=[1])
    assert now.runs[1] == {**before.runs[1], "whole": again.runs[1]["whole"], "sft": again.runs[1]["sft"]}
    assert now.runs[0] == before.runs[0] and now.runs[1]["no-tip"] == before.runs[1]["no-tip"]
    fewer = before.model_copy(update={"tasks": before.tasks[:-1]})
    with pytest.raises(SetupError, match="other tasks"):
        arms_kept.keep(found, "p", fewer)


def of_seed(number: int, won: int, *, round_: int = 3, novel: bool = True) -> SeedResult:
    """Of ten tasks in each of six families of each split, how many the last policy solves."""

    def column(name: str) -> tuple[Unit, ...]:
        split = "d" if name in DEPLOYED else "n"
        return tuple(
            kept.unit(
                kept.KeptTask(task_id=f"{split}{family}-{task}", family=f"{split}{family}", domain="sql"),
                float((task + family + number) % 10 < (won if name.startswith("last") else 3)),
            )
            for family in range(6)
            for task in range(10)
        )

    deployed = column("base_alone")
    selection = {
        side: tuple(
            one.model_copy(update={"numerator": 2.0 * (n % 3 + at), "denominator": 9.0})
            for n, one in enumerate(deployed)
        )
        for at, side in enumerate(("base", "last", "base needed", "last needed"))
    }
    return SeedResult(
        seed=number,
        lineage=f"s{number}",
        round=round_,
        columns={name: column(name) if novel or name in DEPLOYED else () for name in COLUMNS},
        retention={"write_exact": (0.5, 0.49)},
        curve=((0.1, None), (0.5, 0.7)),
        digests={name: f"{name}0123456789" for name in ("base", "weights", "entries", "ledger")},
        seconds=(60.5, 90.0),
        kinds={"drift": frozenset({"d0-1", f"d{number}-2"})},
        selection=selection,
        written={1: rows.Written(n_entries=9, n_with_evidence=3, n_helpful=2, median_value=0.25)},
    )


def of_machine(number: int) -> MeasuredSeed:
    """A refused last round on seed 1, nothing but refused rounds on seed 2."""
    last = of_seed(number, 5)
    champion = {1: of_seed(number, 7, round_=2), 2: None}.get(number, last)
    return MeasuredSeed(last=last, champion=champion, policy=f"p{number}", measured={"date": f"day {number}"})


def written(file: Path, *numbers: int) -> Path:
    file.write_text(seeds_kept.keep([of_machine(n) for n in numbers], "p").model_dump_json())
    return file


def test_seeds_of_two_machines_are_what_one_measured(tmp_path: Path) -> None:
    every = tuple(of_machine(n) for n in range(3))
    file = written(tmp_path / "two.json", 2, 0)
    there = seeds_kept.read(file, parameters="p", here=[1])
    assert seeds_kept.joined([every[1]], [there]) == every, "bit for bit, in the order of the seeds"
    pooled = [results([one.last for one in found], samples=50) for found in (every, seeds_kept.joined(there, []))]
    assert pooled[0].values["last_alone"][::2] == pooled[1].values["last_alone"]
    # Measured again, a seed takes its place in its own file; the others stay.
    before = seeds_kept.load(file, "p")
    again = of_machine(0).model_copy(update={"last": of_seed(0, 6), "champion": of_seed(0, 6)})
    now = seeds_kept.keep([again, *there[1:]], "p", before, here=[0])
    assert now.seeds[2] == before.seeds[2] and now.seeds[0] != before.seeds[0]
    assert seeds_kept.read(file, parameters="p", here=[0], own=True) == there[1:]


def test_a_world_without_novel_tasks_is_kept_too(tmp_path: Path) -> None:
    bare = MeasuredSeed(last=of_seed(0, 5, novel=False), champion=None, policy="seed", measured={})
    file = tmp_path / "bare.json"
    file.write_text(seeds_kept.keep([bare], "p").model_dump_json())
    assert seeds_kept.read(file, parameters="p", here=[]) == (bare,)


def test_a_file_that_cannot_be_pooled_says_why(tmp_path: Path) -> None:
    file = written(tmp_path / "first.json", 0, 1)
    text = file.read_text()
    with pytest.raises(SetupError, match="seed 1 here and in"):
        seeds_kept.read(file, parameters="p", here=[1])
    with pytest.raises(SetupError, match="seed 0 in two files"):
        seeds_kept.joined([], [seeds_kept.read(file, parameters="p", here=[])] * 2)
    with pytest.raises(SetupError, match="is of the parameters p;"):
        seeds_kept.load(file, "q")
    with pytest.raises(SetupError, match=r"tasks: .*expected what `opd bench ablations` wrote"):
        arms_kept.load(file, "p")
    for seen, other, said in (
        ('"last_alone":"', '"last_alone":"1', r"seed 0, round 3: last_alone is not a 0 or 1 for each of 60 tasks"),
        ('"novel_fresh":"', '"novel_fresh":"1', r"seed 0, round 3: novel_fresh is not a 0 or 1 for each of 60 tasks"),
        ('"base_alone":"', '"alone":"', r"seed 0, round 3: base_alone is not a 0 or 1 for each of 60 tasks"),
        ('"drift":"', '"drift":"1', r"seed 0, round 3: drift is not a 0 or 1"),
        ('"base":[[', '"base":[[1,1],[', r"seed 0, round 3: base has 61 pairs, not one for each of 60"),
        ('"held":3', '"held":1', r"seed 0: the gate left round 1, which is not the one that is told"),
    ):
        assert seen in text
        file.write_text(text.replace(seen, other, 1))
        with pytest.raises(SetupError, match=said):
            seeds_kept.load(file, "p")
    other = of_seed(2, 5)
    fewer = {name: units[:-1] for name, units in other.columns.items()}
    moved = MeasuredSeed(last=other.model_copy(update={"columns": fewer}), champion=None, policy="seed", measured={})
    with pytest.raises(SetupError, match="other tasks"):
        seeds_kept.keep([of_machine(0), moved], "p")
