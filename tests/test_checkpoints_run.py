"""Stock checkpoints made on the spot (Qwen3, Llama, own chat templates) co-evolve, with LoRA and with all weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import driver
import pytest
from checkpoints import MAKERS

from opd_evolver.agent import Agent
from opd_evolver.lineage import open_run
from opd_evolver.policy.weights import weights_digest
from opd_evolver.steps.export import FORMS, export

pytestmark = pytest.mark.timeout(900)


def overrides(policy: Path, adapter: str) -> dict[str, Any]:
    return {
        **driver.SMALL,
        "policy.path": str(policy),
        "environments.domains": ["apps"],
        "fast.act_max_new_tokens": 8,
        "fast.select_max_new_tokens": 4,
        "fast.write_max_new_tokens": 4,
        "fast.withhold_probability": 0.4,
        "slow.adapter": adapter,
        "slow.lora.r": 4,
        "slow.lora.alpha": 8,
    }


@pytest.mark.parametrize("adapter", ["lora", "full"])
@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_a_stock_checkpoint_is_trained_and_measured(
    children: driver.Children, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, adapter: str
) -> None:
    """The agent of the fast loop is a script in the checkpoint's own tokens; the checkpoint learns and is measured."""
    base = MAKERS[kind](tmp_path / "base")
    given = {**overrides(base, adapter), "fast.tasks_per_domain": 6}
    assert children.run(tmp_path, "m", given, puppet="terse") == 0, driver.said(tmp_path)
    summary = json.loads((tmp_path / "runs/m/rounds/round-001.json").read_text(encoding="utf-8"))
    assert summary["memories"]["tip"] > 0
    assert summary["distil"]["steps"] == driver.SMALL["slow.steps"]
    assert summary["digests"]["weights"] != weights_digest(base)
    policy = tmp_path / "versions/m/round-001/policy"
    assert summary["digests"]["weights"] == weights_digest(policy)
    assert (policy / "chat_template.jinja").read_text() == (base / "chat_template.jinja").read_text()
    assert (tmp_path / "runs/m/steps/round-001/distil/adapter").exists() == (adapter == "lora")
    if adapter == "lora":
        monkeypatch.chdir(tmp_path)
        run = open_run(tmp_path, "m")
        for form in FORMS:
            export(run, 1, tmp_path / form, form)
        with Agent.load(tmp_path / "merged") as merged, Agent.load(tmp_path / "adapter") as bare:
            said = [one.act("boru cleanup s1", domain="apps", scope="boru") for one in (merged, bare)]
        assert said[0] == said[1]


def test_a_checkpoint_that_knows_nothing_runs_to_the_end(children: driver.Children, tmp_path: Path) -> None:
    """Random replies win nothing and write nothing: no examples, the policy stays as it is, and the gate says why."""
    base = MAKERS["qwen3"](tmp_path / "base")
    assert children.run(tmp_path, "m", overrides(base, "lora")) == 0, driver.said(tmp_path)
    summary = json.loads((tmp_path / "runs/m/rounds/round-001.json").read_text(encoding="utf-8"))
    assert "no examples" in summary["distil"]["note"]
    assert summary["gate"]["reason"]
