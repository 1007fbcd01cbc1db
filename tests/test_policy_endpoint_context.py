"""Prompts that are longer than the context of the server: they lose the middle of their history, as local ones do."""

from __future__ import annotations

from typing import Any

import pytest
from chat_server import Exchange, good, serving, within
from endpoint_world import Make, failing, make_fixture, request, waits_fixture  # noqa: F401
from rollout_world import Toy, rollout, small

from opd_evolver.errors import SetupError
from opd_evolver.records import GenerationRequest, Message, Prompt, Segment, Step
from opd_evolver.rollout.driver import drive
from opd_evolver.rollout.episode import episode
from opd_evolver.rollout.settings import EpisodeSettings


class Endless(Toy):
    """Never solved, and says a lot."""

    def step(self, action: str) -> Step:
        return Step(observation=f"no {action} " + "word " * 20, reward=0.0)


def test_a_history_longer_than_the_servers_context_loses_its_middle(
    make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    def serve(exchange: Exchange) -> None:
        n = len(exchange.body["messages"]) // 2
        exchange.good("none" if exchange.body["messages"][0]["content"].startswith("write") else f"do step {n}")

    with serving(lambda exchange: within(300, exchange, serve)) as server:
        policy = make(server)
        settings = EpisodeSettings.of(small(fast__max_steps=40), read=False)
        [done] = drive(policy, [lambda: episode(rollout(), Endless(), None, settings)], 1)
    assert len(done.row.turns) == 40 and [call.ability for call in done.row.calls][-1] == "write"
    sent = [[message["content"] for message in seen.body["messages"]] for seen in server.seen]
    kept = [one for one in sent if sum(len(content.split()) for content in one) <= 300]
    assert len(kept) == 41 and max(map(len, kept[:-1])) > 10
    for number, told in enumerate(kept[:-1]):
        assert told[0] == kept[0][0] and len(told) % 2 == 1  # the task, then replies and observations
        assert number == 0 or told[-1] == " ".join(done.row.turns[number - 1].result.split())
    # Most of what fits is kept, and a refusal costs no answer.
    assert min(sum(len(content.split()) for content in one) for one in kept[20:-1]) > 150
    assert policy.usage.total.n_calls == 41 and policy.usage.total.n_retries == len(sent) - 41
    assert capsys.readouterr().err.count("without the middle of their history") == 1


def long_request() -> GenerationRequest:
    history = [Message(role="user", segments=(Segment(text="task"),))]
    for _ in range(3):
        history.append(Message(role="assistant", segments=(Segment(kind="reply", text="word " * 30),)))
        history.append(Message(role="user", segments=(Segment(kind="history", text="ok " * 30),)))
    return request().model_copy(update={"prompt": Prompt(ability="act", messages=tuple(history))})


@pytest.mark.parametrize(
    "said",
    [
        "The input (9000 tokens) is longer than the model's context length (8192 tokens).",
        "the request exceeds the available context size, try increasing it",
        "Your input exceeds the context window of this model.",
        "The decoder prompt (length 5000) is longer than the maximum model length of 4096.",
        "prompt is too long: 200000 tokens > 199999 maximum",
        {"message": "Please reduce the length of the messages.", "code": "context_length_exceeded"},
    ],
)
def test_servers_say_in_their_own_words_that_a_prompt_is_too_long(make: Make, said: Any) -> None:
    long = long_request()
    error = said if isinstance(said, dict) else {"message": said}
    with serving(failing(400, {"error": error}), good) as server:
        policy = make(server)
        assert policy.generate([long])[0].text == "hello"
        assert [len(seen.body["messages"]) for seen in server.seen] == [7, 5]
        assert len(policy.sent(long).prompt.messages) == 5 and policy.sent(request()) == request()


def test_what_cannot_be_shortened_is_the_refusal_and_names_what_would(make: Make) -> None:
    with serving(failing(400, {"error": {"message": "maximum context length is 64 tokens"}})) as server:
        with pytest.raises(SetupError, match=r"maximum context length.*lower .*fast\.max_steps"):
            make(server).generate([request("word " * 500)])
        assert len(server.seen) == 1


def test_another_refusal_is_not_asked_again_with_less(make: Make) -> None:
    with serving(failing(400, {"error": {"message": "temperature must be at most 1"}})) as server:
        with pytest.raises(SetupError, match="temperature"):
            make(server).generate([long_request()])
        assert len(server.seen) == 1
