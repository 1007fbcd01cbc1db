"""Supervised fine-tuning on served replies: the control arm of on-policy self-distillation."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def sft(
    student: Float[Tensor, "tokens vocabulary"],
    teacher: Float[Tensor, "tokens vocabulary"],
    targets: Int[Tensor, " tokens"],
) -> Float[Tensor, " tokens"]:
    """-log student[target] in nats per token.

    Args:
        student: [N, V] float32 logits.
        teacher: not looked at: there is none.
        targets: [N] the tokens of replies that were served in rollouts that succeeded.

    Source: rejection sampling, then maximum likelihood, on the same rollouts as the distillation.
    """
    return -torch.log_softmax(student.float(), dim=-1).gather(1, targets[:, None])[:, 0]
