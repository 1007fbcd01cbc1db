"""Who the student learns from: the policy as it was when the round began, plus hindsight.

Frozen for the round: a live self-teacher was seen to collapse (privileged success 0.97 to 0.21).
Paper: teacher = the current policy with hindsight, stop-gradient.
Differs: frozen at the start of the round.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from opd_evolver.slow.adapters import Adapter
from opd_evolver.slow.forward import Layout, ReplyLogits


class Teacher(Protocol):
    """Scores replies; never trained."""

    def logits(self, layout: Layout) -> Float[Tensor, "tokens vocabulary"]:
        """[N, V] float32 at the scored positions, without gradient."""
        ...


class FrozenTeacher:
    """One model that no longer changes.

    Args:
        model: scores replies.
        frozen: a context in which `model` is what it was (an adapter switched off).
    """

    def __init__(self, model: Any, frozen: Callable[[], AbstractContextManager[Any]] = nullcontext) -> None:
        self._score = ReplyLogits(model)
        self._model, self._frozen = model, frozen

    def logits(self, layout: Layout) -> Float[Tensor, "tokens vocabulary"]:
        training = self._model.training
        self._model.eval()
        try:
            with torch.no_grad(), self._frozen():
                return self._score(layout)
        finally:
            self._model.train(training)


def start_of_round(adapter: Adapter) -> FrozenTeacher:
    """The student as it is now: with LoRA its own weights less the adapter, else a copy."""
    if adapter.peft is not None:
        return FrozenTeacher(adapter.model, adapter.frozen)
    return frozen_copy(adapter.model)


def frozen_copy(model: Any) -> FrozenTeacher:
    """A teacher that no training of `model` can move."""
    return FrozenTeacher(copy.deepcopy(model).requires_grad_(False).eval())


def same_weights(one: Any, other: Any) -> bool:
    """Whether two models are equal to the bit, so that one may stand for both."""
    mine, theirs = dict(one.named_parameters()), dict(other.named_parameters())
    names: Sequence[str] = list(mine)
    return names == list(theirs) and all(torch.equal(mine[name], theirs[name]) for name in names)
