"""Distillation: the slow loop's training of one policy on four views.

Each step draws examples by counters, samples replies from the *current* student, scores them with the
frozen teacher (which sees hindsight) and the student (which does not) on the same reply tokens, and
adds the rehearsal anchor.
Paper: slow loop, objective and hyperparameters. Differs: frozen teacher, rehearsal anchor, per-ability means.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from opd_evolver.durable import write_text
from opd_evolver.params import Params
from opd_evolver.policy.local import LocalPolicy, weights_digest
from opd_evolver.records import Example, Record, canonical_json, digest_of
from opd_evolver.slow import checkpoint
from opd_evolver.slow.adapters import Adapter
from opd_evolver.slow.anchor import Anchor
from opd_evolver.slow.batches import Mixture
from opd_evolver.slow.examples import EXAMPLES, OUTCOMES, read_lines, seed_of
from opd_evolver.slow.metrics import rounded
from opd_evolver.slow.teacher import FrozenTeacher, frozen_copy, same_weights, start_of_round
from opd_evolver.slow.trainer import Trainer, adamw
from opd_evolver.slow.views import Outcome

OnProgress = Callable[[int, int, Mapping[str, Any]], None]


class DistilReport(Record):
    """What a distillation did. `seconds` and `tokens_per_s` are telemetry and enter no digest.

    Attributes:
        weights: digest of the new policy's weights.
        metrics: one entry per logged step.
        n_tokens: positions computed: sampled replies, student and teacher forwards.
        note: why nothing was trained, if so.
    """

    weights: str
    policy: str
    n_steps: int
    n_examples: dict[str, int]
    metrics: tuple[dict[str, Any], ...]
    n_tokens: dict[str, int]
    resumed_from: int = 0
    note: str = ""
    seconds: float = 0.0
    tokens_per_s: float = 0.0


def distil(
    policy_path: str | Path,
    base_path: str | Path,
    examples_file: Path,
    anchor_file: Path | None,
    out: Path,
    params: Params,
    round: int,
    on_progress: OnProgress | None = None,
    *,
    device: str = "cpu",
) -> DistilReport:
    """Train the policy of a round; writes `out/policy` (Hugging Face form) and `out/metrics.jsonl`.

    Called again after a kill it goes on from the last checkpoint in `out/checkpoints`, to the same bytes.

    Args:
        policy_path: the policy the round starts from; student and, frozen, teacher.
        base_path: the base policy; teacher of the anchors.
        examples_file: `examples.jsonl`; `outcomes.jsonl` beside it gives the margin.
        anchor_file: `anchors.jsonl`; None for no anchor.
        out: folder of this training.
        params: resolved science parameters.
        round: r.
        on_progress: told (steps done, steps, metrics of the last logged step) after every step.
        device: cpu or cuda; a site setting.

    Raises:
        SetupError, CorruptionError: unreadable policy, examples or checkpoint; each names its mend.
    """
    from accelerate import Accelerator

    began = time.perf_counter()
    slow = params.slow
    before = torch.get_num_threads()
    torch.set_num_threads(slow.threads)
    try:
        accelerator = Accelerator(cpu=device == "cpu")
        policy = LocalPolicy.load(
            policy_path, device=str(accelerator.device), dtype=params.policy.dtype, threads=slow.threads
        )
        examples = read_lines(examples_file, Example)
        anchors = read_lines(anchor_file, Anchor) if anchor_file is not None else []
        if not examples or slow.steps == 0:
            report = _unchanged(policy, out, examples, accelerator)
        else:
            trainer = _trainer(policy, base_path, examples, anchors, examples_file, params, round, accelerator)
            inputs = [policy.version, canonical_json(params.slow), str(params.seed), str(round)]
            lines = [canonical_json(record) for record in (*examples, *anchors)]
            report = _run(trainer, out, digest_of([*inputs, *lines]), on_progress, examples)
    finally:
        torch.set_num_threads(before)
    seconds = time.perf_counter() - began
    rate = sum(report.n_tokens.values()) / seconds
    return report.model_copy(update={"seconds": seconds, "tokens_per_s": rate})


def _trainer(
    policy: LocalPolicy,
    base_path: str | Path,
    examples: Sequence[Example],
    anchors: Sequence[Anchor],
    examples_file: Path,
    params: Params,
    round: int,
    accelerator: Any,
) -> Trainer:
    base: FrozenTeacher | None = None
    shared = False
    if anchors and params.slow.mixture.get("anchor", 0) and params.slow.weights.get("anchor", 0.0):
        loaded = LocalPolicy.load(base_path, device=str(accelerator.device), dtype=params.policy.dtype)
        shared = same_weights(loaded.model, policy.model)
        base = None if shared else frozen_copy(loaded.model)
    adapter = Adapter(policy.model, params.slow, seed_of("adapter", params.seed, round))
    teacher = start_of_round(adapter)
    sidecar = examples_file.with_name(OUTCOMES)
    outcomes = read_lines(sidecar, Outcome) if examples_file.name == EXAMPLES and sidecar.exists() else []
    return Trainer(
        policy=policy,
        adapter=adapter,
        teacher=teacher,
        base=teacher if shared else base,
        mixture=Mixture(examples, anchors, params.slow, params.seed, round),
        outcomes={one.example_id: one for one in outcomes},
        params=params,
        round=round,
        accelerator=accelerator,
        optimiser=accelerator.prepare(adamw(adapter, params.slow)),
    )


def _run(
    trainer: Trainer, out: Path, identity: str, on_progress: OnProgress | None, examples: Sequence[Example]
) -> DistilReport:
    steps, root = trainer.params.slow.steps, out / "checkpoints"
    trained, inner = trainer.adapter.trainable(), trainer.optimiser.optimizer
    begun = checkpoint.restore(root, identity, trained, inner)
    metrics = list(begun.metrics)
    main = trainer.accelerator.is_main_process
    for step in range(begun.step, steps):
        meter = trainer.step(step)
        if trainer.is_logged(step):
            metrics.append(rounded({"step": step, **meter.report()}))
        done = step + 1
        if main and (done % trainer.params.slow.checkpoint_every == 0 or done == steps):
            checkpoint.save(root, identity, checkpoint.Progress(done, metrics), trained, inner)
        if on_progress is not None:
            on_progress(done, steps, metrics[-1] if metrics else {})
    if main:
        write_text(out / "metrics.jsonl", "".join(f"{canonical_json(line)}\n" for line in metrics))
        trainer.adapter.save(trainer.policy.tokenizer, out)
    trainer.accelerator.wait_for_everyone()
    return DistilReport(
        weights=weights_digest(out / "policy"),
        policy=str(out / "policy"),
        n_steps=steps,
        n_examples=_by_ability(examples),
        metrics=tuple(metrics),
        n_tokens=trainer.n_tokens,
        resumed_from=begun.step,
    )


def _unchanged(policy: LocalPolicy, out: Path, examples: Sequence[Example], accelerator: Any) -> DistilReport:
    """A round that has nothing to teach leaves the policy as it was."""
    from opd_evolver.policy.local import save

    if accelerator.is_main_process:
        save(policy.model, policy.tokenizer, out / "policy")
        write_text(out / "metrics.jsonl", "")
    accelerator.wait_for_everyone()
    return DistilReport(
        weights=weights_digest(out / "policy"),
        policy=str(out / "policy"),
        n_steps=0,
        n_examples=_by_ability(examples),
        metrics=(),
        n_tokens={},
        note="no examples: the policy is unchanged" if not examples else "slow.steps = 0: the policy is unchanged",
    )


def _by_ability(examples: Sequence[Example]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for example in examples:
        counts[example.ability] = counts.get(example.ability, 0) + 1
    return counts
