"""Policies for benchmark tests that really read their prompts: a perfect reader, and one with fixed beliefs."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping

from opd_evolver.environments.apps import SPEC as APPS
from opd_evolver.environments.sql import OPS
from opd_evolver.policy.scripted import ScriptedPolicy
from opd_evolver.records import GenerationRequest, Prompt

Beliefs = Mapping[tuple[str, str], str]


def _text(prompt: Prompt, at: int = -1) -> str:
    return " ".join(segment.text for segment in prompt.messages[at].segments)


def _facts(listed: str) -> dict[tuple[str, str], tuple[int, str]]:
    """(scope, key) → newest (round, value) of `zora late r3 4 | …`, with or without handles."""
    found: dict[tuple[str, str], tuple[int, str]] = {}
    for scope, key, round_, value in re.findall(r"(\w+) (\w+)(?: h\d+)? r(\d+) (\w+)", listed):
        found[scope, key] = max(found.get((scope, key), (0, "")), (int(round_), value))
    return found


def _key_and_action(words: list[str], value: str) -> tuple[str, str]:
    if words[0] in OPS:
        return words[1], f"select {OPS[words[0]]} from jobs where state = {value}"
    return words[0], f"call {value} call {words[0]} {words[1]}"


def _act(prompt: Prompt, beliefs: Beliefs) -> str:
    first = _text(prompt, 0)
    listed, _, task = first.rpartition("task ")
    scope, asked = task.split(" ", 1)
    n_done = sum(" next " in _text(prompt, at) for at in range(2, len(prompt.messages), 2))
    words = asked.split(" then ")[n_done].split()
    key = _key_and_action(words, "")[0]
    known = _facts(listed).get((scope, key))
    value = known[1] if known else beliefs.get((scope, key))
    if value is None:
        n_tried = (len(prompt.messages) - 1) // 2
        place = (zlib.crc32(f"{task} {n_done}".encode()) + n_tried) % 10
        value = str(place) if words[0] in OPS else APPS.values[place % len(APPS.values)]
    recited = f"r{known[0]} {known[1]}" if known else f"guess {value}"
    return f"{scope} {key} {recited} do {_key_and_action(words, value)[1]}"


def _select(prompt: Prompt) -> str:
    head, _, listed = _text(prompt).partition(" | ")
    scope, asked = head.removeprefix("select ").split(" ", 1)
    keys = {_key_and_action(part.split(), "")[0] for part in asked.split(" then ")}
    found = re.findall(r"(\w+) (\w+) (h\d+) r\d+", listed)
    return " ".join(f"{scope} {key} {handle}" for name, key, handle in found if name == scope and key in keys) or "none"


def _write(prompt: Prompt) -> str:
    turns = re.findall(r"(\w+) guess (\w+) do [^|]*? got ok", _text(prompt))
    return " | ".join(f"tip {key} {value}" for key, value in turns) or "none"


def reader(version: str = "reader", beliefs: Beliefs | None = None) -> ScriptedPolicy:
    """Obeys the newest entry it is shown, else its beliefs, else guesses; selects and writes by the rules."""

    def respond(prompt: Prompt, request: GenerationRequest) -> str:
        if prompt.ability == "act":
            return _act(prompt, beliefs or {})
        return {"select": _select, "write": _write}.get(prompt.ability, lambda _: "finish")(prompt)

    return ScriptedPolicy(respond, version)


def stubborn(beliefs: Beliefs, version: str = "stubborn") -> ScriptedPolicy:
    """Believes what is in its weights, whatever the memory says; selects nothing, writes nothing."""

    def respond(prompt: Prompt, request: GenerationRequest) -> str:
        if prompt.ability != "act":
            return "none"
        first = prompt.messages[0]
        without = [segment for segment in first.segments if segment.kind != "memory" and segment.text != "mem"]
        bare = first.model_copy(update={"segments": tuple(without)})
        return _act(Prompt(ability="act", messages=(bare, *prompt.messages[1:])), beliefs)

    return ScriptedPolicy(respond, version)
