"""Requests, servers' answers and a quick policy for the tests of the chat endpoint."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from chat_server import Behaviour, ChatServer

from opd_evolver.policy.endpoint import EndpointPolicy
from opd_evolver.policy.endpoint.address import Address
from opd_evolver.policy.endpoint.usage import UsageLedger
from opd_evolver.records import GenerationRequest, Message, Prompt, Sampling, Segment

KEY = "sk-very-secret-key"


def request(text: str = "hi", seed: int = 1, *, temperature: float = 1.0) -> GenerationRequest:
    message = Message(role="user", segments=(Segment(text=text),))
    sampling = Sampling(temperature=temperature, top_p=0.9, max_new_tokens=32)
    return GenerationRequest(prompt=Prompt(ability="act", messages=(message,)), sampling=sampling, seed=seed)


@pytest.fixture(name="waits")
def waits_fixture() -> list[float]:
    """Seconds that were waited, without waiting them."""
    return []


Make = Callable[..., EndpointPolicy]


@pytest.fixture(name="make")
def make_fixture(waits: list[float]) -> Iterator[Make]:
    opened: list[EndpointPolicy] = []

    def build(server: ChatServer, *, usage: UsageLedger | None = None, thinking: Any = False, **limits: Any) -> Any:
        async def sleep(seconds: float) -> None:
            waits.append(seconds)
            await asyncio.sleep(0)

        where = Address(**{"url": server.url, "timeout_s": 60.0, "patience_s": 60.0, "stream": False, **limits})
        policy = EndpointPolicy("m", where, usage=usage, thinking=thinking, sleep=sleep, jitter=lambda: 0.0)
        opened.append(policy)
        return policy

    yield build
    for policy in opened:
        policy.close()


def answering(tree: dict[str, Any]) -> Behaviour:
    return lambda exchange: exchange.answer(tree)


def failing(status: int, content: Any = "", **headers: str) -> Behaviour:
    return lambda exchange: exchange.answer(content, status, **headers)
