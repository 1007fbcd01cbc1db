"""Forward KL over the full vocabulary: the paper's objective."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def forward_kl(
    student: Float[Tensor, "tokens vocabulary"],
    teacher: Float[Tensor, "tokens vocabulary"],
    targets: Int[Tensor, " tokens"],
) -> Float[Tensor, " tokens"]:
    """KL(sg[teacher] || student) in nats per token; zero exactly where the logits are equal.

    Args:
        student: [N, V] float32 logits.
        teacher: [N, V] float32 logits; no gradient flows into them.
        targets: not looked at: every token of the vocabulary counts.

    Paper: objective of the slow loop (forward KL, full vocabulary, stop-gradient on the teacher).
    """
    target = torch.log_softmax(teacher.detach().float(), dim=-1)
    given = torch.log_softmax(student.float(), dim=-1)
    return (target.exp() * (target - given)).sum(dim=-1)
