"""A local policy: any Hugging Face causal LM by path, driven token-in, token-out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from opd_evolver.errors import SetupError
from opd_evolver.policy import checkpoint
from opd_evolver.policy.chat import ChatEncoder
from opd_evolver.policy.checkpoint import save
from opd_evolver.policy.generation import Generated, generate
from opd_evolver.policy.protocol import EncodedPrompt
from opd_evolver.policy.weights import weights_digest
from opd_evolver.records import GenerationRequest, Prompt, Reply, Sampling

__all__ = ["LocalPolicy", "save", "weights_digest"]


class LocalPolicy:
    """Serves and exposes one model. Satisfies `TrainablePolicy`.

    Args:
        model: causal LM in eval mode, on its device.
        tokenizer: its tokenizer, with a chat template.
        version: names these weights in ledger rows.
        threads: torch threads while generating; part of what fixes the last bits.
        max_prompt_tokens: see `ChatEncoder`.

    Raises:
        SetupError: no chat template, or a prompt longer than the model's positions.
    """

    def __init__(
        self, model: Any, tokenizer: Any, version: str, *, threads: int = 1, max_prompt_tokens: int = 768
    ) -> None:
        self._positions = positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        if positions is not None and max_prompt_tokens > positions:
            raise SetupError(
                f"policy.max_prompt_tokens = {max_prompt_tokens}",
                f"at most {positions}, the model's positions",
                f"set policy.max_prompt_tokens={positions // 2}",
            )
        # A rotary embedding goes on beyond what was trained, a table of positions ends.
        self._are_learned = not any("rotary" in type(module).__name__.lower() for module in model.modules())
        self.model = model
        self.tokenizer = tokenizer
        self.version = version
        self.threads = threads
        self.encoder = ChatEncoder(tokenizer, max_prompt_tokens, end_ids=_model_end_ids(model))
        self._pad_id = next(one for one in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if one is not None)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        threads: int = 1,
        max_prompt_tokens: int = 768,
        version: str | None = None,
    ) -> LocalPolicy:
        """From a folder in Hugging Face form, an adapter's folder, or `seed`; `version` None is the weights' digest.

        Raises:
            SetupError, CorruptionError: see `checkpoint.load`.
        """
        loaded = checkpoint.load(path, device=device, dtype=dtype)
        return cls(
            loaded.model,
            loaded.tokenizer,
            version or loaded.version,
            threads=threads,
            max_prompt_tokens=max_prompt_tokens,
        )

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end a reply."""
        return self.encoder.end_ids

    def encode(self, prompt: Prompt) -> EncodedPrompt:
        """Render to token ids exactly as served, reply header included."""
        return self.encoder.encode(prompt)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of a reply; end and other special tokens left out."""
        text: str = self.tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def count(self, text: str) -> int:
        """Tokens of a text, as memory budgets count them."""
        return self.encoder.count(text)

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Reply]:
        """Answer every request, in order."""
        prompts = [self.encoder.encode(request.prompt).token_ids for request in requests]
        made = self._run(prompts, [one.sampling for one in requests], [one.seed for one in requests])
        return [
            Reply(
                text=self.decode(ids),
                token_ids=tuple(ids),
                logprobs=tuple(logprobs),
                prompt_token_ids=prompt,
                finish="stop" if ended else "length",
                policy_version=self.version,
            )
            for prompt, ids, logprobs, ended in zip(prompts, *made, strict=True)
        ]

    def generate_ids(
        self, prompt_ids: Sequence[Sequence[int]], sampling: Sampling | Sequence[Sampling], seeds: Sequence[int]
    ) -> list[tuple[int, ...]]:
        """Replies to prompts that are rendered already; the same code path as `generate`.

        Args:
            prompt_ids: rendered prompts.
            sampling: one for all, or one for each.
            seeds: one for each prompt.
        """
        settings = [sampling] * len(prompt_ids) if isinstance(sampling, Sampling) else list(sampling)
        return [tuple(ids) for ids in self._run(prompt_ids, settings, seeds).token_ids]

    def sync(self, version: str, path: Path) -> None:
        """Swap in other weights of the same architecture, in place: references to the model stay valid.

        Raises:
            SetupError: another architecture or vocabulary.
        """
        loaded = checkpoint.load(path, dtype=str(self.model.dtype).removeprefix("torch."))
        have = {name: tensor.shape for name, tensor in self.model.state_dict().items()}
        new = {name: tensor.shape for name, tensor in loaded.model.state_dict().items()}
        if have != new or len(loaded.tokenizer) != len(self.tokenizer):
            differing = sorted({*have.items()} ^ {*new.items()}, key=str)
            raise SetupError(
                f"{path} has other tensors than the running policy ({', '.join(name for name, _ in differing[:3])})",
                "weights of the same architecture",
                "start a new run with `policy.path` set to it",
            )
        self.model.load_state_dict(loaded.model.state_dict())
        self.version = version

    def _run(self, prompts: Sequence[Sequence[int]], settings: Sequence[Sampling], seeds: Sequence[int]) -> Generated:
        positions = self._positions if self._are_learned else None
        longest = max((len(ids) + one.max_new_tokens for ids, one in zip(prompts, settings, strict=True)), default=0)
        if positions is not None and longest > positions:
            raise SetupError(
                f"{longest} tokens of a prompt and the longest reply to it",
                f"at most {positions}, the model's positions",
                "lower policy.max_prompt_tokens or fast.*_max_new_tokens",
            )
        with _serving(self.model, self.threads):
            return generate(self.model, prompts, settings, seeds, self.end_ids, self._pad_id)


@contextmanager
def _serving(model: Any, threads: int) -> Iterator[None]:
    """Eval mode and this policy's thread count, both given back: a trainer samples from the model it trains."""
    before, training = torch.get_num_threads(), model.training
    if before != threads:
        torch.set_num_threads(threads)
    if training:
        model.eval()
    try:
        yield
    finally:
        if training:
            model.train()
        if before != threads:
            torch.set_num_threads(before)


def _model_end_ids(model: Any) -> frozenset[int]:
    """End tokens of the generation configuration; there may be several."""
    recorded = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if recorded is None:
        recorded = model.config.get_text_config().eos_token_id
    return frozenset([recorded] if isinstance(recorded, int) else recorded or ())
