"""The endpoint policy from parameters and settings, and its ledger of tokens and cost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chat_server import USAGE, completion, serving
from endpoint_world import KEY, Make, answering, failing, make_fixture, request, waits_fixture  # noqa: F401
from rollout_world import small

from opd_evolver.errors import SetupError
from opd_evolver.params import merge
from opd_evolver.policy.endpoint import open_endpoint
from opd_evolver.policy.endpoint.usage import Prices, UsageLedger
from opd_evolver.policy.registry import open_policy
from opd_evolver.settings import load_settings

SGLANG_USAGE = {"prompt_tokens": 5, "completion_tokens": 4, "reasoning_tokens": 3, "prompt_tokens_details": None}
OPENAI_USAGE = {
    "prompt_tokens": 5,
    "completion_tokens": 4,
    "completion_tokens_details": {"reasoning_tokens": 2},
    "prompt_tokens_details": {"cached_tokens": 1},
}


# ── the ledger of tokens and cost ──────────────────────────────────────────────────────────────


def test_tokens_and_cost_are_counted_by_ability(make: Make, tmp_path: Path) -> None:
    usage = UsageLedger("m", Prices(prompt=2.0, reply=10.0), tmp_path / "deep" / "usage.jsonl")
    trees = [completion(usage=SGLANG_USAGE), completion(usage=OPENAI_USAGE), completion(usage=None)]
    with serving(*map(answering, trees)) as server:
        policy = make(server, usage=usage, concurrency=1)
        selecting = request().model_copy(update={"prompt": request().prompt.model_copy(update={"ability": "select"})})
        policy.generate([request(), selecting])
        policy.generate([request(seed=2)])
    total = usage.total
    assert (total.n_calls, total.n_uncounted, total.n_prompt, total.n_reply) == (3, 1, 10, 8)
    assert (total.n_reasoning, total.n_cached) == (5, 1)
    assert total.cost(usage.prices) == pytest.approx((10 * 2 + 8 * 10) / 1e6)
    first, second = map(json.loads, (tmp_path / "deep" / "usage.jsonl").read_text().splitlines())
    assert set(first["by_ability"]) == {"act", "select"} and first["by_ability"]["act"]["n_prompt"] == 5
    assert second["by_ability"]["act"]["n_uncounted"] == 1 and second["model"] == "m"


@pytest.mark.parametrize(
    "usage", [None, "many", {}, {"prompt_tokens": None, "completion_tokens": 3}, {"prompt_tokens": -1}]
)
def test_without_usage_the_reply_counts_all_the_same(make: Make, usage: Any) -> None:
    with serving(answering(completion(usage=usage))) as server:
        policy = make(server)
        assert policy.generate([request()])[0].text == "hello"
    assert policy.usage.total.n_uncounted == 1


def test_without_prices_the_cost_is_unknown_not_zero(make: Make) -> None:
    with serving() as server:
        policy = make(server)
        policy.generate([request()])
    assert policy.usage.total.cost(Prices()) is None and policy.usage.total.cost(Prices(prompt=1.0)) is None
    assert policy.usage.total.cost(Prices(prompt=1.0, reply=0.0)) == pytest.approx(USAGE["prompt_tokens"] / 1e6)


# ── from parameters and settings ───────────────────────────────────────────────────────────────


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    monkeypatch.chdir(tmp_path)

    def set_all(**values: str) -> None:
        for name, value in values.items():
            monkeypatch.setenv(f"OPD_ENDPOINT_{name.upper()}", value)
        load_settings.cache_clear()

    return set_all


def opened(**changes: Any) -> Any:
    base = {"policy.backend": "endpoint", "policy.path": "org/model", **changes}
    return open_policy(merge(small(), base, "test").policy)


def test_it_opens_from_parameters_and_settings(site: Callable[..., None], tmp_path: Path) -> None:
    with serving() as server:
        site(url=f"{server.url}/", api_key=KEY, headers='{"X-Team": "blue"}', price_prompt="1", price_reply="2")
        policy = opened(**{"policy.thinking": True})
        assert policy.generate([request()])[0].policy_version == "endpoint org/model"
        policy.close()
    sent = server.seen[0]
    assert (sent.path, sent.headers["x-team"], sent.headers["authorization"]) == (
        "/v1/chat/completions",
        "blue",
        f"Bearer {KEY}",
    )
    assert sent.body["chat_template_kwargs"] == {"enable_thinking": True} and sent.body["model"] == "org/model"
    [line] = map(json.loads, (tmp_path / "runs" / "endpoint-usage.jsonl").read_text().splitlines())
    assert line["by_ability"]["act"]["cost"] == pytest.approx((11 + 14) / 1e6)


@pytest.mark.parametrize(
    "values, said",
    [
        ({}, "no server is named.*set OPD_ENDPOINT_URL"),
        ({"url": "localhost:8000"}, r"http\(s\)://host:port/v1"),
        ({"url": "http://[::1"}, r"http\(s\)://host:port/v1"),
        ({"url": f"http://me:{KEY}@h/v1"}, "carries a user, a password"),
        ({"url": f"http://h/v1?key={KEY}"}, "carries a user, a password"),
        ({"url": "http://h/v1", "api_key": f"{KEY}\nX: y"}, "OPD_ENDPOINT_API_KEY holds line breaks"),
        ({"url": "http://h/v1", "api_key": f"{KEY}é"}, "OPD_ENDPOINT_API_KEY holds line breaks"),
        ({"url": "http://h/v1", "headers": KEY}, "OPD_ENDPOINT_HEADERS cannot be read"),
        ({"url": "http://h/v1", "headers": f'["{KEY}"]'}, "OPD_ENDPOINT_HEADERS cannot be read"),
        ({"url": "http://h/v1", "headers": f'{{"X Y": "{KEY}"}}'}, "OPD_ENDPOINT_HEADERS cannot be read"),
        ({"url": "http://h/v1", "timeout_s": "0"}, "OPD_ENDPOINT_TIMEOUT_S is not valid"),
    ],
)
def test_a_wrong_setting_is_named_and_no_secret_shown(
    site: Callable[..., None], values: dict[str, str], said: str
) -> None:
    site(**values)
    with pytest.raises(SetupError, match=said) as error:
        opened()
    assert KEY not in str(error.value)


@pytest.mark.parametrize(
    ("named", "sent"),
    [
        (None, True),
        ("http://127.0.0.1:{port}/other/v1", True),
        ("http://127.0.0.1:1/v1", False),
        ("http://localhost:{port}/v1", False),
        ("https://127.0.0.1:{port}/v1", False),
        ("not a URL", False),
    ],
)
def test_key_and_headers_go_to_the_sites_own_server_alone(
    site: Callable[..., None], capsys: pytest.CaptureFixture[str], named: str | None, sent: bool
) -> None:
    with serving() as server:
        port = server.url.split(":")[2].split("/")[0]
        site(api_key=KEY, headers='{"X-Team": "blue"}', **({"url": named.format(port=port)} if named else {}))
        policy = open_endpoint("m", url=server.url)
        policy.generate([request()])
        policy.close()
    headers = server.seen[0].headers
    assert ("authorization" in headers) == ("x-team" in headers) == sent
    told = capsys.readouterr().err
    assert KEY not in told and ("are not sent to it" in told) == (not sent) and told.count("\n") == (not sent)


def test_a_site_without_secrets_has_nothing_to_say(
    site: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    site(url="http://127.0.0.1:1/v1")
    assert open_endpoint("m", url="http://127.0.0.1:2/v1").where.url == "http://127.0.0.1:2/v1"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("url", ["http://[::1", f"http://h/v1?key={KEY}", f"http://me:{KEY}@h/v1", "http://h:0/v1"])
def test_a_wrong_url_that_was_typed_names_the_option(
    site: Callable[..., None], capsys: pytest.CaptureFixture[str], url: str
) -> None:
    site(url="http://127.0.0.1:1/v1", api_key=KEY)
    with pytest.raises(SetupError, match=r"^--policy") as error:
        open_endpoint("m", url=url)
    assert "OPD_ENDPOINT_URL" not in str(error.value) and KEY not in f"{error.value}{capsys.readouterr()}"


@pytest.mark.parametrize("path", ["seed", " "])
def test_the_model_must_be_named(site: Callable[..., None], path: str) -> None:
    site(url="http://127.0.0.1:1/v1")
    with pytest.raises(SetupError, match=r"set policy\.path"):
        opened(**{"policy.path": path})
    with pytest.raises(SetupError, match=r"^--model = .*set --model"):
        open_endpoint(path, url="http://127.0.0.1:1/v1")


def test_thinking_is_refused_where_it_is_not_switched() -> None:
    with pytest.raises(SetupError, match=r"policy\.thinking=false"):
        open_policy(merge(small(), {"policy.thinking": True}, "test").policy)


def test_thinking_enters_the_digest_only_when_it_is_switched() -> None:
    assert "thinking" not in small().science()["policy"]
    switched = {merge(small(), {"policy.thinking": value}, "test").digest() for value in (False, True, None)}
    assert len(switched) == 3 and small().digest() in switched
