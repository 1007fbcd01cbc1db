"""What is logged of a step, per ability: KL, entropy, reply length, hindsight present, and the margin.

Margin: mean over reply tokens of (2r - 1) * (log pi_teacher(y|z,h) - log pi_student(y|z)) on replies that were
*served* and whose return r is known: above zero, the teacher still knows better.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from opd_evolver.slow.batches import SOURCES, Item, Source

FIELDS = ("kl", "tokens", "replies", "entropy", "hindsight", "margin", "margin_tokens")


class Meter:
    """Sums of one step, per source: [sources, fields] float64, so that processes can be added up."""

    def __init__(self) -> None:
        self.sums = torch.zeros(len(SOURCES), len(FIELDS), dtype=torch.float64)

    def add(self, field: str, source: Source, value: float) -> None:
        self.sums[SOURCES.index(source), FIELDS.index(field)] += value

    def add_batch(
        self,
        items: Sequence[Item],
        kl: Float[Tensor, " tokens"],
        student: Float[Tensor, "tokens vocabulary"] | None,
    ) -> None:
        """Add a micro-batch.

        Args:
            items: in the order of their tokens.
            kl: nats per token.
            student: logits, for the entropy; None on steps that are not logged.
        """
        lengths = [len(item.reply) for item in items]
        per_item = [float(part.sum()) for part in torch.split(kl.detach().double(), lengths)]
        entropies = [0.0] * len(items)
        if student is not None:
            logs = torch.log_softmax(student.detach(), dim=-1)
            entropies = [float(part.sum()) for part in torch.split(-(logs.exp() * logs).sum(-1).double(), lengths)]
        for item, nats, entropy in zip(items, per_item, entropies, strict=True):
            self.add("kl", item.source, nats)
            self.add("tokens", item.source, len(item.reply))
            self.add("replies", item.source, 1)
            self.add("entropy", item.source, entropy)
            self.add("hindsight", item.source, float(item.has_hindsight))

    def report(self) -> dict[str, dict[str, float]]:
        """Means per source that was seen: nats per token, tokens per reply, shares."""
        found: dict[str, dict[str, float]] = {}
        for source, row in zip(SOURCES, self.sums.tolist(), strict=True):
            one = dict(zip(FIELDS, row, strict=True))
            if not one["tokens"]:
                continue
            found[source] = {
                "kl_nats": one["kl"] / one["tokens"],
                "entropy_nats": one["entropy"] / one["tokens"],
                "reply_tokens": one["tokens"] / one["replies"],
            }
            if source != "anchor":
                found[source]["hindsight_present"] = one["hindsight"] / one["replies"]
            if one["margin_tokens"]:
                found[source]["margin_nats"] = one["margin"] / one["margin_tokens"]
        return found


def rounded(value: Any, digits: int = 6) -> Any:
    """Floats of a metrics tree cut to what means something."""
    if isinstance(value, dict):
        return {key: rounded(one, digits) for key, one in value.items()}
    return round(value, digits) if isinstance(value, float) else value
