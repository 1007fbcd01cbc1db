"""Batched generation with a cache, token-in and token-out, without `model.generate`'s overhead."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from opd_evolver.errors import SetupError
from opd_evolver.policy.cache import joinable, joined, reply_cache
from opd_evolver.policy.sampling import Sampler
from opd_evolver.records import Sampling

# Dropping finished rows copies the cache: worth it once this share of the batch is done.
_COMPACT_AT = 0.25
# Prompt tokens of one prefill forward: what a core's cache holds; on an accelerator what its memory can spare.
_PREFILL_TOKENS = {"cpu": 2048}
_PREFILL_TOKENS_ELSEWHERE = 32768


class Generated(NamedTuple):
    """Reply tokens (end token included when sampled), their log-probabilities in nats, and whether each reply ended."""

    token_ids: list[list[int]]
    logprobs: list[list[float]]
    ended: list[bool]


def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    settings: Sequence[Sampling],
    seeds: Sequence[int],
    end_ids: Collection[int],
    pad_id: int,
) -> Generated:
    """Answer a batch of rendered prompts.

    Log-probabilities are those of the temperature-1, untruncated distribution, whatever the sampling.

    Args:
        model: a Hugging Face causal LM in eval mode.
        prompts: token ids, reply header included.
        settings: sampling of every prompt.
        seeds: counter-based seed of every prompt.
        end_ids: tokens that end a reply.
        pad_id: any valid id; never attended to.

    Raises:
        SetupError: an empty prompt, or an architecture without a cache.
    """
    if not prompts:
        return Generated([], [], [])
    if not all(prompts):
        raise SetupError("an empty prompt", "at least one token", "check the policy's chat template")
    with torch.inference_mode():
        return _Batch(model, prompts, settings, seeds, pad_id).run(frozenset(end_ids))


class _Batch:
    """State of one batch: the rows still running, their cache and mask."""

    def __init__(
        self,
        model: Any,
        prompts: Sequence[Sequence[int]],
        settings: Sequence[Sampling],
        seeds: Sequence[int],
        pad_id: int,
    ) -> None:
        self.model, self.prompts, self.pad_id = model, prompts, pad_id
        self.device = next(model.parameters()).device
        self.limits = [one.max_new_tokens for one in settings]
        self.n_steps = max(self.limits)
        self.sampler = Sampler(settings, seeds, self.n_steps, self.device)
        self.accepted = _accepted_arguments(model)

    def run(self, end_ids: frozenset[int]) -> Generated:
        out = Generated([[] for _ in self.prompts], [[] for _ in self.prompts], [False] * len(self.prompts))
        running = [limit > 0 for limit in self.limits]
        if not any(running):
            return out
        logits = self._prefill()
        for step in range(self.n_steps):
            chosen = self.sampler.draw(logits, self.rows, step)
            logprobs = logits.log_softmax(dim=-1).gather(1, chosen[:, None])[:, 0]
            done = 0
            for row, token, logprob in zip(self.rows.tolist(), chosen.tolist(), logprobs.tolist(), strict=True):
                if running[row]:
                    out.token_ids[row].append(token)
                    out.logprobs[row].append(logprob)
                    out.ended[row] = token in end_ids
                    running[row] = not out.ended[row] and step + 1 < self.limits[row]
                done += not running[row]
            if done == len(self.rows):
                break
            if done >= _COMPACT_AT * len(self.rows):
                chosen = self._compact(running, chosen)
            logits = self._forward(chosen)
        return out

    def _prefill(self) -> torch.Tensor:
        """Last-position logits [B, V] in the order of `rows`; each distinct prompt is computed once."""
        longest_last = sorted(
            range(len(self.prompts)), key=lambda row: (len(self.prompts[row]), tuple(self.prompts[row]))
        )
        distinct: list[tuple[int, ...]] = []
        places = []
        for row in longest_last:
            if not distinct or distinct[-1] != tuple(self.prompts[row]):
                distinct.append(tuple(self.prompts[row]))
            places.append(len(distinct) - 1)
        parts = [self._prefill_piece(piece) for piece in self._pieces(distinct)]
        width = len(distinct[-1])
        self.cache = joined([cache for _, cache, _ in parts])
        self.mask = torch.cat([torch.nn.functional.pad(mask, (width - mask.shape[1], 0)) for mask, _, _ in parts])
        logits = torch.cat([logits for _, _, logits in parts])
        self.lengths = torch.tensor([len(one) for one in distinct], device=self.device)
        self.rows = torch.tensor(longest_last, device=self.device)
        if len(distinct) < len(self.prompts):
            index = torch.tensor(places, device=self.device)
            self.cache.reorder_cache(index)
            self.mask, self.lengths, logits = self.mask[index], self.lengths[index], logits[index]
        # A row that is done runs on until it is dropped; there may be no position beyond its last one.
        self.last = self.lengths - 1 + torch.tensor([self.limits[row] for row in longest_last], device=self.device)
        return logits

    def _pieces(self, distinct: Sequence[tuple[int, ...]]) -> Iterator[Sequence[tuple[int, ...]]]:
        """Runs of prompts of similar length (they come sorted), each within the token budget of one forward."""
        if not joinable(reply_cache(self.model.config, 0)):
            yield distinct
            return
        budget = _PREFILL_TOKENS.get(self.device.type, _PREFILL_TOKENS_ELSEWHERE)
        start = 0
        for end in range(1, len(distinct) + 1):
            if end == len(distinct) or (end + 1 - start) * len(distinct[end]) > budget:
                yield distinct[start:end]
                start = end

    def _prefill_piece(self, piece: Sequence[tuple[int, ...]]) -> tuple[torch.Tensor, Any, torch.Tensor]:
        """Mask, cache and last-position logits of some prompts, padded on the left."""
        width = len(piece[-1])
        ids = torch.tensor([[self.pad_id] * (width - len(one)) + list(one) for one in piece], device=self.device)
        lengths = torch.tensor([len(one) for one in piece], device=self.device)
        columns = torch.arange(width, device=self.device)[None] - (width - lengths[:, None])
        mask = (columns >= 0).long()
        cache = reply_cache(self.model.config, self.n_steps)
        return mask, cache, self._call(ids, mask, columns.clamp_(min=0), cache)

    def _forward(self, chosen: torch.Tensor) -> torch.Tensor:
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)
        logits = self._call(chosen[:, None], self.mask, self.lengths.minimum(self.last)[:, None], self.cache)
        self.lengths = self.lengths + 1
        return logits

    def _call(self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Any) -> torch.Tensor:
        arguments = {
            "input_ids": ids,
            "attention_mask": mask,
            "position_ids": positions,
            "past_key_values": cache,
            "use_cache": True,
            "logits_to_keep": 1,
        }
        output = self.model(**{name: value for name, value in arguments.items() if name in self.accepted})
        logits: torch.Tensor = output.logits[:, -1].float()
        return logits

    def _compact(self, running: list[bool], chosen: torch.Tensor) -> torch.Tensor:
        keep = torch.tensor([place for place, row in enumerate(self.rows.tolist()) if running[row]], device=self.device)
        self.cache.reorder_cache(keep)
        self.rows, self.mask = self.rows[keep], self.mask[keep]
        self.lengths, self.last = self.lengths[keep], self.last[keep]
        return chosen[keep]


def _accepted_arguments(model: Any) -> frozenset[str]:
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    accepted = frozenset(inspect.signature(inner.forward).parameters)
    if "past_key_values" not in accepted:
        raise SetupError(
            f"{type(inner).__name__} has no key-value cache",
            "a causal LM with past_key_values",
            "choose another policy.path",
        )
    return accepted
