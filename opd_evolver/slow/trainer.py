"""One update of a distillation: sample from the current student, score by teacher and student, step.

Loss means are taken per ability over all processes and micro-batches, then weighted.
Paper: objective of the slow loop.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from opd_evolver.params import Params, SlowParams
from opd_evolver.policy.local import LocalPolicy
from opd_evolver.slow.adapters import Adapter
from opd_evolver.slow.batches import Item, Mixture, microbatches, scale_of, token_counts
from opd_evolver.slow.examples import seed_of
from opd_evolver.slow.forward import ReplyLogits, lay_out, logits_in_runs, overhead, prefix_weights, token_logprobs
from opd_evolver.slow.metrics import Meter
from opd_evolver.slow.objective import OFF_POLICY, Objective, objective
from opd_evolver.slow.objectives.forward_kl import forward_kl
from opd_evolver.slow.teacher import Teacher
from opd_evolver.slow.views import Outcome

LOG_EVERY = 10


def learning_rate(step: int, params: SlowParams) -> float:
    """Cosine to zero after a linear warm-up; `step` is 0-based."""
    warm = max(1, round(params.warmup_fraction * params.steps))
    if step < warm:
        return params.learning_rate * (step + 1) / warm
    done = (step - warm) / max(1, params.steps - warm)
    return params.learning_rate * 0.5 * (1.0 + math.cos(math.pi * done))


@dataclass
class Trainer:
    """One process of a distillation.

    Attributes:
        policy: the student; its model is trained in place.
        adapter: what of it is trained.
        teacher: scores examples; `base` scores anchors.
        accelerator: devices and processes.
    """

    policy: LocalPolicy
    adapter: Adapter
    teacher: Teacher
    base: Teacher | None
    mixture: Mixture
    outcomes: Mapping[str, Outcome]
    params: Params
    round: int
    accelerator: Any
    optimiser: Any
    n_tokens: dict[str, int] = field(default_factory=lambda: {"sampled": 0, "student": 0, "teacher": 0})

    def __post_init__(self) -> None:
        self.divergence: Objective = objective(self.params.slow.objective)
        self.score = ReplyLogits(self.policy.model)
        self.device = next(self.policy.model.parameters()).device

    def step(self, step: int) -> Meter:
        """One update; returns the step's sums, added up over processes."""
        slow, logged = self.params.slow, self.is_logged(step)
        mine = slice(self.accelerator.process_index, None, self.accelerator.num_processes)
        examples = self.mixture.examples_at(step)[mine]
        if slow.objective in OFF_POLICY:
            items = self.mixture.served(examples, self.outcomes)
        else:
            items = self.mixture.sampled(step, examples, self.policy.generate_ids)
            self.n_tokens["sampled"] += sum(len(item.reply) for item in items)
        items += self.mixture.anchors_at(step)[mine] if self.base is not None else []
        scale = scale_of(self._global_counts(items), slow.weights)
        meter = Meter()
        if logged:
            self._margin(items, meter)
        self.policy.model.train()
        for number, batch in enumerate(microbatches(items, slow.microbatch, overhead(self.device))):
            self._backward(batch, scale, meter, (step, number), logged)
        self.policy.model.eval()
        self._update(step)
        meter.sums = self.accelerator.reduce(meter.sums.to(self.device), "sum").cpu()
        return meter

    def is_logged(self, step: int) -> bool:
        return step % LOG_EVERY == 0 or step == self.params.slow.steps - 1

    def all_tokens(self) -> dict[str, int]:
        """Tokens sampled, and processed by student and teacher, of all processes."""
        total = self.accelerator.reduce(torch.tensor(list(self.n_tokens.values()), device=self.device), "sum")
        return dict(zip(self.n_tokens, (int(one) for one in total.tolist()), strict=True))

    def _global_counts(self, items: Sequence[Item]) -> dict[str, int]:
        counts = token_counts(items)
        total = self.accelerator.reduce(torch.tensor(list(counts.values()), device=self.device), "sum")
        return dict(zip(counts, (int(one) for one in total.tolist()), strict=True))

    def _backward(
        self, batch: Sequence[Item], scale: Mapping[str, float], meter: Meter, at: tuple[int, int], logged: bool
    ) -> None:
        replies = [item.reply for item in batch]
        of_student = lay_out([item.student_ids for item in batch], replies, self.device)
        scorer = self.base if batch[0].source == "anchor" and self.base is not None else self.teacher
        target, n_scored = logits_in_runs(scorer.logits, [item.teacher_ids for item in batch], replies, self.device)
        # Dropout, where a model or adapter has any, must not depend on what ran before (resume).
        torch.manual_seed(seed_of("dropout", self.params.seed, self.round, *at, self.accelerator.process_index))
        given = self.score(of_student)
        divergence = forward_kl if batch[0].source == "anchor" else self.divergence
        kl = divergence(given, target, of_student.targets)
        weights = torch.tensor(
            [scale[item.group] * item.trust for item in batch for _ in item.reply], device=self.device
        )
        sampled = batch[0].source != "anchor" and self.params.slow.objective not in OFF_POLICY
        if sampled and self.params.slow.prefix_weights:
            weights = weights * prefix_weights(given, target, of_student.targets, [len(reply) for reply in replies])
        self.accelerator.backward((kl * weights).sum())
        meter.add_batch(batch, kl, given if logged else None)
        self.n_tokens["student"] += of_student.n_processed
        self.n_tokens["teacher"] += n_scored

    def _margin(self, items: Sequence[Item], meter: Meter) -> None:
        """On the served replies of this step's states: does the teacher still know better?"""
        known = [(item, self.outcomes[item.example_id]) for item in items if item.example_id in self.outcomes]
        known = [(item, outcome) for item, outcome in known if outcome.reply_token_ids]
        for at in range(0, len(known), self.params.slow.microbatch):
            part = known[at : at + self.params.slow.microbatch]
            replies = [outcome.reply_token_ids for _, outcome in part]
            with_h = lay_out([item.teacher_ids for item, _ in part], replies, self.device)
            without_h = lay_out([item.student_ids for item, _ in part], replies, self.device)
            with torch.no_grad():
                gain = token_logprobs(self.teacher.logits(with_h), with_h.targets)
                gain -= token_logprobs(self.score(without_h), without_h.targets)
            for (item, outcome), one in zip(
                part, torch.split(gain.double(), [len(reply) for reply in replies]), strict=True
            ):
                meter.add("margin", item.source, (2.0 * outcome.episode_return - 1.0) * float(one.sum()))
                meter.add("margin_tokens", item.source, len(one))

    def _update(self, step: int) -> None:
        weights = [weight for _, weight in self.adapter.trainable()]
        for weight in weights:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        if self.accelerator.num_processes > 1:
            # Losses are divided by global counts already: gradients are added, not averaged.
            for weight in weights:
                weight.grad = self.accelerator.reduce(weight.grad, "sum")
        torch.nn.utils.clip_grad_norm_(weights, self.params.slow.clip_norm)
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(step, self.params.slow)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)


def adamw(adapter: Adapter, params: SlowParams) -> torch.optim.AdamW:
    """AdamW; weight decay on matrices only."""
    weights = [weight for _, weight in adapter.trainable()]
    groups = [
        {"params": [weight for weight in weights if weight.ndim >= 2], "weight_decay": params.weight_decay},
        {"params": [weight for weight in weights if weight.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=params.learning_rate)
