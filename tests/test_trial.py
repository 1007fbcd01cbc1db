"""`opd try`: everything shown, nothing kept, and an estimate made of what was measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import checkpoints
import pytest
from chat_server import ChatServer, Exchange, completion, serving, within
from conftest import Opd

from opd_evolver.environments.sql import Sql
from opd_evolver.params import load_preset
from opd_evolver.policy.local import LocalPolicy
from opd_evolver.records import GenerationRequest, Reply, Step


def chat(exchange: Exchange) -> None:
    """A chat model that means well: acts by guessing, writes one tip, and once talks nonsense."""
    asked = exchange.body["messages"][0]["content"]
    if asked.startswith("You choose"):
        exchange.good('{"use": ["m1"]}')
    elif asked.startswith("You are an agent"):
        exchange.good("Thought: a guess\nAction: select count ( * ) from jobs where state = 4")
    elif asked.startswith("You reflect"):
        exchange.good('{"entries": [{"level": "tip", "trigger": "late", "text": "4"}, {"level": "hunch"}]}')
    else:
        exchange.good("hm" if len(exchange.body["messages"]) == 2 else '{"command": "finish"}')


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tried(opd: Opd, server: ChatServer, *more: str) -> str:
    said = opd("try", "--env", "sql", "--policy", server.url, "--model", "m", "--tasks", "2", *more)
    assert said.code == 0, said.err
    return said.out


def test_an_endpoint_is_tried_in_all_four_abilities(opd: Opd, elsewhere: Path) -> None:
    with serving(chat) as server:
        tree = json.loads(tried(opd, server, "--json"))
    abilities = [call["ability"] for call in tree["calls"]]
    assert set(abilities) == {"select", "act", "write", "maintain"} and tree["dialect"] == "instruct"
    assert len(server.seen) == len(abilities) and server.seen[0].body["model"] == "m"
    assert (tree["n_prompt_tokens"], tree["n_reply_tokens"]) == (11 * len(abilities), 7 * len(abilities))
    first, second, kept = tree["tried"]
    assert first["unreadable"] == second["unreadable"] == {"select": 0, "act": 0, "write": 1, "maintain": 0}
    assert kept["unreadable"]["maintain"] == 1 and tree["n_entries"] >= 1
    full = tree["round"]
    assert full["rollouts"] == 200 * 8
    assert full["training_bytes_without_activations"] is full["serving_bytes_without_activations"] is None
    assert full["prompt_tokens"] == 11 * len(abilities) * 200 * 8 // 2
    # Nothing is kept but the ledger of what was paid for.
    assert [path.name for path in elsewhere.rglob("*") if path.is_file()] == ["endpoint-usage.jsonl"]


def test_the_report_shows_prompts_replies_and_the_estimate(opd: Opd, elsewhere: Path) -> None:
    with serving(chat) as server:
        text = tried(opd, server, "--dialect", "instruct", "--set", "fast.rollouts_per_task=1")
    assert all(message["content"] in text for sent in server.seen for message in sent.body["messages"])
    for said in ("[system]\nYou are an agent", "Action: select count", "Task: ", "[m1] tip for", "── reply ──"):
        assert said in text
    assert "a full fast loop: 200 rollouts, about" in text and "an endpoint cannot be trained" in text


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("--policy", "http://h/v1"), "without a model"),
        (("--policy", "seed", "--model", "m"), "leave --model out"),
        (("--policy", "seed", "--tasks", "0"), "at least 1"),
        (("--policy", "nowhere"), "no folder nowhere"),
        (("--policy", "seed", "--set", "fast.max_step=1"), "did you mean `fast.max_steps`"),
    ],
)
def test_wrong_calls_say_what_mends_them(opd: Opd, elsewhere: Path, arguments: tuple[str, ...], said: str) -> None:
    found = opd("try", "--env", "sql", *arguments)
    assert found.code == 2 and said in found.err


def test_budgets_of_an_endpoint_count_words_and_those_of_a_folder_must_fit(opd: Opd, elsewhere: Path) -> None:
    with serving(chat) as server:
        words = ("try", "--env", "sql", "--policy", server.url, "--model", "m")
        found = opd(*words, "--set", "memory.budget_unit=tokens")
        assert opd(*words, "--tasks", "1", "--preset", "qwen3-4b-1gpu").code == 0
    assert found.code == 2 and "set memory.budget_unit to words" in found.err
    found = opd(
        "try",
        "--env",
        "sql",
        "--policy",
        "nowhere",
        "--set",
        "memory.candidates=50",
        "--set",
        "policy.max_prompt_tokens=99",
    )
    assert found.code == 2 and "raise policy.max_prompt_tokens" in found.err


def test_an_unknown_environment_is_named(opd: Opd, elsewhere: Path) -> None:
    with serving(chat) as server:
        found = opd("try", "--env", "sqll", "--policy", server.url, "--model", "m")
    assert found.code == 2 and "sqll" in found.err and not server.seen


def test_memory_of_a_round_is_counted_from_the_model(opd: Opd, elsewhere: Path, tmp_path: Path) -> None:
    base = checkpoints.tiny_qwen3(tmp_path / "base")
    sizes = ("policy.max_prompt_tokens=1000", "fast.microbatch_rollouts=4", "benchmark.batch_rollouts=8")
    words = [word for one in (*sizes, "fast.act_max_new_tokens=8", "slow.adapter=full") for word in ("--set", one)]
    plain = ("--tasks", "1", "--preset", "micro", "--dialect", "terse")
    asked = ("try", "--env", "sql", "--policy", str(base), *plain, *words)
    done = opd(*asked, "--json")
    assert done.code == 0, done.err
    full = json.loads(done.out)["round"]
    weights = sum(one.numel() for one in LocalPolicy.load(base).model.parameters())
    replies = load_preset("micro").fast.write_max_new_tokens
    # A key and a value in 2 layers, 2 heads of 8, 4 bytes each.
    assert full["serving_bytes_without_activations"] == 4 * weights + 8 * (1000 + replies) * 256
    assert full["training_bytes_without_activations"] == 20 * weights
    assert "serving 8 episodes together: up to " in opd(*asked).out


def test_a_chat_model_is_evaluated_in_its_dialect(
    opd: Opd, elsewhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = checkpoints.sized("qwen3", tmp_path / "base", 1)
    seen: set[str] = set()
    generate = LocalPolicy.generate

    def watched(policy: LocalPolicy, requests: Sequence[GenerationRequest]) -> list[Reply]:
        for message in (message for one in requests for message in one.prompt.messages if message.role == "system"):
            seen.add("".join(segment.text for segment in message.segments))
        return generate(policy, requests)

    monkeypatch.setattr(LocalPolicy, "generate", watched)
    few = ("act_max_new_tokens=2", "select_max_new_tokens=2", "write_max_new_tokens=2", "max_steps=1")
    sizes = ("policy.dtype=float32", *(f"fast.{one}" for one in few))
    words = [word for one in sizes for word in ("--set", one)]
    asked = ("evaluate", str(base), "--domains", "sql", "--tasks", "1", "--json")
    assert opd(*asked).code == 0 and not seen, "terse has no instructions"
    done = opd(*asked, "--preset", "qwen3-4b-1gpu", *words)
    assert done.code == 0, done.err
    assert any(said.startswith("You are an agent") for said in seen) and json.loads(done.out)


def test_what_was_served_before_a_refusal_is_shown(opd: Opd, elsewhere: Path) -> None:
    """A server with a small context, of prompts that nothing can be left out of: the write prompt of a first step."""

    def small(exchange: Exchange) -> None:
        if exchange.body["messages"][0]["content"].startswith("You reflect"):
            exchange.answer({"error": {"message": "maximum context length is 64 tokens"}}, 400)
        else:
            chat(exchange)

    asked = ("--env", "sql", "--model", "m", "--tasks", "1", "--set", "fast.max_steps=1")
    with serving(small) as server:
        said = opd("try", *asked, "--policy", server.url)
        told = opd("try", *asked, "--policy", server.url, "--json")
    assert said.code == told.code == 2
    assert "mend: lower memory.entry_token_budget, fast.max_steps" in said.err
    assert "── call 1 · act · 11 + 7 tokens ──" in said.out and "Action: select count" in said.out
    assert "no full round is estimated" in said.out and "a full fast loop" not in said.out
    tree = json.loads(told.out)
    assert [call["ability"] for call in tree["calls"]] == ["act"] and tree["round"] == {} and tree["tried"] == []


def test_a_trial_shows_the_prompt_that_was_sent_not_the_one_that_was_too_long(
    opd: Opd, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Sql, "step", lambda world, action: Step(observation="word " * 30, reward=0.0))
    with serving(lambda exchange: within(320, exchange, chat)) as server:
        tree = json.loads(tried(opd, server, "--tasks", "1", "--json", "--set", "fast.max_steps=8"))
    sent = ["\n".join(f"[{one['role']}]\n{one['content']}" for one in seen.body["messages"]) for seen in server.seen]
    shown = [call["prompt"] for call in tree["calls"]]
    assert len(sent) > len(shown) and sent[-1] == shown[-1]
    assert [prompt for prompt in sent if prompt in set(shown)] == shown


def test_no_reply_commands_the_terminal(opd: Opd, elsewhere: Path) -> None:
    evil = "\x1b]52;c;ZXZpbA==\x07\x1b[2Jgone\r\x9b2J"

    def hostile(exchange: Exchange) -> None:
        exchange.answer(completion({"content": f"Action: {evil}", "reasoning_content": evil}))

    with serving(hostile) as server:
        text = tried(opd, server, "--tasks", "1", "--set", "fast.max_steps=2")
    assert "\\x1b]52;c;ZXZpbA==\\x07\\x1b[2Jgone\\r\\x9b2J" in text
    assert not [one for one in text if not one.isprintable() and one not in "\n\t"]


@pytest.mark.parametrize("port", ["", ":99999"])
@pytest.mark.parametrize("scheme", ["http", "HTTP"])
@pytest.mark.parametrize("more", [(), ("--model", "m")])
def test_a_password_in_the_url_is_never_shown(
    opd: Opd, elsewhere: Path, port: str, scheme: str, more: tuple[str, ...]
) -> None:
    found = opd("try", "--env", "sql", "--policy", f"{scheme}://bob:hunter2@h{port}/v1", *more)
    assert found.code == 2 and found.out == "" and "--policy" in found.err
    assert "hunter2" not in found.err
