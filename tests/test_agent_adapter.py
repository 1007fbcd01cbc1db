"""Exports of adapters: what lies under them is checked, what is missing is named, and merged means merged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import Opd

from opd_evolver.agent import Agent
from opd_evolver.errors import CorruptionError, SetupError
from opd_evolver.lineage import open_run
from opd_evolver.policy.local import LocalPolicy, save
from opd_evolver.policy.weights import is_adapter, weights_digest
from opd_evolver.steps import plan


def lora(base: Path, folder: Path) -> Path:
    """A LoRA adapter over the policy in `base`, that changes what it says."""
    import torch
    from peft import LoraConfig, get_peft_model

    plain = LocalPolicy.load(base)
    torch.manual_seed(0)
    config = LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    save(get_peft_model(plain.model, config), plain.tokenizer, folder)
    return folder


@pytest.fixture
def base(project: Path) -> Path:
    """The base policy of `done`, in a place of its own; its first round was trained by LoRA."""
    told, own = project / "runs" / "done" / "base.json", project.parent / "base"
    tree = json.loads(told.read_text())
    shutil.copytree(tree["policy"], own)
    told.write_text(json.dumps({**tree, "policy": str(own)}))
    lora(own, project / "runs" / "done" / "steps" / "round-001" / "distil" / "adapter")
    return own


def configured(folder: Path, **changes: object) -> None:
    file = folder / "adapter" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def exported(opd: Opd, *more: str) -> Path:
    said = opd("export", "done", "--to", "out", *more)
    assert said.code == 0, said.err
    return Path("out")


def flipped(weights: Path) -> None:
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))


def test_an_adapter_is_checked_with_all_that_decides_what_it_says(base: Path, opd: Opd) -> None:
    out = exported(opd, "--round", "1", "--form", "adapter")
    card = json.loads((out / "agent.json").read_text())
    assert card["base_digest"] == weights_digest(base) != card["policy_digest"]
    assert card["base_digest"][:16] in (out / "README.md").read_text()
    Agent.load(out).close()
    assert exported(opd, "--round", "1", "--form", "adapter") == out
    configured(out, lora_alpha=16)
    with pytest.raises(CorruptionError, match=r'scales by .*"lora_alpha":16.*"lora_alpha":8'):
        Agent.load(out)
    configured(out, lora_alpha=8)
    Agent.load(out).close()
    flipped(base / "model.safetensors")
    with pytest.raises(CorruptionError, match=f"the weights in {base} have digest"):
        Agent.load(out)


def test_a_base_on_another_machine_is_named_with_what_mends_it(base: Path, opd: Opd) -> None:
    out = exported(opd, "--round", "1", "--form", "adapter")
    moved = base.rename(base.parent / "elsewhere")
    with pytest.raises(SetupError, match=rf"{base}, which is not on this machine.*base_model_name_or_path.*merged"):
        Agent.load(out)
    configured(out, base_model_name_or_path=str(moved))
    Agent.load(out).close()


def test_a_card_from_before_bases_were_recorded_still_loads(base: Path, opd: Opd) -> None:
    out = exported(opd, "--round", "1", "--form", "adapter")
    tree = json.loads((out / "agent.json").read_text())
    for key in ("base_digest", "scaling"):
        del tree[key]
    (out / "agent.json").write_text(json.dumps(tree))
    Agent.load(out).close()


def test_a_run_that_began_with_an_adapter_is_exported_merged(base: Path, project: Path, opd: Opd) -> None:
    began = lora(base, project.parent / "began")
    told = project / "runs" / "done" / "base.json"
    tree = json.loads(told.read_text())
    told.write_text(json.dumps({**tree, "policy": str(began), "policy_digest": weights_digest(began)}))
    refused = opd("export", "done", "--to", "out", "--round", "1", "--form", "adapter")
    assert refused.code == 2 and "--form merged has both in it" in refused.err
    expected = LocalPolicy.load(began)
    assert plan.base_policy(open_run(project, "done"))[0] == str(began)
    out = exported(opd, "--round", "0")
    shutil.rmtree(base)
    shutil.rmtree(began)
    assert not is_adapter(out / "policy")
    with Agent.load(out) as agent:
        mine, theirs = (dict(one.model.named_parameters()) for one in (agent.policy, expected))
    assert all((mine[name] == theirs[name]).all() for name in theirs)
