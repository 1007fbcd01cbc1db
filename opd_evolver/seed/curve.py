"""The learning curve of a seed training: kept over interruptions, told on stderr while it runs."""

from __future__ import annotations

import sys
import time
from typing import Any

import torch

ABILITIES = ("act", "select", "write", "maintain", "drill")


class Curve:
    """Lines of the curve, the counts since the last line, and the seconds of all attempts together.

    Args:
        n_steps: of the whole training.
        told: `state_dict()` of an interrupted training.
        done: its steps.
    """

    def __init__(self, n_steps: int, told: dict[str, Any] | None = None, done: int = 0) -> None:
        known = told or {"lines": [], "counts": torch.zeros(len(ABILITIES), 4, dtype=torch.float64), "seconds": 0.0}
        self.lines: list[dict[str, Any]] = list(known["lines"])
        self._counts: torch.Tensor = known["counts"]
        self._seconds, self._done, self._n_steps = float(known["seconds"]), done, n_steps
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        return self._seconds + time.monotonic() - self._began

    def state_dict(self) -> dict[str, Any]:
        return {"lines": self.lines, "counts": self._counts, "seconds": self.seconds}

    def add(self, counts: torch.Tensor) -> None:
        """Counts of one batch [ability, 4]: loss (nats), scored tokens, conversations, those without a miss."""
        self._counts += counts

    def tell(self, step: int) -> None:
        """Close a line after `step` steps and print it."""
        line: dict[str, Any] = {"step": step, "seconds": round(self.seconds, 1)}
        line["conversations"] = int(self._counts[:, 2].sum())
        parts = []
        for ability, (loss, n_tokens, n, n_exact) in zip(ABILITIES, self._counts.tolist(), strict=True):
            if n:
                line[ability] = {"loss": round(loss / n_tokens, 4), "exact": round(n_exact / n, 4)}
                parts.append(f"{ability} {loss / n_tokens:.3f}/{n_exact / n:.2f}")
        self.lines.append(line)
        self._counts.zero_()
        a_step = (time.monotonic() - self._began) / (step - self._done)
        left = (self._n_steps - step) * a_step / 60
        told = " · ".join((f"step {step}", f"{self.seconds:.0f} s", f"left {left:.1f} min", *parts))
        print(told, file=sys.stderr, flush=True)
