"""Distillation: the slow loop's training of one policy on four views.

Each step draws examples by counters, samples replies from the *current* student, scores them with the
frozen teacher (which sees hindsight) and the student (which does not) on the same reply tokens, and
adds the rehearsal anchor.
Paper: slow loop, objective and hyperparameters. Differs: frozen teacher, rehearsal anchor, per-ability means.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from opd_evolver.durable import write_text
from opd_evolver.environments import registry
from opd_evolver.params import Params
from opd_evolver.policy.local import LocalPolicy, save, weights_digest
from opd_evolver.records import Example, Record, canonical_json, digest_of
from opd_evolver.slow import anchor, checkpoint
from opd_evolver.slow.adapters import Adapter
from opd_evolver.slow.batches import Mixture
from opd_evolver.slow.examples import EXAMPLES, OUTCOMES, arm, read_lines, seed_of
from opd_evolver.slow.metrics import rounded
from opd_evolver.slow.teacher import FrozenTeacher, frozen_copy, same_weights, start_of_round
from opd_evolver.slow.trainer import Trainer, adamw
from opd_evolver.slow.views import Outcome

CHECKPOINTS, METRICS, ADAPTER = "checkpoints", "metrics.jsonl", "adapter"
OnProgress = Callable[[int, int], None]
PATIENCE = timedelta(days=30)
"""How long processes wait for one another: the first one plays all anchors, and `launch` knows when one has ended."""


class DistilReport(Record):
    """What a distillation did.

    Attributes:
        weights_digest: of the new policy.
        metrics: for the step's result: numbers of steps, examples and tokens, first and last logged values per
            ability, and (telemetry, in no digest) `tokens_per_s` and `resumed_from`.
        log: every logged step.
        note: why nothing was trained, if so.
    """

    weights_digest: str
    metrics: dict[str, Any]
    log: tuple[dict[str, Any], ...] = ()
    note: str = ""


class Distillation(Record):
    """What is trained from what.

    Attributes:
        policy_path: the policy the round starts from; student and, frozen, teacher.
        base_path: the base policy; it plays and scores the rehearsal anchor.
        examples_folder: `examples.jsonl`, and `outcomes.jsonl` for the margin.
        target: folder of the new policy, in Hugging Face form; with LoRA merged, and the bare adapter in
            `work/adapter`.
        work: checkpoints, anchors and `metrics.jsonl`.
        params: resolved science parameters.
        round: r.
        device: cpu, cuda or cuda:N; a site setting. Of several processes each has a GPU of its own.
        anchor_file: anchors built before; None builds `work/anchors.jsonl` from the environments' seed split.
    """

    policy_path: Path
    base_path: Path
    examples_folder: Path
    target: Path
    work: Path
    params: Params
    round: int
    device: str = "cpu"
    anchor_file: Path | None = None


def distil(what: Distillation, on_progress: OnProgress | None = None) -> DistilReport:
    """Train the policy of a round, in this process; `launch.distil` takes as many as `slow.processes` says.

    Called again after a kill it goes on from the last checkpoint in `work`, to the same bytes.

    Args:
        what: policies, examples, folders, parameters.
        on_progress: told (steps done, steps) after every step.

    Raises:
        SetupError, CorruptionError: unreadable policy, examples or checkpoint; each names its mend.
    """
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    params, target, work = what.params, what.target, what.work
    began, before = time.perf_counter(), torch.get_num_threads()
    torch.set_num_threads(params.slow.threads)
    try:
        group = InitProcessGroupKwargs(timeout=PATIENCE)
        accelerator = Accelerator(cpu=what.device == "cpu", kwargs_handlers=[group])
        torch.set_num_threads(params.slow.threads)  # a distributed accelerator sets its own
        device = what.device if accelerator.num_processes == 1 else str(accelerator.device)
        student = _open(what.policy_path, params, device, params.slow.threads)
        found = read_lines(what.examples_folder / EXAMPLES, Example)
        examples = arm(found, params.slow.hindsight, params.seed)
        if not examples or params.slow.steps == 0:
            return _unchanged(student, target, work, examples, accelerator)
        trainer, identity = _prepare(student, what, examples, accelerator, device)
        return _run(trainer, target, work, identity, on_progress, began)
    finally:
        torch.set_num_threads(before)


def _open(path: str | Path, params: Params, device: str, threads: int) -> LocalPolicy:
    policy = params.policy
    return LocalPolicy.load(
        path,
        device=device,
        dtype=policy.dtype,
        threads=threads,
        max_prompt_tokens=policy.max_prompt_tokens,
    )


def _prepare(
    student: LocalPolicy, what: Distillation, examples: Sequence[Example], accelerator: Any, device: str
) -> tuple[Trainer, str]:
    """A trainer, and the digest of everything that decides what it does."""
    params, round = what.params, what.round
    slow = params.slow
    rehearses = bool(slow.anchor_examples and slow.mixture.get("anchor", 0) and slow.weights.get("anchor", 0.0))
    anchors: list[anchor.Anchor] = []
    base_teacher: FrozenTeacher | None = None
    shared = False
    if rehearses:
        # Anchors are played with the serving thread count: their bytes then do not depend on `slow.threads`.
        base = _open(what.base_path, params, device, params.policy.threads)
        file = what.anchor_file or what.work / anchor.ANCHORS
        if accelerator.is_main_process and not file.exists():
            anchor.write(base, registry.loader(params.environments), params, file)
        accelerator.wait_for_everyone()
        anchors = read_lines(file, anchor.Anchor)
        shared = same_weights(base.model, student.model)
        base_teacher = None if shared else frozen_copy(base.model)
    adapter = Adapter(student.model, slow, seed_of("adapter", params.seed, round))
    teacher = start_of_round(adapter)
    if slow.gradient_checkpointing:
        adapter.keep_no_activations()
    sidecar = what.examples_folder / OUTCOMES
    outcomes = read_lines(sidecar, Outcome) if sidecar.exists() else []
    trainer = Trainer(
        policy=student,
        adapter=adapter,
        teacher=teacher,
        base=teacher if shared else base_teacher,
        mixture=Mixture(examples, anchors, slow, params.seed, round),
        outcomes={one.example_id: one for one in outcomes},
        params=params,
        round=round,
        accelerator=accelerator,
        optimiser=accelerator.prepare(adamw(adapter, slow)),
    )
    inputs = [student.version, canonical_json(slow), str(params.seed), str(round), str(accelerator.num_processes)]
    return trainer, digest_of([*inputs, *(canonical_json(record) for record in (*examples, *anchors))])


def _run(
    trainer: Trainer, target: Path, work: Path, identity: str, on_progress: OnProgress | None, began: float
) -> DistilReport:
    slow, root = trainer.params.slow, work / CHECKPOINTS
    trained, inner = trainer.adapter.trainable(), trainer.optimiser.optimizer
    begun = checkpoint.restore(root, identity, trained, inner)
    log = list(begun.metrics)
    main = trainer.accelerator.is_main_process
    if main:
        trainer.n_tokens.update(begun.tokens)
    for step in range(begun.step, slow.steps):
        meter = trainer.step(step)
        if trainer.is_logged(step):
            log.append(rounded({"step": step, **meter.report()}))
        done = step + 1
        if done % slow.checkpoint_every == 0 or done == slow.steps:
            tokens = trainer.all_tokens()
            if main:
                checkpoint.save(root, identity, checkpoint.Progress(done, log, tokens), trained, inner)
        if on_progress is not None:
            on_progress(done, slow.steps)
    if main:
        write_text(work / METRICS, "".join(f"{canonical_json(line)}\n" for line in log))
        trainer.adapter.interpolate()
        trainer.adapter.save(trainer.policy.tokenizer, target, work / ADAPTER)
    trainer.accelerator.wait_for_everyone()
    seconds, tokens = time.perf_counter() - began, trainer.all_tokens()
    return DistilReport(
        weights_digest=weights_digest(target),
        metrics={
            "steps": slow.steps,
            "mixture": trainer.mixture.counts(),
            "first": log[0] if log else {},
            "last": log[-1] if log else {},
            "tokens": tokens,
            "tokens_per_s": int((sum(tokens.values()) - sum(begun.tokens.values())) / seconds),
            "resumed_from": begun.step,
        },
        log=tuple(log),
    )


def _unchanged(
    policy: LocalPolicy, target: Path, work: Path, examples: Sequence[Example], accelerator: Any
) -> DistilReport:
    """A round that has nothing to teach leaves the policy as it was."""
    if accelerator.is_main_process:
        write_text(work / METRICS, "")
        save(policy.model, policy.tokenizer, target)
    accelerator.wait_for_everyone()
    note = "slow.steps = 0: the policy is unchanged" if examples else "no examples: the policy is unchanged"
    counts = dict(Counter(example.ability for example in examples))
    return DistilReport(
        weights_digest=weights_digest(target), metrics={"steps": 0, "mixture": counts, "note": note}, note=note
    )
