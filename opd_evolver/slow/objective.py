"""What is minimised at every reply token. One variant per file behind one protocol; the trainer does not know which."""

from __future__ import annotations

from typing import Protocol

from jaxtyping import Float, Int
from torch import Tensor

from opd_evolver.errors import SetupError
from opd_evolver.slow.objectives.forward_kl import forward_kl
from opd_evolver.slow.objectives.sft import sft


class Objective(Protocol):
    """What the student's next-token distributions are held against, mostly the teacher's."""

    def __call__(
        self,
        student: Float[Tensor, "tokens vocabulary"],
        teacher: Float[Tensor, "tokens vocabulary"],
        targets: Int[Tensor, " tokens"],
    ) -> Float[Tensor, " tokens"]:
        """Nats per token, differentiable in `student` only.

        Args:
            student: [N, V] float32 logits of pi(. | z, y_<n).
            teacher: [N, V] float32 logits of pi(. | z, h, y_<n).
            targets: [N] the reply tokens y_n themselves.
        """
        ...


OBJECTIVES: dict[str, Objective] = {"forward_kl": forward_kl, "sft": sft}
# Those that learn from replies as they were served in rollouts that succeeded; the others sample from the student.
OFF_POLICY = frozenset({"sft"})


def objective(name: str) -> Objective:
    """The objective that `slow.objective` names.

    Raises:
        SetupError: unknown; set slow.objective to one of `OBJECTIVES`.
    """
    found = OBJECTIVES.get(name)
    if found is None:
        raise SetupError(f"slow.objective {name}", " | ".join(OBJECTIVES), "set slow.objective")
    return found
