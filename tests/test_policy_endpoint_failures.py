"""What the endpoint policy does when its server misbehaves: retries, outages, clear errors."""

from __future__ import annotations

import email.utils
import json
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from chat_server import Behaviour, Exchange, chunks, completion, good, serving
from endpoint_world import KEY, Make, answering, failing, make_fixture, request, waits_fixture  # noqa: F401
from pydantic import SecretStr

from opd_evolver.errors import OutageError, SetupError
from opd_evolver.policy.endpoint import client

# ── what may pass is tried again ───────────────────────────────────────────────────────────────

BROKEN = {"error": {"message": "CUDA error", "code": 500}}
PASSING: dict[str, tuple[Behaviour, bool]] = {
    "429": (failing(429, {"error": {"message": "slow down"}}), False),
    "500": (failing(500, {"object": "error", "message": "sglang died", "code": 500}), False),
    "502 page": (failing(502, "<html>bad gateway</html>"), False),
    "408": (failing(408), False),
    "hang up": (Exchange.drop, False),
    "slow": (lambda exchange: time.sleep(20), False),
    "slow stream": (lambda exchange: exchange.stream(chunks(*[{"content": "x"}] * 30), pause_s=0.5), True),
    "cut stream": (lambda exchange: exchange.stream(chunks({"content": "hal"}, finish=None, done=False)), True),
    "broken stream": (lambda exchange: exchange.stream(chunks({"content": "hal"}), end=False) or exchange.drop(), True),
    "error in stream": (lambda exchange: exchange.stream([f"data: {json.dumps(BROKEN)}\n\n"]), True),
    "abort": (answering(completion(finish="abort")), False),
    "malformed once": (failing(200, b'{"choices": [{"mess'), False),
    "empty choices once": (answering({"choices": []}), False),
    "short body": (lambda exchange: exchange.answer("{}", Content_Length="999") or exchange.drop(), False),
    "bad zip": (lambda exchange: exchange.answer(b"\x1f\x8bno zip", Content_Encoding="gzip"), False),
}


@pytest.mark.parametrize("kind", PASSING)
def test_a_failure_that_passes_costs_a_retry(make: Make, waits: list[float], kind: str) -> None:
    behave, stream = PASSING[kind]
    with serving(behave, good) as server:
        # Where others work beside it, a good answer may take seconds.
        policy = make(server, stream=stream, timeout_s=4.0 if kind.startswith("slow") else 60.0)
        assert policy.generate([request()])[0].text == "hello"
    assert len(server.seen) == 2 and waits == [0.25]
    assert policy.usage.total.n_retries == 1 and policy.usage.total.n_calls == 1


def test_the_back_off_grows_and_is_jittered_below_its_step(make: Make, waits: list[float]) -> None:
    with serving(*[failing(503)] * 9, good) as server:
        make(server, patience_s=1000.0).generate([request()])
    assert waits == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0]


@pytest.mark.parametrize("stays", ["429", "500", "hang up", "cut stream", "error in stream", "slow"])
def test_what_stays_down_is_an_outage(make: Make, stays: str) -> None:
    behave, stream = PASSING[stays]
    with serving(behave) as server:
        policy = make(server, stream=stream, patience_s=0.2, timeout_s=0.2)
        with pytest.raises(OutageError, match=r"expected a server that answers; mend: .*OPD_ENDPOINT_URL") as outage:
            policy.generate([request()])
    assert server.url in str(outage.value) and outage.value.exit_code == 3


@pytest.mark.parametrize(
    ("named_by", "again", "others"),
    [("OPD_ENDPOINT_URL", "then: opd resume", "--"), ("--policy", "then: the same command again", "resume")],
)
def test_an_error_names_what_the_url_came_from(make: Make, named_by: str, again: str, others: str) -> None:
    with serving(failing(503)) as server, pytest.raises(OutageError) as outage:
        make(server, patience_s=0.1, named_by=named_by).generate([request()])
    assert f"see that {named_by} is right" in outage.value.mend and outage.value.mend.endswith(again)
    assert others not in outage.value.mend
    for behave in (failing(404), failing(308), failing(200, "<html>")):
        with serving(behave) as server, pytest.raises(SetupError) as error:
            make(server, named_by=named_by).generate([request()])
        assert f"set {named_by}" in error.value.mend and others not in error.value.mend.replace(named_by, "")


def test_nothing_listening_is_an_outage(make: Make) -> None:
    with serving() as server:
        policy = make(server, patience_s=0.1)
    with pytest.raises(OutageError, match="cannot be reached"):
        policy.generate([request()])


@pytest.mark.parametrize("date", [False, True])
def test_retry_after_is_honoured(make: Make, waits: list[float], date: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # What was only said to be waited has passed on the client's clock, too: it begins no request before its time.
    monkeypatch.setattr(client, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + sum(waits)))
    told = email.utils.formatdate(time.time() + 50, usegmt=True) if date else "50"
    with serving(failing(429, Retry_After=told), good) as server:
        make(server).generate([request()])
    assert 20.0 <= waits[0] <= 50.0


def test_a_retry_after_beyond_all_patience_is_an_outage_at_once(make: Make, waits: list[float]) -> None:
    with serving(failing(429, Retry_After="86400")) as server:
        policy = make(server)
        with pytest.raises(OutageError, match="429"):
            policy.generate([request()])
    assert len(server.seen) == 1 and waits == []


# ── what will not pass is an error at once ─────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "behave, said",
    [
        (
            failing(401, {"error": {"message": f"Incorrect API key provided: {KEY}"}}),
            r"refuses the key \(401: .*OPD_ENDPOINT_API_KEY",
        ),
        (failing(403), "refuses the key"),
        (
            failing(404, {"object": "error", "message": "model `m` does not exist"}),
            "does not exist.*OPD_ENDPOINT_URL.* or policy.path",
        ),
        (
            failing(400, {"message": "maximum context length is 64 tokens", "code": 400}),
            "maximum context length.*memory.entry_token_budget",
        ),
        (failing(307, Location="http://127.0.0.1:1/v1"), "redirects"),
    ],
)
def test_a_refusal_is_a_clear_error(make: Make, behave: Behaviour, said: str) -> None:
    headers = {"Authorization": SecretStr(f"Bearer {KEY}")}
    with serving(behave) as server:
        policy = make(server, headers=headers)
        with pytest.raises(SetupError, match=said) as error:
            policy.generate([request()])
    assert len(server.seen) == 1 and server.seen[0].headers["authorization"] == f"Bearer {KEY}"
    assert KEY not in str(error.value) and KEY not in repr(policy.where)


@pytest.mark.parametrize(
    "behave, said",
    [
        (failing(200, "<html>welcome</html>"), "no JSON"),
        (failing(200, ""), "an empty body"),
        (failing(200, "[" * 100_000), "no JSON"),
        (failing(200, "[1]"), "no object"),
        (answering({"object": "list"}), "without choices"),
        (answering({"choices": []}), "an empty list of choices"),
        (answering({"choices": ["x"]}), "without choices"),
        (answering({"choices": [{"text": "x"}]}), "a choice without a message"),
        (lambda exchange: exchange.stream(chunks(finish=None, usage=None)), "a stream without choices"),
        (lambda exchange: exchange.stream(["data: {nonsense\n\n"]), "no JSON"),
    ],
)
def test_malformed_answers_are_a_clear_error(make: Make, behave: Behaviour, said: str) -> None:
    with serving(behave) as server:
        policy = make(server, stream=True)
        with pytest.raises(SetupError, match=rf"answers 200 with .*{said}.*, 3 times; expected a chat completion"):
            policy.generate([request()])
    assert len(server.seen) == 3


# ── no part of the key is shown ────────────────────────────────────────────────────────────────

REPEATS: dict[str, Callable[[str], Behaviour]] = {
    "page": lambda said: failing(503, said),
    "message": lambda said: failing(500, {"error": {"message": said}}),
    "refusal": lambda said: failing(400, {"error": {"message": said}}),
    "nested": lambda said: failing(400, {"error": {"message": {"detail": [said]}}}),
    "malformed": lambda said: failing(200, said),
    "malformed event": lambda said: lambda exchange: exchange.stream([f"data: {said}\n\n"]),
    "keys": lambda said: answering({said: 1}),
    "error in stream": lambda said: lambda exchange: exchange.stream([f"data: {json.dumps({'error': said})}\n\n"]),
}


@pytest.mark.parametrize("kind", REPEATS)
@pytest.mark.parametrize(
    "key, offsets", [(KEY, [*range(64, 92), *range(284, 312)]), ('sk-"quo\\ted"-key', [70])], ids=["plain", "quoted"]
)
def test_a_server_that_repeats_the_key_shows_no_part_of_it(
    make: Make,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    key: str,
    offsets: list[int],
) -> None:
    monkeypatch.setattr(client, "HEARTBEAT_S", 0.0)

    def behave(exchange: Exchange) -> None:
        offset, nth = exchange.body["seed"], len(server.seen) - begun
        # In the heartbeat, in the outage; and of what is malformed, every other time, in the error of the third try.
        if nth == 2 and offset % 2:
            exchange.answer("", 503)
        else:
            REPEATS[kind]("x" * offset + key)(exchange)

    told = []
    with serving(behave) as server:
        policy = make(server, headers={"Authorization": SecretStr(f"Bearer {key}")}, patience_s=0.7)
        for offset in offsets:
            begun = len(server.seen)
            with pytest.raises((OutageError, SetupError)) as error:
                policy.generate([request(seed=offset)])
            told.append(str(error.value))
    said = "\n".join((*told, capsys.readouterr().err))
    assert "sk-" not in said and "***" in said
