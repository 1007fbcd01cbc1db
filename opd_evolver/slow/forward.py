"""Logits at reply positions only, for a micro-batch of prompts and replies.

Rows are padded on the right: padding then follows what is scored, so a causal model needs no mask
and the fast attention kernels apply. Student and teacher prompts differ in length; their replies
are aligned by response index.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

Ids = Sequence[int]


class Layout(NamedTuple):
    """A padded micro-batch.

    Attributes:
        ids: [B, T] prompt, reply less its last token, padding.
        rows: [N] row of every scored position, replies in order.
        columns: [N] its column: that of the token before the scored one.
        targets: [N] the reply tokens.
    """

    ids: Int[Tensor, "batch time"]
    rows: Int[Tensor, " tokens"]
    columns: Int[Tensor, " tokens"]
    targets: Int[Tensor, " tokens"]

    @property
    def n_processed(self) -> int:
        """Positions computed, padding included."""
        return self.ids.numel()


def lay_out(prompts: Sequence[Ids], replies: Sequence[Ids], device: torch.device) -> Layout:
    """Pad prompts and replies to one rectangle. Every prompt and reply has at least one token."""
    lengths = [len(prompt) + len(reply) - 1 for prompt, reply in zip(prompts, replies, strict=True)]
    width = max(lengths)
    filled = [
        [*prompt, *reply[:-1]] + [0] * (width - length)
        for prompt, reply, length in zip(prompts, replies, lengths, strict=True)
    ]
    rows = [row for row, reply in enumerate(replies) for _ in reply]
    columns = [len(p) - 1 + n for p, reply in zip(prompts, replies, strict=True) for n in range(len(reply))]
    targets = [token for reply in replies for token in reply]
    return Layout(*(torch.tensor(one, dtype=torch.int64, device=device) for one in (filled, rows, columns, targets)))


# What a forward pass costs beside its tokens, in tokens: measured on one core (docs/decisions.md); an accelerator
# computes many in the time that a pass takes to be started.
_OVERHEAD_TOKENS = {"cpu": 120}
_OVERHEAD_ELSEWHERE = 8192


def overhead(device: torch.device) -> int:
    """Tokens that take as long as starting a forward pass."""
    return _OVERHEAD_TOKENS.get(device.type, _OVERHEAD_ELSEWHERE)


def cut(lengths: Sequence[int], size: int, overhead: int) -> list[slice]:
    """Runs of at most `size` of these ascending lengths, so that padding and passes together cost least.

    A run costs its number times its greatest length, plus `overhead`.
    """
    least, begin = [0.0], [0]
    for end in range(1, len(lengths) + 1):
        costs = {
            start: least[start] + (end - start) * lengths[end - 1] + overhead
            for start in range(max(0, end - size), end)
        }
        begin.append(min(costs, key=lambda start: costs[start]))
        least.append(costs[begin[-1]])
    runs = []
    end = len(lengths)
    while end:
        runs.append(slice(begin[end], end))
        end = begin[end]
    return runs[::-1]


def logits_in_runs(
    score: Callable[[Layout], Float[Tensor, "tokens vocabulary"]],
    prompts: Sequence[Ids],
    replies: Sequence[Ids],
    device: torch.device,
) -> tuple[Float[Tensor, "tokens vocabulary"], int]:
    """Logits of all replies in their order, computed in runs of like length; and the positions computed."""
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]) + len(replies[place]))
    lengths = [len(prompts[place]) + len(replies[place]) for place in order]
    found: dict[int, Tensor] = {}
    n_processed = 0
    for run in cut(lengths, len(order), overhead(device)):
        places = order[run]
        layout = lay_out([prompts[place] for place in places], [replies[place] for place in places], device)
        parts = torch.split(score(layout), [len(replies[place]) for place in places])
        found |= dict(zip(places, parts, strict=True))
        n_processed += layout.n_processed
    return torch.cat([found[place] for place in range(len(prompts))]), n_processed


class ReplyLogits:
    """Scores replies with one model, computing the vocabulary's logits at reply positions alone.

    Args:
        model: a Hugging Face causal LM (with or without adapter layers inside).

    The head is applied to the body's last hidden state where that gives the model's own logits (tried
    once on a few tokens); models that scale or cap their logits fall back to their own forward.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self._split = self._can_split()

    def __call__(self, layout: Layout) -> Float[Tensor, "tokens vocabulary"]:
        """[N, V] float32 logits at the scored positions."""
        if self._split:
            hidden = self._body()(input_ids=layout.ids, use_cache=False).last_hidden_state
            picked = hidden[layout.rows, layout.columns]
            logits: Tensor = self._head()(picked)
            return logits.float()
        first, last = int(layout.columns.min()), int(layout.columns.max()) + 1
        kept = torch.arange(first, last, device=layout.ids.device)
        kept_logits: Tensor = self.model(input_ids=layout.ids, use_cache=False, logits_to_keep=kept).logits
        return kept_logits[layout.rows, layout.columns - first].float()

    def _body(self) -> Any:
        return getattr(self.model, self.model.base_model_prefix, None)

    def _head(self) -> Any:
        return self.model.get_output_embeddings()

    def _can_split(self) -> bool:
        body, head = self._body(), self._head()
        if body is None or head is None:
            return False
        training = self.model.training
        self.model.eval()
        try:
            ids = torch.arange(4, device=next(self.model.parameters()).device)[None]
            with torch.no_grad():
                whole = self.model(input_ids=ids, use_cache=False).logits
                parts = head(body(input_ids=ids, use_cache=False).last_hidden_state)
            return whole.shape == parts.shape and torch.equal(whole, parts)
        finally:
            self.model.train(training)


def prefix_weights(
    student: Float[Tensor, "tokens vocabulary"],
    teacher: Float[Tensor, "tokens vocabulary"],
    targets: Int[Tensor, " tokens"],
    lengths: Sequence[int],
) -> Float[Tensor, " tokens"]:
    """How much each token of sampled replies counts: min(1, prod over the tokens before it of teacher / student).

    The truncated importance weight of the prefix. After a word that the teacher would not have said it has nothing to
    teach: it would return to the truth, and the student would learn to say one thing and do another.

    Args:
        student, teacher: [N, V] logits; no gradient flows.
        targets: [N] the sampled tokens of all replies, one reply after the other.
        lengths: tokens of each reply.
    """
    with torch.no_grad():
        gained = token_logprobs(teacher, targets) - token_logprobs(student, targets)
        before = [torch.cumsum(one, 0) - one for one in torch.split(gained, list(lengths))]
        return torch.cat(before).clamp(max=0.0).exp() if before else gained


def token_logprobs(
    logits: Float[Tensor, "tokens vocabulary"], targets: Int[Tensor, " tokens"]
) -> Float[Tensor, " tokens"]:
    """log pi of each target, nats."""
    return torch.log_softmax(logits, dim=-1).gather(1, targets[:, None])[:, 0]
