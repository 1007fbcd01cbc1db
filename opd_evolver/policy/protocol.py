"""What a policy can do. Text-only endpoints have `generate` alone and give no trainable rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from opd_evolver.records import GenerationRequest, Prompt, Reply


@runtime_checkable
class Policy(Protocol):
    """The least a policy can do: answer a batch of requests, in order."""

    version: str

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Reply]:
        """Answer every request. The result of a request may depend on its batch's composition in the
        last bits, so callers keep the batch's make-up and order fixed."""
        ...


@runtime_checkable
class TokenPolicy(Policy, Protocol):
    """A policy whose tokens are known: what is trained is driven token-in, token-out."""

    def encode(self, prompt: Prompt) -> EncodedPrompt:
        """Render to token ids exactly as served, reply header included."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str: ...


@runtime_checkable
class TrainablePolicy(TokenPolicy, Protocol):
    """A local policy whose weights can be scored, trained and replaced."""

    model: Any
    tokenizer: Any

    def sync(self, version: str, path: Path) -> None:
        """Load other weights of the same architecture."""
        ...


class EncodedPrompt:
    """Token ids of a prompt and where its hindsight lies.

    Attributes:
        token_ids: the whole prompt, reply header included.
        hindsight_spans: [start, end) of every hindsight segment, in token_ids.
    """

    __slots__ = ("hindsight_spans", "n_dropped", "token_ids")

    def __init__(
        self, token_ids: tuple[int, ...], hindsight_spans: tuple[tuple[int, int], ...], n_dropped: int = 0
    ) -> None:
        self.token_ids = token_ids
        self.hindsight_spans = hindsight_spans
        self.n_dropped = n_dropped
