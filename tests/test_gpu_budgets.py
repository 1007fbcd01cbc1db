"""`benchmarks.gpu_budgets` asks for what a preset allows, no less."""

from __future__ import annotations

from pathlib import Path

import checkpoints
import pytest

from benchmarks.gpu_budgets import HINDSIGHT, examples, part, prompts
from opd_evolver.params import Params, load_preset, merge

SMALL = {
    "policy.dtype": "float32",
    "policy.max_prompt_tokens": 64,
    "fast.microbatch_rollouts": 3,
    "fast.act_max_new_tokens": 6,
    "fast.select_max_new_tokens": 4,
    "fast.write_max_new_tokens": 5,
    "slow.threads": 1,
    "slow.lora.r": 4,
}


@pytest.fixture
def params() -> Params:
    return merge(load_preset("qwen3-4b-1gpu"), SMALL, "test")


def test_prompts_are_as_long_as_they_may_be_and_none_like_another(params: Params) -> None:
    found = prompts(params, 9, seed=0)
    assert len(set(found)) == 9 and max(map(len, found)) == 64 and min(map(len, found)) >= 56
    assert prompts(params, 0, seed=0) == []
    asked = examples(params)
    mixture = params.slow.mixture
    assert len(asked) == mixture["act"] + mixture["write"] + mixture["select"] + mixture["maintain"]
    assert {one.ability: one.max_new_tokens for one in asked} == {"act": 6, "select": 4, "write": 5}
    assert all(len(one.teacher_ids) == len(one.student_ids) + HINDSIGHT for one in asked)


def test_each_part_runs(params: Params, tmp_path: Path) -> None:
    base = checkpoints.tiny_qwen3(tmp_path / "base")
    served = part("serve", base, params, "cpu")
    assert served["prompts"] == 3 and 3 <= served["reply tokens"] <= 18
    kept, again = (part(name, base, params, "cpu") for name in ("kept", "again"))
    assert kept["examples"] == 12 and kept["anchors"] == 4 and kept["step, s"] > 0
    assert {name: kept[name] for name in ("sampled", "student")} == {
        name: again[name] for name in ("sampled", "student")
    }
