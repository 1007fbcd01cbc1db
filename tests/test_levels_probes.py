"""Families of every level: with the entry of its level a reader wins, without it hardly ever."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from opd_evolver.benchmark.probes import evaluate_probes
from opd_evolver.environments import registry
from opd_evolver.params import EnvironmentParams, Params
from opd_evolver.policy.scripted import ScriptedPolicy
from opd_evolver.records import LEVELS, GenerationRequest, Prompt
from opd_evolver.rollout.runner import EnvironmentPool
from tests.level_reader import reader

Responder = Callable[[Prompt, GenerationRequest], str]
PARAMS = Params.model_validate(
    {
        "environments": {"levels": list(LEVELS)},
        "benchmark": {"bootstrap_samples": 50},
        "fast": {"write_max_new_tokens": 64},
    }
)


def tidy(prompt: Prompt, request: GenerationRequest) -> str:
    """Deletes what the notes call poor, in one command."""
    if len(prompt.messages) > 1:
        return "finish"
    listed = " ".join(segment.text for segment in prompt.messages[0].segments).split(" | ")
    poor = [word for text in listed if text.endswith(" poor") for word in re.findall(r"\bh\d+\b", text)[:1]]
    return f"delete {' '.join(poor)}" if poor else "finish"


@pytest.mark.parametrize(("policy", "expected"), [(tidy, 1.0), (lambda prompt, request: "finish", 0.0)])
def test_maintenance_is_measured_by_what_it_retires(policy: Responder, expected: float) -> None:
    with EnvironmentPool(registry.loader(EnvironmentParams(levels=LEVELS))) as pool:
        report = evaluate_probes(ScriptedPolicy(policy), pool, "novel-test", 32, PARAMS, probes=("maintain_f1",))
    assert report.metrics["maintain_f1"].mean == expected


def test_the_entry_of_each_level_decides_its_families() -> None:
    with EnvironmentPool(registry.loader(EnvironmentParams(levels=LEVELS))) as pool:
        report = evaluate_probes(reader(), pool, "novel-test", 64, PARAMS)
    found = {name: one.mean for name, one in report.metrics.items()}
    for name in ("memory_use", "override", "select_f1", "write_exact", "write_hindsight"):
        assert found[name] == 1.0, found
    for level in LEVELS:
        assert found[f"memory_use.{level}"] == found[f"write_exact.{level}"] == 1.0, (level, found)
        assert found[f"no_memory.{level}"] == pytest.approx(0.1, abs=0.2), (level, found)
