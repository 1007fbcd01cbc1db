"""What a seed training is made of. Equal settings give equal weights, however many workers share the work."""

from __future__ import annotations

from opd_evolver.records import LEVELS, Level, Record


class SeedSettings(Record):
    """Settings of one training; all of them decide the weights.

    Attributes:
        seed: of the initial weights and of all data.
        steps: optimiser steps in all.
        drill_steps: steps at the beginning on the drill alone.
        levels: home levels of the families.
        kernel: words that a short convolution looks back on, its own included.
        shards: parts of a batch; gradients are added in their order. Workers share the shards out.
        shard_sequences: conversations in one shard of a batch.
        microbatches: groups of similar length that a shard is padded in.
    """

    seed: int = 0
    steps: int = 3000
    drill_steps: int = 300
    domains: tuple[str, ...] = ("sql", "apps")
    levels: tuple[Level, ...] = LEVELS
    kernel: int = 4
    drill_share: float = 0.2
    shards: int = 2
    shard_sequences: int = 64
    microbatches: int = 4
    muon_rate: float = 5e-3
    adam_rate: float = 4e-3
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    warmup_steps: int = 100
    decay_share: float = 0.6
