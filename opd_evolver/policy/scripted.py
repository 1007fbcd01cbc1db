"""A policy whose replies are written by a function: for tests and for environments' experts. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from opd_evolver.policy.protocol import EncodedPrompt
from opd_evolver.records import GenerationRequest, Prompt, Reply

Responder = Callable[[Prompt, GenerationRequest], str]
_BYTE_IDS = 3
_END = 0
_ROLE_IDS = {"system": 256 + _BYTE_IDS, "user": 257 + _BYTE_IDS, "assistant": 258 + _BYTE_IDS}


def text_of(prompt: Prompt) -> str:
    """Words of the last message, segments joined by a space."""
    return " ".join(segment.text for segment in prompt.messages[-1].segments if segment.text)


def echo(prompt: Prompt, request: GenerationRequest) -> str:
    """Repeats the last message."""
    return text_of(prompt)


class ScriptedPolicy:
    """Answers by a function. Token ids are UTF-8 bytes (+3), so that ledger rows carry tokens.

    Args:
        responder: text of the reply to (prompt, request).
        version: names it in ledger rows.
    """

    def __init__(self, responder: Responder = echo, version: str = "scripted") -> None:
        self.responder = responder
        self.version = version

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Reply]:
        """Answer every request, in order. Token budgets bind models only."""
        return [self._answer(request) for request in requests]

    def encode(self, prompt: Prompt) -> EncodedPrompt:
        """Bytes of every segment between role markers; served replies verbatim."""
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        for message in prompt.messages:
            ids.append(_ROLE_IDS[message.role])
            opened = False
            for segment in message.segments:
                start = len(ids)
                if segment.token_ids is not None:
                    ids += [token for token in segment.token_ids if token != _END]
                elif segment.text:
                    ids += _bytes((" " if opened else "") + segment.text)
                if segment.kind != "hindsight":
                    opened = opened or bool(segment.text)
                elif len(ids) > start:
                    spans.append((start, len(ids)))
            ids.append(_END)
        return EncodedPrompt((*ids, _ROLE_IDS["assistant"]), tuple(spans))

    def decode(self, token_ids: Sequence[int]) -> str:
        return bytes(one - _BYTE_IDS for one in token_ids if 0 <= one - _BYTE_IDS < 256).decode(errors="replace")

    def count(self, text: str) -> int:
        """Words: scripted tests think in words, not in bytes."""
        return len(text.split())

    def _answer(self, request: GenerationRequest) -> Reply:
        text = self.responder(request.prompt, request)
        ids = (*_bytes(text), _END)
        return Reply(
            text=text,
            token_ids=ids,
            logprobs=(0.0,) * len(ids),
            prompt_token_ids=self.encode(request.prompt).token_ids,
            policy_version=self.version,
        )


def _bytes(text: str) -> list[int]:
    return [byte + _BYTE_IDS for byte in text.encode()]
