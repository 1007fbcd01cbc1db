"""Sampling by inverse distribution function from counter-based uniforms.

Uniform number n of a request comes from Philox keyed by the request's seed, at counter n: the same seed
gives the same draws whatever batch the request is served in.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from opd_evolver.records import Sampling

_KEY_MASK = (1 << 128) - 1


def uniforms(seeds: Sequence[int], n_steps: int) -> np.ndarray:
    """[B, n_steps] float64 in [0, 1): row b, column t belongs to reply token t of request b."""
    out = np.empty((len(seeds), n_steps))
    for row, seed in enumerate(seeds):
        out[row] = np.random.Generator(np.random.Philox(key=seed & _KEY_MASK)).random(n_steps)
    return out


class Sampler:
    """Draws one token a row; a row's draw depends on its own logits and uniform only.

    Args:
        settings: temperature and top-p of every row; temperature 0 is greedy.
        seeds: of every row.
        n_steps: most tokens that will be drawn.
        device: where the logits lie.
    """

    def __init__(self, settings: Sequence[Sampling], seeds: Sequence[int], n_steps: int, device: torch.device) -> None:
        self._uniform = torch.from_numpy(uniforms(seeds, n_steps)).to(device)
        self._temperature = torch.tensor([one.temperature for one in settings], dtype=torch.float32, device=device)
        self._top_p = torch.tensor([one.top_p for one in settings], dtype=torch.float64, device=device)
        self._kinds = np.array([0 if one.temperature == 0 else (1 if one.top_p >= 1 else 2) for one in settings])

    def draw(self, logits: torch.Tensor, rows: torch.Tensor, step: int) -> torch.Tensor:
        """Token ids, [B] int64.

        Args:
            logits: [B, V] float32, one row for each of `rows`.
            rows: [B] int64, places in `settings`.
            step: how many reply tokens these rows already have.
        """
        kinds = self._kinds[rows.cpu().numpy()]
        present = set(kinds.tolist())
        if len(present) == 1:
            return self._draw_kind(present.pop(), logits, rows, step)
        chosen = torch.empty(len(rows), dtype=torch.int64, device=logits.device)
        for kind in present:
            places = torch.from_numpy(np.flatnonzero(kinds == kind)).to(logits.device)
            chosen[places] = self._draw_kind(kind, logits[places], rows[places], step)
        return chosen

    def _draw_kind(self, kind: int, logits: torch.Tensor, rows: torch.Tensor, step: int) -> torch.Tensor:
        if kind == 0:
            return logits.argmax(dim=-1)
        probability = torch.softmax(logits / self._temperature[rows, None], dim=-1)
        uniform = self._uniform[rows, step, None]
        if kind == 1:
            cumulative = probability.cumsum(dim=-1, dtype=torch.float64)
            return _inverse(cumulative, uniform * cumulative[:, -1:], cumulative.shape[1] - 1)
        ordered, order = probability.sort(dim=-1, descending=True, stable=True)
        cumulative = ordered.cumsum(dim=-1, dtype=torch.float64)
        # A token is kept while the mass before it is below top-p: the smallest set that reaches it.
        kept = (cumulative - ordered < self._top_p[rows, None]).sum(dim=-1, keepdim=True).clamp_(min=1)
        mass = cumulative.gather(1, kept - 1)
        return order.gather(1, _inverse(cumulative, uniform * mass, kept - 1)[:, None])[:, 0]


def _inverse(cumulative: torch.Tensor, target: torch.Tensor, last: torch.Tensor | int) -> torch.Tensor:
    """First place whose cumulative mass exceeds the target, at most `last`."""
    found = torch.searchsorted(cumulative, target, right=True)
    limit = last if isinstance(last, torch.Tensor) else torch.full_like(found, last)
    return torch.minimum(found, limit)[:, 0]
