"""A fresh memory where a world has too few tasks to fill it with."""

from __future__ import annotations

from pathlib import Path

import pytest

from opd_evolver.benchmark.columns import PolicySource, ResultStore
from opd_evolver.benchmark.measure import Benchmark
from opd_evolver.params import Params
from opd_evolver.rollout.runner import EnvironmentPool


def never() -> None:
    raise AssertionError("opened")


def test_without_enough_tasks_to_fill_it_a_fresh_memory_is_not_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The example asks 48 things of its novel houses, over and over."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "examples" / "outside_environment"))
    from keydoor import KeyDoor

    params = Params.model_validate({"environments": {"domains": ["keydoor"]}})
    with EnvironmentPool(lambda name: KeyDoor()) as pool:
        bench = Benchmark(params, pool, ResultStore(None))
        for n, left in ((100, 0), (47, 8)):
            assert bench.fresh(PolicySource("never", never), bench.tasks("novel-test", n)) is None
            assert f"keydoor: a fresh memory is not measured: {left} of 120 further tasks" in capsys.readouterr().err
