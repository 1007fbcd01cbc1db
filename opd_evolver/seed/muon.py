"""Optimisers of the seed training: Muon for the matrices inside blocks, AdamW for all else.

Muon replaces a matrix' momentum by the nearest orthogonal matrix (Newton-Schulz), here in fp32:
`torch.optim.Muon` computes in bf16, which is slow and coarse on a CPU.
Source: Keller Jordan, "Muon: an optimizer for hidden layers"; scale after Moonlight (arXiv 2502.16982).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
N_ITERATIONS = 5
# Makes the update's root mean square that of a typical AdamW update.
RMS = 0.2


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """Nearly orthogonal matrices [n, rows, columns] with the singular directions of the given ones."""
    a, b, c = NEWTON_SCHULZ
    wide = matrices.size(1) <= matrices.size(2)
    x = matrices if wide else matrices.transpose(1, 2)
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(N_ITERATIONS):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    found: torch.Tensor = x if wide else x.transpose(1, 2)
    return found


class Muon:
    """Momentum, orthogonalised per matrix; matrices of one shape are worked on together.

    Args:
        matrices: 2-D parameters.
        momentum: of the gradient, Nesterov's form.
        weight_decay: decoupled, times the learning rate.
    """

    def __init__(self, matrices: Iterable[torch.Tensor], *, momentum: float, weight_decay: float) -> None:
        self._groups: dict[tuple[int, ...], list[torch.Tensor]] = {}
        for matrix in matrices:
            self._groups.setdefault(tuple(matrix.shape), []).append(matrix)
        self._momentum, self._weight_decay = momentum, weight_decay
        self.velocity = {
            shape: torch.zeros(len(group), *shape, device=group[0].device)
            for shape, group in sorted(self._groups.items(), key=lambda g: g[0])
        }

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """One update from the parameters' gradients."""
        for shape, velocity in self.velocity.items():
            group = self._groups[shape]
            gradient = torch.stack([matrix.grad for matrix in group if matrix.grad is not None])
            velocity.mul_(self._momentum).add_(gradient, alpha=1 - self._momentum)
            update = orthogonal(gradient.lerp(velocity, self._momentum))
            scale = learning_rate * RMS * max(shape) ** 0.5
            for matrix, change in zip(group, update, strict=True):
                matrix.mul_(1 - learning_rate * self._weight_decay).add_(change, alpha=-scale)

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"x".join(map(str, shape)): velocity for shape, velocity in self.velocity.items()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        for shape, velocity in self.velocity.items():
            velocity.copy_(state["x".join(map(str, shape))])


class Optimisers:
    """Muon and AdamW over one model, with one learning-rate schedule.

    Args:
        model: a causal LM; matrices inside its blocks go to Muon, embeddings, norms and convolutions to AdamW.
        muon_rate: Muon's peak learning rate.
        adam_rate: AdamW's.
        weight_decay: of both; norms have none.
    """

    def __init__(self, model: Any, *, muon_rate: float, adam_rate: float, weight_decay: float) -> None:
        named = list(model.named_parameters())
        matrices = [p for name, p in named if p.ndim == 2 and "embed" not in name]
        others = [p for name, p in named if p.ndim != 2 or "embed" in name]
        self._rates = (muon_rate, adam_rate)
        self.muon = Muon(matrices, momentum=0.95, weight_decay=weight_decay)
        self.adam = torch.optim.AdamW(
            [
                {"params": [p for p in others if p.ndim > 1], "weight_decay": weight_decay},
                {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=adam_rate,
            betas=(0.9, 0.98),
            foreach=False,
        )

    def step(self, factor: float) -> None:
        """One update at `factor` times the peak learning rates."""
        self.muon.step(self._rates[0] * factor)
        for group in self.adam.param_groups:
            group["lr"] = self._rates[1] * factor
        self.adam.step()

    def state_dict(self) -> dict[str, Any]:
        return {"muon": self.muon.state_dict(), "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])
