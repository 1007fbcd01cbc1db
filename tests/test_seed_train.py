"""The seed training: the same bytes however it is split and interrupted; what it saves is a stock policy."""

from __future__ import annotations

import subprocess
import sys
import time
from importlib import resources
from pathlib import Path

import psutil
import pytest
import torch
from seed_world import DOMAINS, TINY

from opd_evolver.environments.conventions import generator
from opd_evolver.errors import CorruptionError, SetupError
from opd_evolver.policy.local import LocalPolicy
from opd_evolver.records import GenerationRequest, Message, Prompt, Sampling, Segment
from opd_evolver.seed import act_data
from opd_evolver.seed.__main__ import card, main
from opd_evolver.seed.data import batch
from opd_evolver.seed.muon import Muon, orthogonal
from opd_evolver.seed.settings import SeedSettings, rate_factor
from opd_evolver.seed.train import Trainer, train

# Two workers, killed once a state is there.
SCRIPT = """
import sys
from pathlib import Path
from opd_evolver.seed.settings import SeedSettings, rate_factor
from opd_evolver.seed.train import train
train(SeedSettings.model_validate_json(sys.argv[1]), Path(sys.argv[2]), n_workers=2, save_every=6)
print("done")
"""


def weights(model: torch.nn.Module) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}


@pytest.mark.timeout(900)
def test_killed_and_resumed_with_other_workers_it_gives_the_same_bytes(tmp_path: Path) -> None:
    whole = train(TINY, tmp_path / "whole", n_workers=1)
    work = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, TINY.model_dump_json(), str(work)])
    while process.poll() is None and not list(work.glob("*.pt")):
        time.sleep(0.01)
    workers = psutil.Process(process.pid).children() if process.poll() is None else []
    process.kill()
    assert process.wait() == -9, "the training ended before it could be killed"
    _, left = psutil.wait_procs(workers, timeout=30)
    assert not left, "a worker outlived the training"
    saved = torch.load(next(work.glob("*.pt")), weights_only=True)
    assert saved["step"] in (6, 12, 18)
    resumed = train(TINY, work, n_workers=1)
    assert weights(resumed.model) == weights(whole.model)
    assert resumed.curve[-1]["act"] == whole.curve[-1]["act"]


@pytest.mark.timeout(900)
def test_data_made_ahead_for_a_device_train_the_same_policy(tmp_path: Path) -> None:
    """`cpu:0` goes the accelerator's way; only the kind of arithmetic is the CPU's, so even the bytes are the same."""
    short = TINY.model_copy(update={"steps": 6, "polish_steps": 2, "drill_steps": 2})
    whole = train(short, tmp_path / "whole", n_workers=1)
    states: list[int] = []

    def stop(model: object, tok: object, step: int) -> None:
        states.append(step)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(short, tmp_path / "ahead", n_workers=2, save_every=5, on_save=stop, device="cpu:0")
    ahead = train(short, tmp_path / "ahead", n_workers=1, device="cpu:0")
    assert states == [5] and weights(ahead.model) == weights(whole.model)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_first_steps_are_the_cpus_up_to_rounding(tmp_path: Path) -> None:
    cpu, gpu = Trainer(TINY), Trainer(TINY, device="cuda")
    for number in range(3):
        torch.testing.assert_close(cpu.step(number), gpu.step(number), rtol=1e-2, atol=0.5)


def test_a_device_that_is_not_there_is_explained(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="--device cpu"):
        train(TINY, tmp_path, device="nonsense")


def test_a_state_of_other_settings_is_not_gone_on_with(tmp_path: Path) -> None:
    short = TINY.model_copy(update={"steps": 2, "polish_steps": 1, "wording_steps": 1})
    states: list[int] = []
    train(short, tmp_path, n_workers=1, save_every=2, on_save=lambda model, tok, step: states.append(step))
    assert states == [2]
    one = train(short.model_copy(update={"seed": 1}), tmp_path, n_workers=1)
    assert one.curve[-1]["step"] == 4


def test_a_torn_state_is_explained(tmp_path: Path) -> None:
    short = TINY.model_copy(update={"steps": 2, "polish_steps": 1, "wording_steps": 1})

    def stop(model: object, tok: object, step: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(short, tmp_path, n_workers=1, save_every=2, on_save=stop)
    saved = next(tmp_path.glob("*.pt"))
    saved.write_bytes(saved.read_bytes()[:1000])
    with pytest.raises(CorruptionError, match=r"rm .*\.pt"):
        train(short, tmp_path, n_workers=1)


def test_more_workers_than_shards_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="--workers 1"):
        train(TINY, tmp_path, n_workers=3)


def test_padding_changes_no_gradient() -> None:
    """A shard padded in one piece or in four gives the same gradient up to rounding."""
    gradients = []
    for n in (1, 4):
        trainer = Trainer(TINY.model_copy(update={"microbatches": n}))
        drawn = batch(trainer.encoder, trainer.domains, 8, drill_share=0.2, key=("padding",))
        counts = trainer._backward(drawn)
        assert counts[:, 1].sum() == sum(sum(one.scored) for one in drawn)
        assert counts[:, 2].sum() == 8
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.parameters if p.grad is not None]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-4)


def test_the_loss_is_the_stock_models_own() -> None:
    trainer = Trainer(TINY)
    (one,) = batch(trainer.encoder, trainer.domains, 1, drill_share=0.0, key=("loss",))
    ids = torch.tensor([one.token_ids])
    labels = torch.where(torch.tensor([one.scored]), ids, -100)
    expected = trainer.model(input_ids=ids, labels=labels).loss.item() * sum(one.scored)
    assert trainer._backward([one])[:, 0].sum().item() == pytest.approx(expected, rel=1e-4)


def test_muon_orthogonalises_each_matrix_alone() -> None:
    torch.manual_seed(0)
    for shape in ((5, 24, 24), (3, 48, 24), (3, 24, 48)):
        left, _, right = torch.linalg.svd(torch.randn(shape), full_matrices=False)
        made = orthogonal(left * torch.linspace(0.1, 1.0, 24) @ right)
        assert made.shape == shape
        values = torch.linalg.svdvals(made)
        assert values.min() > 0.6 and values.max() < 1.3
    one, other = torch.randn(24, 24), torch.randn(24, 24)
    together = orthogonal(torch.stack([one, other]))
    torch.testing.assert_close(together[0], orthogonal(one[None])[0], rtol=1e-4, atol=1e-5)


def test_muon_steps_against_the_gradient_with_a_fixed_size() -> None:
    matrix = torch.nn.Parameter(torch.zeros(24, 24))
    muon = Muon([matrix], momentum=0.95, weight_decay=0.0)
    matrix.grad = torch.eye(24) * 1e-3
    muon.step(0.01)
    assert matrix.diagonal().max() < 0
    assert matrix.detach().pow(2).mean().sqrt().item() == pytest.approx(0.01 * 0.2, rel=0.4)


def test_matrices_in_blocks_go_to_muon_and_the_rest_to_adamw() -> None:
    trainer = Trainer(TINY)
    n_muon = sum(velocity.numel() for velocity in trainer.optimisers.muon.velocity.values())
    n_adam = sum(p.numel() for group in trainer.optimisers.adam.param_groups for p in group["params"])
    assert n_muon + n_adam == sum(p.numel() for p in trainer.parameters)
    assert n_adam < 0.2 * n_muon
    embedding = trainer.model.get_input_embeddings().weight
    assert any(p is embedding for group in trainer.optimisers.adam.param_groups for p in group["params"])


def test_the_learning_rate_warms_up_stays_and_decays() -> None:
    factors = [rate_factor(step, 1000, n_warmup=100, decay_share=0.6) for step in range(1000)]
    assert factors[0] == pytest.approx(0.01) and factors[99] == 1.0 and factors[399] == 1.0
    assert factors[700] == pytest.approx(0.5) and 0 < factors[-1] < 0.01


def test_the_command_saves_a_policy_that_is_served_as_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "opd_evolver.seed.__main__.SeedSettings",
        lambda **given: SeedSettings(**{**given, "shard_sequences": 2}),
    )
    out = tmp_path / "policy"
    command = ["--out", str(out), "--work", str(tmp_path), "--steps", "2", "--drill-steps", "1"]
    command += ["--polish-steps", "1", "--workers", "1"]
    assert main(command) == 0
    assert {"training.json", "README.md", "model.safetensors", "config.json", "tokenizer.json"} <= {
        path.name for path in out.iterdir()
    }
    assert not list(tmp_path.glob("*.pt")), "the state goes once the weights are saved"
    told = (out / "README.md").read_text(encoding="utf-8")
    assert "with seed 0" in told and "on cpu" in told and "opd evaluate FOLDER" in told
    policy = LocalPolicy.load(out)
    asked = Prompt(
        ability="act", messages=(Message(role="user", segments=(Segment(text="act task zora count late"),)),)
    )
    (reply,) = policy.generate(
        [GenerationRequest(prompt=asked, sampling=Sampling(temperature=0.0, max_new_tokens=4), seed=0)]
    )
    assert reply.token_ids


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--out", "."], "you are in that folder"),
        (["--out", ".."], "you are in that folder"),
        (["--out", "file"], "cannot write --out file: Not a directory"),
        (["--out", "file/policy"], "cannot write --out file/policy: "),
        (["--out", "closed/policy"], "cannot write --out closed/policy: "),
        (["--out", "policy", "--steps", "0", "--polish-steps", "0"], "0 training steps"),
        (["--out", "policy", "--polish-steps", "-1"], "-1 training steps"),
    ],
)
def test_what_cannot_be_trained_or_saved_is_refused_before_the_training(
    words: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("opd_evolver.seed.train.train", lambda *_, **__: pytest.fail("it trains"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Path("file").touch()
    Path("closed").symlink_to("/proc/self/fdinfo")  # no mode binds root, but there nobody can make a folder
    before = sorted(Path().iterdir())
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and said in shown and "mend: " in shown and shown.count("\n") == 1
    assert sorted(Path().iterdir()) == before


def test_only_in_the_polish_may_a_fact_of_round_one_hold() -> None:
    settings = TINY.model_copy(update={"warmup_steps": 4})
    assert [settings.lowest_round(step) for step in (0, 15, 16, 19)] == [2, 2, 1, 1]
    rates = [settings.rate(step) for step in range(settings.all_steps)]
    assert rates[15] < 0.2 < rates[16] == settings.polish_rate > rates[19] > 0

    def recited(lowest: int) -> set[str]:
        conversations = [act_data.sample(DOMAINS[0], generator("rounds", n), lowest) for n in range(300)]
        told = [one for one in conversations if all(s.kind != "hindsight" for s in one.turns[0][0].segments)]
        replies = [reply.text.split() for one in told for _, reply in one.turns if reply.scored]
        return {words[2] for words in replies if words[2].startswith("r")}

    assert "r1" in recited(1) and "r1" not in recited(2) and "r2" in recited(2)


def test_only_the_shipped_policys_card_bears_its_measures() -> None:
    settings = SeedSettings().model_dump(mode="json")
    shipped = resources.files("opd_evolver").joinpath("assets/seed-policy/README.md").read_text(encoding="utf-8")
    assert card({"settings": settings, "device": "cpu"}) == shipped
    for other in ({"settings": {**settings, "seed": 1}, "device": "cpu"}, {"settings": settings, "device": "a GPU"}):
        assert "0.996" not in card(other) and "Knows" in card(other)


# ── the committed policy ──────────────────────────────────────────────────────────────────────


def test_the_committed_policy_is_small_and_stock() -> None:
    policy = LocalPolicy.load("seed")
    built = Trainer(SeedSettings()).model
    assert type(policy.model).__name__ == "Lfm2ForCausalLM"
    shapes = {name: tensor.shape for name, tensor in policy.model.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in built.state_dict().items()}
    assert sum(p.numel() for p in policy.model.parameters()) <= 1_000_000


def test_the_committed_policy_knows_the_mechanics() -> None:
    """Fresh seed data, teacher-forced: most replies have no miss (guesses cannot be foreseen)."""
    trainer = Trainer(TINY)
    trainer.model.load_state_dict(LocalPolicy.load("seed").model.state_dict())
    drawn = batch(trainer.encoder, trainer.domains, 150, drill_share=0.0, key=("committed",))
    with torch.enable_grad():
        counts = trainer._backward(drawn)
    exact = (counts[:, 3] / counts[:, 2]).tolist()
    assert exact[0] > 0.5 and exact[1] > 0.7 and exact[2] > 0.7
