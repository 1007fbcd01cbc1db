"""What a seed training is made of. Equal settings give equal weights, however many workers share the work."""

from __future__ import annotations

from opd_evolver.records import LEVELS, Level, Record


class SeedSettings(Record):
    """Settings of one training; all of them decide the weights.

    Attributes:
        seed: of the initial weights and of all data.
        steps: optimiser steps of the first phase.
        polish_steps: steps after the decay, with fresh optimisers; only there may a fact of round 1 hold.
        worded_share: of the tips, those that say their value in other words (seed/wordings.py).
        wording_steps: steps of a second polish, with fresh optimisers, in which so many tips are worded as
            `wording_share` says, those of the drill too.
        drill_steps: steps at the beginning on the drill alone.
        levels: home levels of the families.
        kernel: words that a short convolution looks back on, its own included.
        shards: parts of a batch; gradients are added in their order. Workers share the shards out.
        shard_sequences: conversations in one shard of a batch.
        microbatches: groups of similar length that a shard is padded in.
    """

    seed: int = 0
    steps: int = 5200
    polish_steps: int = 600
    drill_steps: int = 300
    domains: tuple[str, ...] = ("sql", "apps", "shell", "grid", "household")
    levels: tuple[Level, ...] = LEVELS
    kernel: int = 4
    drill_share: float = 0.2
    worded_share: float = 0.3
    wording_steps: int = 0
    wording_share: float = 0.6
    shards: int = 2
    shard_sequences: int = 64
    microbatches: int = 8
    muon_rate: float = 5e-3
    adam_rate: float = 4e-3
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    warmup_steps: int = 100
    decay_share: float = 0.6
    polish_rate: float = 0.4

    @property
    def all_steps(self) -> int:
        return self.steps + self.polish_steps + self.wording_steps

    def begins_polish(self, step: int) -> bool:
        """Whether the optimisers are fresh at a step (0-based)."""
        return step in (self.steps, self.steps + self.polish_steps)

    def rate(self, step: int) -> float:
        """Share of the peak learning rates at a step (0-based)."""
        if step < self.steps:
            return rate_factor(step, self.steps, n_warmup=self.warmup_steps, decay_share=self.decay_share)
        done, n = step - self.steps, self.polish_steps
        if done >= n:
            done, n = done - n, self.wording_steps
        return self.polish_rate * rate_factor(done, n, n_warmup=self.warmup_steps // 4, decay_share=1.0)

    def worded(self, step: int) -> tuple[float, float]:
        """Shares of the tips that are worded at a step, and of those in the drill."""
        last = step >= self.steps + self.polish_steps
        return (self.wording_share, self.wording_share) if last else (self.worded_share, 0.0)

    def lowest_round(self, step: int) -> int:
        """The lowest round that a fact which holds may be of, where no older one stands beside it."""
        return 2 if step < self.steps else 1


def rate_factor(step: int, n_steps: int, *, n_warmup: int, decay_share: float) -> float:
    """Warm-up, plateau, linear decay to nothing: a share of the peak at a step (0-based)."""
    n_decay = max(1, int(n_steps * decay_share))
    return min(1.0, (step + 1) / max(1, n_warmup), (n_steps - step) / n_decay)
