"""Families of every level: with the entry of its level a reader wins, without it hardly ever."""

from __future__ import annotations

import pytest

from opd_evolver.benchmark.probes import evaluate_probes
from opd_evolver.environments import registry
from opd_evolver.params import Params
from opd_evolver.records import LEVELS
from opd_evolver.rollout.runner import EnvironmentPool
from tests.level_reader import reader

PARAMS = Params.model_validate(
    {
        "environments": {"levels": list(LEVELS)},
        "benchmark": {"bootstrap_samples": 50},
        "fast": {"write_max_new_tokens": 64},
    }
)


def test_the_entry_of_each_level_decides_its_families() -> None:
    with EnvironmentPool(registry.loader(LEVELS)) as pool:
        report = evaluate_probes(reader(), pool, "novel-test", 64, PARAMS)
    found = {name: one.mean for name, one in report.metrics.items()}
    for name in ("memory_use", "override", "select_f1", "write_exact", "write_hindsight"):
        assert found[name] == 1.0, found
    for level in LEVELS:
        assert found[f"memory_use.{level}"] == found[f"write_exact.{level}"] == 1.0, (level, found)
        assert found[f"no_memory.{level}"] == pytest.approx(0.1, abs=0.2), (level, found)
