"""A key-value cache with room for the reply.

The stock layer copies all keys and values for every new token; this one writes the token into room
allocated once. Layers of other kinds (convolution, linear attention, sliding window) stay stock. Prompts
may be prefilled in pieces of similar length, each with a cache of its own, and joined here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, LinearAttentionLayer


def reply_cache(config: Any, n_steps: int) -> Any:
    """An empty cache for `config`'s architecture with room for `n_steps` reply tokens after the prompt."""
    cache = DynamicCache(config=config)
    cache.layers = [_RoomyLayer(n_steps) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def joinable(cache: Any) -> bool:
    """Whether every layer is of a kind that `joined` knows."""
    return all(type(layer) in (_RoomyLayer, LinearAttentionLayer) for layer in cache.layers)


def joined(caches: Sequence[Any]) -> Any:
    """One cache over the rows of all; the keys of shorter pieces are padded on the left (their mask hides it).

    The pieces are empty afterwards: memory is given back layer by layer, so that long prompts are not held twice.
    """
    if len(caches) == 1:
        return caches[0]
    for layers in zip(*(cache.layers for cache in caches), strict=True):
        if isinstance(layers[0], LinearAttentionLayer):
            for states in ("conv_states", "recurrent_states"):
                parts = [getattr(layer, states) for layer in layers]
                for index in [index for index, state in parts[0].items() if state is not None]:
                    parts[0][index] = torch.cat([part[index] for part in parts])
        else:
            layers[0].absorb(layers[1:])
    return caches[0]


def bytes_per_token(model: Any) -> int:
    """What one token of one prompt holds in this model's cache; states of constant size are not counted."""
    cache = reply_cache(model.config, 0)
    with torch.inference_mode():
        model(input_ids=torch.ones(1, 1, dtype=torch.int64, device=model.device), past_key_values=cache, use_cache=True)
    held = [getattr(layer, name, None) for layer in cache.layers for name in ("keys", "values")]
    return sum(one.numel() * one.element_size() for one in held if one is not None)


class _RoomyLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """`keys` and `values` are views of wider buffers, [B, heads, length + room, head_dim]."""

    def __init__(self, room: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._room = room
        self._buffers: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        before = self.get_seq_length()
        after = before + key_states.shape[-2]
        if self._buffers is None or self._buffers[0].shape[-2] < after:
            old: Any = (self.keys, self.values)
            self._buffers = (
                self._widened(old[0], key_states, after),
                self._widened(old[1], value_states, after),
            )
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, before:after] = new
        self.keys, self.values = (buffer[:, :, :after] for buffer in self._buffers)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Any) -> None:
        super().reorder_cache(beam_idx)
        self._buffers = None  # keys and values are copies now, without room

    def absorb(self, others: Sequence[_RoomyLayer]) -> None:
        """Append the rows of other layers, and leave those empty."""
        every: tuple[Any, ...] = (self, *others)
        length = max(layer.get_seq_length() for layer in every)
        n_rows = sum(len(layer.keys) for layer in every)
        buffers = []
        for name in ("keys", "values"):
            parts = [getattr(layer, name) for layer in every]
            buffer = parts[0].new_zeros(n_rows, parts[0].shape[1], length + self._room, parts[0].shape[3])
            row = 0
            for part in parts:
                buffer[row : row + len(part), :, length - part.shape[2] : length] = part
                row += len(part)
            buffers.append(buffer)
        for layer in others:
            layer.keys = layer.values = layer._buffers = None
        self._buffers = (buffers[0], buffers[1])
        self.keys, self.values = (buffer[:, :, :length] for buffer in buffers)

    def _widened(self, old: torch.Tensor, new: torch.Tensor, length: int) -> torch.Tensor:
        wide = new.new_empty(*new.shape[:2], length + self._room, new.shape[-1])
        if old.numel():
            wide[:, :, : old.shape[-2]] = old
        return wide
