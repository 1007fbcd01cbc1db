"""The entry budget counts words by default, or the policy's own tokens, the same wherever a prompt is rendered."""

from __future__ import annotations

import sys
from typing import Any

import checkpoints
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rollout_world import Shelf, Toy, agent, rollout, small, tip

from opd_evolver.abilities import dialects, select
from opd_evolver.errors import SetupError
from opd_evolver.memory.levels import n_words
from opd_evolver.params import PRESETS, MemoryParams, load_preset, merge
from opd_evolver.policy.chat import ChatEncoder
from opd_evolver.policy.scripted import ScriptedPolicy
from opd_evolver.records import Entry, GenerationRequest, Prompt, SkillContent, TipContent
from opd_evolver.rollout.budget import count_of, policy_count, token_count
from opd_evolver.rollout.runner import EnvironmentPool, Runner
from opd_evolver.rollout.settings import EpisodeSettings
from opd_evolver.steps import prepare

ENCODER = ChatEncoder(checkpoints.qwen3_tokenizer(), 512)
COUNT = token_count(ENCODER.encode)


class Speaker(ScriptedPolicy):
    """A scripted policy whose tokens are a real tokenizer's; keeps its prompts."""

    def __init__(self) -> None:
        super().__init__(agent)
        self.prompts: list[Prompt] = []

    def encode(self, prompt: Prompt) -> Any:
        return ENCODER.encode(prompt)

    def generate(self, requests: Any) -> Any:
        self.prompts += [request.prompt for request in requests]
        return super().generate(requests)


class TextOnly:
    version = "text"

    def generate(self, requests: Any) -> list[Any]:
        return []


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=40))
def test_tokens_are_the_policys_own(text: str) -> None:
    assert COUNT(text) == ENCODER.count(text)


def test_a_text_beyond_every_prompt_is_endless() -> None:
    assert COUNT("漢 " * 4000) == sys.maxsize


def test_words_are_the_default_and_need_no_tokenizer() -> None:
    assert MemoryParams().budget_unit == EpisodeSettings.of(small()).budget_unit == "words"
    assert count_of("words", None) is policy_count("words", TextOnly()) is policy_count("words", None) is n_words


def test_a_text_only_policy_has_no_tokens() -> None:
    with pytest.raises(SetupError, match="budget_unit to words"):
        policy_count("tokens", TextOnly())


def prompts(unit: str, budget: int, entries: list[Entry]) -> dict[str, Prompt]:
    params = small(
        memory__budget_unit=unit,
        memory__entry_token_budget=budget,
        memory__candidate_token_budget=budget,
        fast__withhold_probability=0.0,
    )
    policy = Speaker()
    with EnvironmentPool(lambda domain: Toy()) as pool:
        Runner(policy, pool, Shelf(entries), EpisodeSettings.of(params)).run([rollout()], 1)
    return {prompt.ability: prompt for prompt in reversed(policy.prompts)}


def shown(prompt: Prompt) -> str:
    [text] = [part.text for message in prompt.messages[:1] for part in message.segments if part.kind == "memory"]
    return text


def test_select_act_and_write_are_cut_by_the_unit_of_the_parameter() -> None:
    long = Entry(
        entry_id="long",
        domain="toy",
        scope="zora",
        content=TipContent(trigger="late", text="internationalization of incomprehensibilities"),
        created_round=1,
    )
    entries = [tip("late", "7"), long]
    words, tokens = prompts("words", 8, entries), prompts("tokens", 8, entries)
    asked = select.prompt("zora count late", entries, token_budget=8, count=ENCODER.count)
    assert shown(tokens["select"]) == shown(asked) != shown(words["select"])
    assert "incomprehensibilities" in shown(words["select"])
    assert "incomprehensibilities" not in shown(tokens["select"]) and "…" in shown(tokens["select"])
    for ability in ("act", "write"):
        assert shown(tokens[ability]) and COUNT(shown(tokens[ability])) <= 2 * (8 + COUNT(" …")) + COUNT(" | ")


def test_a_request_is_what_it_was_before_with_words() -> None:
    entries = [tip("late", "7")]
    request = GenerationRequest(prompt=prompts("words", 64, entries)["select"], sampling=small_sampling(), seed=0)
    assert shown(request.prompt) == "zora late h1 r1 7"


def small_sampling() -> Any:
    return EpisodeSettings.of(small()).select_sampling


# ── budgets of tokens fit into a prompt ───────────────────────────────────────────────────────


@pytest.mark.parametrize("name", PRESETS)
def test_the_memories_of_every_preset_fit(name: str) -> None:
    prepare.check_budgets(load_preset(name))


def test_the_gpu_preset_fits_whatever_the_memories_say() -> None:
    params = load_preset("qwen3-4b-1gpu")
    memory, limit = params.memory, params.policy.max_prompt_tokens
    encoder, speak = ChatEncoder(checkpoints.qwen3_tokenizer(), limit), dialects.of(params.policy.dialect)
    entries = [
        Entry(
            entry_id=str(number),
            domain="toy",
            scope="zora",
            content=SkillContent(description=f"word {number}", steps=("word " * 15,) * 40),
            created_round=1,
        )
        for number in range(memory.candidates)
    ]
    task = "word " * 100
    whole, chosen = memory.entry_token_budget, entries[: memory.max_selected]
    first = speak.act.first_message(task, "word " * 200, chosen, token_budget=whole, count=encoder.count)
    listed = speak.maintain.first_message(len(entries), entries, token_budget=whole, count=encoder.count, notes={})
    prompts = {
        "select": speak.select.prompt(task, entries, token_budget=memory.candidate_token_budget, count=encoder.count),
        "act": speak.act.prompt(first),
        "maintain": speak.maintain.prompt(listed),
    }
    sizes = {ability: len(encoder.encode(prompt).token_ids) for ability, prompt in prompts.items()}
    assert sizes["select"] > limit // 2 and max(sizes.values()) <= limit


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"memory.candidate_token_budget": 150},
            "= 150: 7500 tokens in a prompt of select.*to 143, lower memory.c",
        ),
        ({"memory.entry_token_budget": 400}, "max_selected = 20 with .* 8000 tokens in a prompt of act"),
        ({"policy.max_prompt_tokens": 4096}, "at most 3584 of policy.max_prompt_tokens = 4096"),
    ],
)
def test_a_run_whose_memories_could_fill_a_prompt_is_not_begun(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(SetupError, match=said):
        prepare.check(merge(load_preset("qwen3-4b-1gpu"), changes, "test"))
    prepare.check_budgets(merge(load_preset("qwen3-4b-1gpu"), {**changes, "memory.budget_unit": "words"}, "test"))


def test_a_run_whose_processes_have_no_gpu_each_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = merge(load_preset("qwen3-4b-1gpu"), {"slow.processes": 2}, "test")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("OPD_DEVICE", "cuda")
    with pytest.raises(SetupError, match=r"slow.processes = 2 with OPD_DEVICE=cuda; expected at most 1.*=1"):
        prepare.check(wanted)
    for name, value in (("slow.processes", 1), ("flows.placement", "deployment")):
        prepare.check_devices(merge(wanted, {name: value}, "test"), "cuda")
    prepare.check_devices(wanted, "cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    prepare.check_devices(wanted, "cuda")
    with pytest.raises(SetupError, match=r"slow.processes = 2 with OPD_DEVICE=cuda:1.*CUDA_VISIBLE_DEVICES"):
        prepare.check_devices(wanted, "cuda:1")  # of which both would know nothing
    prepare.check_devices(merge(wanted, {"slow.processes": 1}, "test"), "cuda:1")
