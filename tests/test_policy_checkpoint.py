"""Checkpoints: clear refusals, digests of content alone, durable saving, adapters, swapping weights."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import checkpoints
import pytest
import torch

from opd_evolver.errors import CorruptionError, SetupError
from opd_evolver.policy import checkpoint, weights
from opd_evolver.policy.local import LocalPolicy, save, weights_digest
from opd_evolver.policy.weights import SINGLE
from opd_evolver.records import Sampling

GREEDY = Sampling(temperature=0.0, max_new_tokens=6)
PROMPTS = [(5, 6, 7), (8, 9)]


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.tiny_qwen3(tmp_path_factory.mktemp("stock") / "qwen3")


@pytest.fixture
def folder(stock: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stock, tmp_path / "policy"))


def test_missing_folder_and_files(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"no folder .*policy\.path"):
        LocalPolicy.load(tmp_path / "nowhere")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(SetupError, match="no tokenizer"):
        LocalPolicy.load(folder)
    (folder / SINGLE).unlink()
    with pytest.raises(SetupError, match="no weights"):
        LocalPolicy.load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(SetupError, match=r"no config\.json"):
        LocalPolicy.load(folder)


@pytest.mark.parametrize("n_bytes", [0, 5, 40, -1, -4096])
def test_truncated_weights_are_corruption(folder: Path, n_bytes: int) -> None:
    weights = folder / SINGLE
    whole = weights.stat().st_size
    os.truncate(weights, n_bytes if n_bytes >= 0 else whole + n_bytes)
    with pytest.raises(CorruptionError, match=r"whole safetensors|header"):
        LocalPolicy.load(folder)
    with pytest.raises(CorruptionError):
        weights_digest(folder)


def test_missing_tensors_are_never_random(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / SINGLE)
    tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
    with pytest.raises(CorruptionError, match=r"layers\.1\.mlp\.up_proj"):
        LocalPolicy.load(folder)


def test_missing_shard(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    with pytest.raises(CorruptionError, match="model-1"):
        LocalPolicy.load(folder)


def test_pickled_weights_are_refused_unread(folder: Path) -> None:
    (folder / SINGLE).unlink()
    (folder / "pytorch_model.bin").write_bytes(b"never unpickled")
    with pytest.raises(SetupError, match="pickled"):
        LocalPolicy.load(folder)


def test_unknown_architecture_and_own_code(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    changed = {**config, "model_type": "zorawan", "auto_map": {"AutoModelForCausalLM": "evil.Evil"}}
    (folder / "config.json").write_text(json.dumps(changed))
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    with pytest.raises(SetupError, match="zorawan"):
        LocalPolicy.load(folder)


def test_unknown_device_and_too_long_prompts(folder: Path) -> None:
    with pytest.raises(SetupError, match="device"):
        LocalPolicy.load(folder, device="cuda:99")
    with pytest.raises(SetupError, match="1024"):
        LocalPolicy.load(folder, max_prompt_tokens=4096)


def test_seed_names_the_packaged_policy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path) -> None:
    monkeypatch.setattr(weights.resources, "files", lambda package: tmp_path)
    with pytest.raises(SetupError, match="make seed-policy"):
        checkpoint.resolve("seed")
    (tmp_path / "assets").mkdir()
    os.rename(folder, tmp_path / "assets" / "seed-policy")
    assert LocalPolicy.load("seed").version


def test_digest_is_of_content_alone(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    digest = weights_digest(folder)
    policy = LocalPolicy.load(folder)
    assert policy.version == digest[:12]
    save(policy.model, policy.tokenizer, tmp_path / "again")
    assert weights_digest(tmp_path / "again") == digest
    again = LocalPolicy.load(tmp_path / "again")
    assert again.tokenizer.chat_template == policy.tokenizer.chat_template
    assert again.generate_ids(PROMPTS, GREEDY, [0, 1]) == policy.generate_ids(PROMPTS, GREEDY, [0, 1])

    policy.model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    assert weights_digest(tmp_path / "sharded") == digest

    tensors = load_file(folder / SINGLE)
    save_file(tensors, folder / SINGLE, metadata={"format": "pt", "note": "other"})
    assert weights_digest(folder) == digest
    next(iter(tensors.values())).view(-1)[0] += 1
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
    assert weights_digest(folder) != digest


def test_saving_replaces_the_whole_folder_and_survives_a_kill(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = LocalPolicy.load(folder)
    old = weights_digest(folder)
    (folder / "stale.txt").write_text("of the old policy")
    with torch.no_grad():
        next(policy.model.parameters()).add_(1)
    rename = os.replace
    for fatal in (1, 2):
        calls = 0

        def killed(source: Path, target: Path, fatal: int = fatal) -> None:
            nonlocal calls
            calls += 1
            if calls == fatal:
                raise KeyboardInterrupt
            rename(source, target)

        monkeypatch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            save(policy.model, policy.tokenizer, folder)
        monkeypatch.setattr(os, "replace", rename)
        assert weights_digest(checkpoint.resolve(folder)) == old
    save(policy.model, policy.tokenizer, folder)
    assert weights_digest(folder) != old
    assert not (folder / "stale.txt").exists() and sorted(one.name for one in folder.parent.iterdir()) == ["policy"]


def test_sync_swaps_weights_in_place(folder: Path, tmp_path: Path, stock: Path) -> None:
    policy = LocalPolicy.load(stock)
    other = checkpoints.tiny_qwen3(tmp_path / "other", seed=1)
    model, before = policy.model, policy.generate_ids(PROMPTS, GREEDY, [0, 1])
    policy.sync("round-001", other)
    assert policy.model is model and policy.version == "round-001"
    expected = LocalPolicy.load(other).generate_ids(PROMPTS, GREEDY, [0, 1])
    assert policy.generate_ids(PROMPTS, GREEDY, [0, 1]) == expected != before
    with pytest.raises(SetupError, match="same architecture"):
        policy.sync("wrong", checkpoints.tiny_llama(tmp_path / "llama"))
    assert policy.version == "round-001"


def adapted(base: Path, folder: Path) -> Any:
    """A model with a LoRA over `base`; the adapter is saved in `folder`."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    plain = LocalPolicy.load(base)
    tuned = get_peft_model(plain.model, config).eval()
    save(tuned, plain.tokenizer, folder)
    return tuned


def test_adapter_over_its_base(stock: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(stock, tmp_path / "base"))
    plain = LocalPolicy.load(base)
    tuned = adapted(base, tmp_path / "adapter")
    recorded = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        expected = tuned(input_ids=ids).logits
    # The trainer serves the peft model itself while it trains.
    served = LocalPolicy(tuned, plain.tokenizer, "training").generate_ids(PROMPTS, GREEDY, [0, 1])
    versions = set()
    for name in (str(base), "../base"):
        recorded["base_model_name_or_path"] = name
        (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(recorded))
        policy = LocalPolicy.load(tmp_path / "adapter")
        with torch.no_grad():
            assert torch.allclose(policy.model(input_ids=ids).logits, expected, atol=1e-4)
        assert policy.generate_ids(PROMPTS, GREEDY, [0, 1]) == served
        versions.add(policy.version)
    assert len(versions) == 1 and versions.isdisjoint({plain.version})
    recorded["base_model_name_or_path"] = str(tmp_path / "gone")
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(recorded))
    with pytest.raises(SetupError, match="gone"):
        LocalPolicy.load(tmp_path / "adapter")


@pytest.mark.parametrize(
    "change, seen",
    [
        (
            lambda name, one: (name.replace("base_model.model.model", "base_model.model"), one),
            r"lacks .*q_proj\.lora_A",
        ),
        (lambda name, one: (f"module.{name}", one), r"lacks .*q_proj\.lora_A"),
        (lambda name, one: None if "v_proj" in name else (name, one), r"lacks .*v_proj\.lora_A.* …;"),
        (lambda name, one: None if "lora_A" in name else (name, one), r"lacks .*q_proj\.lora_A"),
        (lambda name, one: (name.replace("layers.1.", "layers.0.").replace("q_p", "o_p"), one), "lacks .*layers.1"),
        (lambda name, one: (name, one[: len(one) // 2].contiguous()), "cannot put the adapter"),
    ],
    ids=["other prefix", "more prefix", "half the modules", "no lora_A", "other modules", "half of each"],
)
def test_an_adapter_that_does_not_fit_is_never_served(stock: Path, tmp_path: Path, change: Any, seen: str) -> None:
    from safetensors.torch import load_file, save_file

    adapted(stock, tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    changed = [change(name, one) for name, one in load_file(file).items()]
    save_file(dict(one for one in changed if one is not None), file)
    with pytest.raises(SetupError, match=seen):
        LocalPolicy.load(tmp_path / "adapter")


def test_tensors_that_an_adapter_does_not_describe_are_named(stock: Path, tmp_path: Path) -> None:
    adapted(stock, tmp_path / "adapter")
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "target_modules": ["q_proj"]}))
    with pytest.raises(CorruptionError, match=r"holds .*v_proj\.lora_A"):
        LocalPolicy.load(tmp_path / "adapter")


def test_an_adapter_that_cannot_be_merged_is_refused(stock: Path, tmp_path: Path) -> None:
    from peft import PromptTuningConfig, get_peft_model

    plain = LocalPolicy.load(stock)
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    save(get_peft_model(plain.model, config), plain.tokenizer, tmp_path / "adapter")
    with pytest.raises(SetupError, match="is a PROMPT_TUNING; expected one that can be merged"):
        LocalPolicy.load(tmp_path / "adapter")
