"""Counter-based randomness: every draw is a function of what it is for, never of how many came before.

So the number of workers, the order in which they run and any restart change nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


def _bits(n_bits: int, *counter: str | int) -> int:
    raw = "\x1f".join(str(part) for part in counter).encode()
    return int.from_bytes(hashlib.sha256(raw).digest()[:8], "big") >> (64 - n_bits)


def call_seed(seed: int, round: int, rollout_id: str, ability: str, turn: int) -> int:
    """The sampling seed of one generation, 63 bits.

    Args:
        seed: the run's seed.
        round: r.
        rollout_id: which rollout.
        ability: select, act, write or maintain.
        turn: 0-based call of that ability within the rollout.
    """
    return _bits(63, "call", seed, round, rollout_id, ability, turn)


def uniform(seed: int, round: int, rollout_id: str, purpose: str) -> float:
    """A uniform number in [0, 1) for one purpose, e.g. the randomised inclusion of one entry."""
    return float(_bits(53, "uniform", seed, round, rollout_id, purpose) / 2**53)


def shuffled(items: Iterable[T], key: Callable[[T], str], seed: int, *purpose: str | int) -> list[T]:
    """A fixed random order that depends on each item's own key alone, not on the order in which items come."""
    return sorted(items, key=lambda item: (_bits(64, "order", seed, *purpose, key(item)), key(item)))
