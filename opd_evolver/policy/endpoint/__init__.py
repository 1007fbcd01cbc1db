"""A policy behind an OpenAI-compatible chat endpoint. Text only: it acts, selects, writes and maintains, but
its tokens are unknown, so its rollouts give no trainable rows.

Source: ours; the protocol is the one that vLLM, SGLang and hosted models share.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from opd_evolver.console import say
from opd_evolver.errors import SetupError
from opd_evolver.policy.endpoint import wire
from opd_evolver.policy.endpoint.address import Address, address
from opd_evolver.policy.endpoint.client import Client, Sleep, TooLong
from opd_evolver.policy.endpoint.usage import FILE, Prices, UsageLedger
from opd_evolver.policy.truncation import shorter
from opd_evolver.records import GenerationRequest, Reply, canonical_json

T = TypeVar("T")


class EndpointPolicy:
    """Answers by a remote model. Satisfies `Policy`, and no more.

    Args:
        model: the id under which the server knows the model.
        where: the server and its limits.
        version: names the model in ledger rows; None is made of the id.
        thinking: whether the model may think aloud; None leaves it to the server.
        usage: counts tokens and cost; None counts without a file or prices.
        sleep: waits between tries; injected by tests.
        jitter: a number in [0, 1).
    """

    def __init__(
        self,
        model: str,
        where: Address,
        *,
        version: str | None = None,
        thinking: bool | None = False,
        usage: UsageLedger | None = None,
        sleep: Sleep = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.model, self.where, self.thinking = model, where, thinking
        self.version = version or f"endpoint {model}"
        self.usage = usage or UsageLedger(model, Prices(), None)
        self._sleep, self._jitter = sleep, jitter
        self._kept: dict[str, Reply] = {}
        self._sent: dict[str, GenerationRequest] = {}
        self._told = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client: Client | None = None

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Reply]:
        """Answer every request, in order, several at a time.

        What was answered before an outage is kept: the same batch, asked again, pays only for the rest. A prompt that
        the server finds too long for its context is asked again without the middle of its history.

        Raises:
            OutageError: the server stayed down.
            SetupError: it refuses, or is no chat endpoint.
        """
        began = time.monotonic()
        if not self._kept:
            self._sent.clear()
        try:
            replies = self._run(self._all(requests))
        finally:
            self.usage.write(time.monotonic() - began)
        self._kept.clear()
        return replies

    def sent(self, request: GenerationRequest) -> GenerationRequest:
        """A request of the last batch as it was sent: a prompt longer than the server's context was cut."""
        return self._sent.get(canonical_json(request), request)

    def close(self) -> None:
        """Close connections and the thread that serves them; the next `generate` opens them again."""
        if self._loop is None:
            return
        if self._client is not None:
            self._run(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._loop = self._client = None

    async def _all(self, requests: Sequence[GenerationRequest]) -> list[Reply]:
        if self._client is None:
            self._client = Client(self.where, self._sleep, self._jitter)
        client = self._client
        asked = [asyncio.create_task(self._one(client, request)) for request in requests]
        try:
            return list(await asyncio.gather(*asked))
        finally:
            # After a failure, or Ctrl-C, none of the others goes on.
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    async def _one(self, client: Client, request: GenerationRequest) -> Reply:
        key = canonical_json(request)
        if key in self._kept:
            return self._kept[key]
        answer, n_failed = await self._answer(client, key, request)
        self.usage.add(request.prompt.ability, answer.tokens, n_failed)
        tokens = answer.tokens or wire.Tokens(0, 0)
        reply = Reply(
            text=answer.text,
            reasoning=answer.reasoning,
            finish=answer.finish,
            policy_version=self.version,
            n_prompt_tokens=tokens.prompt,
            n_reply_tokens=tokens.reply,
        )
        self._kept[key] = reply
        return reply

    async def _answer(self, client: Client, key: str, request: GenerationRequest) -> tuple[wire.Answer, int]:
        """Ask; of a prompt that is too long for the server leave out a part of the history until it is not."""
        sent, n_refused = request, 0
        while True:
            body = wire.body(self.model, sent, thinking=self.thinking, stream=self.where.stream)
            try:
                answer, n_failed = await client.ask(body)
                return answer, n_failed + n_refused
            except TooLong as refusal:
                kept = shorter(sent.prompt.messages)
                if kept is None:
                    raise refusal.error from None
            if not self._told:
                self._told = True
                say(f"prompts longer than the context of {self.where.url} are sent without the middle of their history")
            n_refused += 1
            sent = sent.model_copy(update={"prompt": sent.prompt.model_copy(update={"messages": kept})})
            self._sent[key] = sent

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run on a loop of its own in a thread, so that it works inside other loops, and Ctrl-C ends it at once."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=_serve, args=(self._loop,), name="endpoint", daemon=True).start()
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.close()


def open_endpoint(
    model: str, *, thinking: bool | None = False, version: str | None = None, url: str | None = None
) -> EndpointPolicy:
    """The endpoint of this site, serving `model`.

    Args:
        model: id of the model; what `policy.path` says.
        thinking: see `EndpointPolicy`.
        version: name in ledger rows; None is made of the id.
        url: another server than the site's, as a command names it; see `address`.

    Raises:
        SetupError: no server is named, or a setting or the id is wrong.
    """
    from opd_evolver.settings import load_settings

    settings = load_settings()
    served = address(settings, url)
    if not model.strip() or model == "seed":
        raise SetupError(
            f"{served.model_named_by} = {model!r} with an endpoint",
            "the id under which the server knows the model",
            f"set {served.model_named_by} to it; the server's /models lists its models",
        )
    prices = Prices(prompt=settings.endpoint_price_prompt, reply=settings.endpoint_price_reply)
    usage = UsageLedger(model, prices, settings.artifact_root / FILE)
    return EndpointPolicy(model, served, version=version, thinking=thinking, usage=usage)
