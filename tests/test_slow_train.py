"""Distillation on tiny stock models: it learns, the anchor holds, a kill changes nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import MAKERS
from safetensors.torch import load_file
from slow_toys import ASK, KNOWN, N, World, slow, weights

from opd_evolver.errors import CorruptionError, SetupError
from opd_evolver.policy.local import LocalPolicy, save
from opd_evolver.records import Sampling
from opd_evolver.slow import checkpoint
from opd_evolver.slow.adapters import Adapter, lora_targets
from opd_evolver.slow.examples import OUTCOMES, write_set


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, World]:
    return {kind: World(tmp_path_factory.mktemp(kind), kind) for kind in (*MAKERS, "reader")}


# ── learning ──────────────────────────────────────────────────────────────────────────────────


def test_the_student_learns_what_hindsight_holds(worlds: dict[str, World]) -> None:
    world = worlds["reader"]
    report = world.train("learn", slow(slow__steps=31, slow__weights=weights(select=1.0, write=1.0)))
    first, last = report.log[0], report.log[-1]
    for ability in N:
        assert first[ability]["kl_nats"] > 0.5
        assert last[ability]["kl_nats"] < 0.25 * first[ability]["kl_nats"]
        assert {"entropy_nats", "reply_tokens", "hindsight_present", "margin_nats"} <= set(last[ability])
        assert last[ability]["hindsight_present"] == 1.0
    assert [line["step"] for line in report.log] == [0, 10, 20, 30]
    assert first["act"]["margin_nats"] > 1.0 > abs(last["act"]["margin_nats"])
    student = LocalPolicy.load(world.folder / "learn" / "policy")
    assert report.weights_digest[:12] == student.version
    greedy = Sampling(temperature=0.0, max_new_tokens=1)
    replies = student.generate_ids([(question, ASK) for question in KNOWN], greedy, [0] * len(KNOWN))
    assert [reply[0] for reply in replies] == list(KNOWN.values())


def test_the_anchor_keeps_the_base_policys_behaviour(worlds: dict[str, World]) -> None:
    def drift(weight: float) -> float:
        changed = slow(slow__steps=21, slow__weights=weights(anchor=weight), slow__learning_rate=0.01)
        return float(worlds["reader"].train(f"anchor-{weight}", changed).log[-1]["anchor"]["kl_nats"])

    assert drift(1.0) < 0.5 * drift(1e-9)


@pytest.mark.parametrize("arm", ["empty", "shuffled"])
def test_control_arms_train(worlds: dict[str, World], arm: str) -> None:
    report = worlds["lfm2"].train(arm, slow(slow__hindsight=arm))
    assert report.log[0]["act"]["hindsight_present"] == float(arm == "shuffled")
    if arm == "empty":
        assert report.log[0]["act"]["kl_nats"] < 1e-6


def test_means_are_taken_over_all_micro_batches(worlds: dict[str, World]) -> None:
    """However a step is cut, its loss and gradient are the same, but for the last bits."""
    one, many = (worlds["lfm2"].train(f"cut-{n}", slow(slow__steps=3, slow__microbatch=n)) for n in (64, 3))
    for first, last in ((one.log[0], one.log[-1]), (many.log[0], many.log[-1])):
        assert first["step"] == 0 and last["step"] == 2
    for ability in (*N, "anchor"):
        for field in ("kl_nats", "entropy_nats", "reply_tokens"):
            assert one.log[-1][ability][field] == pytest.approx(many.log[-1][ability][field], abs=2e-4)


# ── adapters ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_lora_trains_its_adapter_and_saves_it_merged_and_bare(worlds: dict[str, World], kind: str) -> None:
    world = worlds[kind]
    report = world.train("lora", slow(slow__adapter="lora", slow__lora__r=4, slow__steps=11))
    assert report.log[-1]["act"]["kl_nats"] < report.log[0]["act"]["kl_nats"]
    base = LocalPolicy.load(world.policy).model.state_dict()
    merged = LocalPolicy.load(world.folder / "lora" / "policy").model.state_dict()
    assert base.keys() == merged.keys()
    changed = {name for name in base if not torch.equal(base[name], merged[name])}
    assert changed and all("proj" in name for name in changed)
    bare = world.folder / "lora" / "work" / "adapter"
    assert (bare / "adapter_model.safetensors").exists()
    with_adapter = LocalPolicy.load(bare).model.state_dict()
    assert all(torch.allclose(with_adapter[name], merged[name], atol=1e-6) for name in merged)


@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_a_share_of_the_change_is_kept(worlds: dict[str, World], adapter: str) -> None:
    """Training is the same; only what is saved lies nearer to the first weights, also after a resume at its end."""
    world, states = worlds["qwen3"], {}
    for share in (1.0, 0.25, 0.25):
        asked = slow(slow__adapter=adapter, slow__lora__r=4, slow__steps=5, slow__interpolation=share)
        world.train(f"kept-{adapter}-{share}", asked)
        states[share] = LocalPolicy.load(world.folder / f"kept-{adapter}-{share}" / "policy").model.state_dict()
    first = LocalPolicy.load(world.policy).model.state_dict()
    moved = 0.0
    for name, weight in first.items():
        change, kept = states[1.0][name] - weight, states[0.25][name] - weight
        torch.testing.assert_close(kept, 0.25 * change, rtol=1e-4, atol=1e-6)
        moved = max(moved, float(change.abs().max()))
    assert moved > 1e-3


def test_bfloat16_weights_are_trained_as_float32_ones_and_saved_as_they_were(tmp_path: Path) -> None:
    """From the same weights, by steps that are smaller than what bfloat16 can add to most of them."""
    world, saved = World(tmp_path, "qwen3"), {}
    given = LocalPolicy.load(world.policy, dtype="bfloat16")
    save(given.model, given.tokenizer, world.policy)
    for dtype in ("float32", "bfloat16"):
        world.train(dtype, slow(policy__dtype=dtype, slow__learning_rate=1e-5, slow__steps=11))
        saved[dtype] = load_file(tmp_path / dtype / "policy" / "model.safetensors")
    assert {weight.dtype for weight in saved["bfloat16"].values()} == {torch.bfloat16}
    first = given.model.state_dict()
    assert any(not torch.equal(weight, first[name]) for name, weight in saved["bfloat16"].items())
    for name, weight in saved["float32"].items():
        assert torch.equal(saved["bfloat16"][name], weight.to(torch.bfloat16))


@pytest.mark.parametrize(("kind", "adapter"), [("lfm2", "full"), ("qwen3", "lora"), ("llama", "lora")])
def test_activations_computed_again_teach_the_same(worlds: dict[str, World], kind: str, adapter: str) -> None:
    """To the bit, dropout of the adapter included."""
    world = worlds[kind]
    asked = {"slow__adapter": adapter, "slow__lora__r": 4, "slow__steps": 3, "slow__lora__dropout": 0.3}
    kept, again = (
        world.train(f"again-{again}", slow(**asked, slow__gradient_checkpointing=again)) for again in (False, True)
    )
    assert kept.weights_digest == again.weights_digest and kept.log == again.log


def test_activations_computed_again_are_not_kept(worlds: dict[str, World]) -> None:
    def kept_bytes(again: bool) -> int:
        model = LocalPolicy.load(worlds["qwen3"].policy).model.train()
        adapter = Adapter(model, slow(slow__adapter="lora").slow, seed=0)
        if again:
            adapter.keep_no_activations()
        held: list[int] = []

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            held.append(tensor.numel() * tensor.element_size())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model.model(input_ids=torch.arange(64)[None], use_cache=False).last_hidden_state.sum().backward()
        assert any(weight.grad is not None and weight.grad.abs().sum() > 0 for _, weight in adapter.trainable())
        return sum(held)

    assert kept_bytes(again=True) < 0.4 * kept_bytes(again=False)


def test_an_architecture_that_cannot_compute_activations_again_is_told(worlds: dict[str, World]) -> None:
    model = LocalPolicy.load(worlds["qwen3"].policy).model
    model.supports_gradient_checkpointing = False
    with pytest.raises(SetupError, match=r"Qwen3ForCausalLM cannot.*gradient_checkpointing=false"):
        Adapter(model, slow().slow, seed=0).keep_no_activations()


def test_lora_targets_are_those_the_model_has(worlds: dict[str, World]) -> None:
    model = LocalPolicy.load(worlds["lfm2"].policy).model
    assert lora_targets(model, ("q_proj", "o_proj", "gate_proj")) == ["q_proj"]
    with pytest.raises(SetupError, match="has none of them"):
        lora_targets(model, ("c_attn",))


# ── resume ────────────────────────────────────────────────────────────────────────────────────

KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from slow_toys import World, slow
from opd_evolver.params import Params
import safetensors.torch
world = World.found(Path({folder!r}))

def child(name, kill):
    if (pid := os.fork()) == 0:
        kill(name)
        os._exit(7)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status

def after_a_step(name):
    world.train(name, slow(), on_progress=lambda done, n: os.kill(os.getpid(), signal.SIGKILL) if done == 5 else None)

def inside_a_checkpoint(name):
    plain, calls = safetensors.torch.save_file, []
    def save_file(*args, **kwargs):
        plain(*args, **kwargs)
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
    safetensors.torch.save_file = save_file
    world.train(name, slow())

child("killed-step", after_a_step)
child("killed-write", inside_a_checkpoint)
"""


def test_a_kill_changes_no_byte(worlds: dict[str, World]) -> None:
    world = worlds["lfm2"]
    script = KILLED.format(tests=str(Path(__file__).parent), folder=str(world.folder))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment, timeout=240)
    whole = world.train("whole", slow())
    for name, at in {"killed-step": 4, "killed-write": 2}.items():
        resumed = world.train(name, slow())
        assert resumed.metrics["resumed_from"] == at
        assert resumed.weights_digest == whole.weights_digest
        assert resumed.log == whole.log
        assert resumed.metrics["tokens"] == whole.metrics["tokens"]
        metrics = [(world.folder / run / "work" / "metrics.jsonl").read_bytes() for run in (name, "whole")]
        assert metrics[0] == metrics[1]


def test_the_same_training_gives_the_same_bytes_and_another_seed_others(worlds: dict[str, World]) -> None:
    world = worlds["qwen3"]
    first, again = world.train("one", slow()), world.train("two", slow())
    assert (first.weights_digest, first.log) == (again.weights_digest, again.log)
    assert world.train("three", slow(seed=1)).weights_digest != first.weights_digest


def test_a_checkpoint_of_another_training_is_refused(worlds: dict[str, World]) -> None:
    world = worlds["llama"]
    world.train("mixed", slow())
    with pytest.raises(SetupError, match="other parameters or inputs"):
        world.train("mixed", slow(slow__learning_rate=0.001))
    [folder] = checkpoint.folders(world.folder / "mixed" / "work" / "checkpoints")
    file = folder / checkpoint.WEIGHTS
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CorruptionError, match="cannot read"):
        world.train("mixed", slow())


# ── nothing to teach ──────────────────────────────────────────────────────────────────────────


def test_no_examples_leave_the_policy_as_it_was(worlds: dict[str, World], tmp_path: Path) -> None:
    world = worlds["llama"]
    write_set(tmp_path, [], [])
    seen: list[int] = []
    report = world.train("none", slow(), lambda done, n: seen.append(done), examples_folder=tmp_path, anchor_file=None)
    assert report.note == "no examples: the policy is unchanged"
    assert report.weights_digest[:12] == LocalPolicy.load(world.policy).version
    assert (report.metrics["steps"], seen) == (0, [])
    assert world.train("zero", slow(slow__steps=0)).weights_digest == report.weights_digest


def test_a_missing_example_file_is_an_error(worlds: dict[str, World], tmp_path: Path) -> None:
    world = worlds["llama"]
    with pytest.raises(CorruptionError, match=r"examples\.jsonl"):
        world.train("missing", slow(), examples_folder=tmp_path, anchor_file=None)


def test_without_outcomes_there_is_no_margin(worlds: dict[str, World], tmp_path: Path) -> None:
    world = World(tmp_path, "qwen3")
    (world.examples / OUTCOMES).unlink()
    report = world.train("bare", slow(slow__steps=1))
    assert "margin_nats" not in report.log[0]["act"]
    assert worlds


def test_sft_learns_from_won_replies_alone(worlds: dict[str, World]) -> None:
    """Served replies of odd questions won and hold the answer; those of even ones lost and hold a wrong one."""
    world = worlds["reader"]
    world.train("sft", slow(slow__steps=31, slow__objective="sft", slow__weights=weights(select=1.0, write=1.0)))
    student = LocalPolicy.load(world.folder / "sft" / "policy")
    greedy = Sampling(temperature=0.0, max_new_tokens=1)
    asked = list(KNOWN)
    replies = student.generate_ids([(question, ASK) for question in asked], greedy, [0] * len(asked))
    assert all(reply[0] == KNOWN[question] for question, reply in list(zip(asked, replies, strict=True))[1::2])
    assert not any(reply[0] == 109 for reply in replies)
