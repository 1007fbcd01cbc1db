"""The file of outcomes that ablations keep: what is in it stays, and runs of other rounds are told apart."""

from __future__ import annotations

import pytest

from opd_evolver.benchmark import arms, arms_kept
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
    kept = arms_kept.keep(found, "p", before, here=[1])
    assert kept.runs[1] == {**before.runs[1], "whole": again.runs[1]["whole"], "sft": again.runs[1]["sft"]}
    assert kept.runs[0] == before.runs[0] and kept.runs[1]["no-tip"] == before.runs[1]["no-tip"]
    fewer = before.model_copy(update={"tasks": before.tasks[:-1]})
    with pytest.raises(SetupError, match="other tasks"):
        arms_kept.keep(found, "p", fewer)
