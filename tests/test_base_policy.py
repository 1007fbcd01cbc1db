"""The base policy that a run began with: an adapter with all that lies under it, a fork with rounds of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from opd_evolver import lineage
from opd_evolver.errors import SetupError
from opd_evolver.lineage import Run, RunPaths
from opd_evolver.params import Params, PolicyParams
from opd_evolver.policy.weights import adapter_scaling, is_adapter, weights_digest
from opd_evolver.records import SCHEMA_VERSION, canonical_json, digest_of
from opd_evolver.steps import plan, prepare


def weights(file: Path, value: int) -> None:
    header = json.dumps({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes([value]))


def scaled(adapter: Path, alpha: int) -> None:
    config = {"base_model_name_or_path": "../base", "peft_type": "LORA", "r": 2, "lora_alpha": alpha}
    (adapter / "adapter_config.json").write_text(json.dumps(config))


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    weights(tmp_path / "base" / "model.safetensors", 1)
    folder = tmp_path / "adapter"
    weights(folder / "adapter_model.safetensors", 2)
    scaled(folder, 8)
    assert is_adapter(folder)
    return folder


def begun(root: Path, policy: Path, **changed: object) -> Run:
    run = lineage.open_or_create(root, "a", Params(policy=PolicyParams(path=str(policy)), **changed))
    prepare.base(run)
    return run


def test_what_lies_under_an_adapter_is_the_base_policy_too(adapter: Path) -> None:
    run = begun(adapter.parent, adapter)
    base = adapter.parent / "base" / "model.safetensors"
    assert plan.base_policy(run)[1] == weights_digest(adapter)
    assert plan.under_base(run) == digest_of([weights_digest(base.parent), adapter_scaling(adapter)])
    prepare.base(run)
    weights(base, 3)
    with pytest.raises(SetupError, match=r"is another one than `a` began with, under the adapter.*restore it"):
        prepare.base(run)
    weights(base, 1)
    scaled(adapter, 16)
    with pytest.raises(SetupError, match="under the adapter"):
        prepare.base(run)
    scaled(adapter, 8)
    prepare.base(run)
    weights(adapter / "adapter_model.safetensors", 4)
    with pytest.raises(SetupError, match="is another one than `a` began with: digest"):
        prepare.base(run)


def test_a_run_from_before_that_was_recorded_goes_on(adapter: Path) -> None:
    run = begun(adapter.parent, adapter)
    told = run.paths.run / "base.json"
    tree = json.loads(told.read_text())
    del tree["under_adapter"]
    told.write_text(json.dumps(tree))
    weights(adapter.parent / "base" / "model.safetensors", 3)
    assert plan.under_base(run) is None
    prepare.base(run)


@pytest.mark.parametrize("recorded", [True, False])
def test_what_is_finished_needs_no_base(adapter: Path, recorded: bool) -> None:
    """Whoever loads the policy names what is gone."""
    run = begun(adapter.parent, adapter)
    told = run.paths.run / "base.json"
    tree = json.loads(told.read_text())
    told.write_text(json.dumps({key: value for key, value in tree.items() if recorded or key != "under_adapter"}))
    (adapter.parent / "base").rename(adapter.parent / "elsewhere")
    prepare.base(run)
    weights(adapter / "adapter_model.safetensors", 4)
    with pytest.raises(SetupError, match="is another one than `a` began with: digest"):
        prepare.base(run)


def test_of_a_whole_model_nothing_lies_under_it(adapter: Path) -> None:
    assert plan.under_base(begun(adapter.parent, adapter.parent / "base")) is None


def test_a_fork_that_keeps_rounds_is_refused_another_base_before_it_is_opened(
    adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, base = adapter.parent, adapter.parent / "base"
    monkeypatch.chdir(root)
    (root / "params.yaml").write_text("{}")
    asked = {"policy.path": str(base)}
    monkeypatch.setattr(prepare, "check", lambda wanted: None)  # three bytes are no model that could be loaded
    prepare.base(prepare.open_for_work(root, "a", preset=None, overrides=asked))
    for round_ in (1, 2):
        tree = {"schema_version": SCHEMA_VERSION, "round": round_, "champion": round_}
        path = RunPaths(root, "a").summary(round_)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(canonical_json(tree))
    lineage.branch(root, "a", 1)
    weights(base / "model.safetensors", 3)
    with pytest.raises(SetupError, match="is another one than `a~2` began with"):
        prepare.open_for_work(root, "a", preset=None, overrides={**asked, "gate.margin": 0.5}, fork=True)
    assert lineage.open_run(root, "a").lineage == "a~2" and not lineage.exists(root, "a~3")
    # Played anew from the first round on, it begins with the weights that lie there now.
    forked = prepare.open_for_work(root, "a", preset=None, overrides={**asked, "seed": 9}, fork=True)
    prepare.base(forked)
    assert forked.lineage == "a~3" and plan.base_policy(forked)[1] == weights_digest(base)
