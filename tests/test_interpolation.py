"""`benchmarks.interpolation`: weights between two policies, and what tasks one solves and the other does not."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from benchmarks.interpolation import counts, mix, table
from opd_evolver.benchmark.statistics import Outcome


def policy(folder: Path, *values: float) -> Path:
    folder.mkdir()
    save_file({"w": torch.tensor(values, dtype=torch.bfloat16)}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return folder


def outcomes(*solved: int) -> tuple[Outcome, ...]:
    """Of five tasks in two families of a domain, those solved."""
    return tuple(
        Outcome(
            task_id=str(task),
            family=f"f{task % 2}",
            domain="d",
            success=task in solved,
            episode_return=float(task in solved),
            steps=1,
            tokens=1,
        )
        for task in range(5)
    )


def test_a_mix_lies_between_in_the_type_of_the_last(tmp_path: Path) -> None:
    base, last = policy(tmp_path / "base", 1.0, -2.0, 0.5), policy(tmp_path / "last", 3.0, -2.0, 1.5)
    for alpha, expected in ((0.0, [1.0, -2.0, 0.5]), (0.25, [1.5, -2.0, 0.75]), (1.0, [3.0, -2.0, 1.5])):
        found = load_file(mix(base, last, alpha, tmp_path / f"mix-{alpha}") / "model.safetensors")["w"]
        assert found.dtype == torch.bfloat16 and found.tolist() == expected
        assert (tmp_path / f"mix-{alpha}" / "config.json").exists()


def test_what_is_lost_gained_and_solved_by_either() -> None:
    base = {"alone": outcomes(0), "memory": outcomes(0, 1, 2)}
    last = {"alone": outcomes(1, 4), "memory": outcomes(0, 3)}
    assert counts(base, last) == (2, 1, 0.8)
    lines = table({0.0: [(base, {})], 1.0: [(last, {})]})
    assert len(lines) == 4 and lines[-1].startswith("| 1 | 0.400")
    assert "| 2/1 | 0.800 |" in lines[-1] and "| -0.200 [" in lines[-1]
