"""The learning curve of a seed training, and how it is told while it runs."""

from __future__ import annotations

import sys
from typing import Any

import torch

ABILITIES = ("act", "select", "write", "drill")


def measured(sums: torch.Tensor, step: int, seconds: float) -> dict[str, Any]:
    """Per ability: loss (nats per scored token) and the share of conversations without a miss."""
    line: dict[str, Any] = {"step": step, "seconds": round(seconds, 1), "conversations": int(sums[:, 2].sum())}
    for ability, (loss, n_tokens, n, n_exact) in zip(ABILITIES, sums.tolist(), strict=True):
        if n:
            line[ability] = {"loss": round(loss / n_tokens, 4), "exact": round(n_exact / n, 4)}
    return line


def report(line: dict[str, Any], n_left: int, seconds_a_step: float) -> None:
    parts = [f"{name} {line[name]['loss']:.3f}/{line[name]['exact']:.2f}" for name in ABILITIES if name in line]
    left = n_left * seconds_a_step
    print(
        f"step {line['step']} · {line['seconds']:.0f} s · left {left / 60:.1f} min · " + " · ".join(parts),
        file=sys.stderr,
        flush=True,
    )
