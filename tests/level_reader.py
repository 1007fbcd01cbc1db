"""A policy that reads entries of every level by plain rules: what a perfect student of the seed data would say."""

from __future__ import annotations

import re
import zlib

from opd_evolver.environments.apps import SPEC as APPS
from opd_evolver.environments.conventions import CONTEXTS
from opd_evolver.environments.domain import Domain
from opd_evolver.environments.sql import OPS
from opd_evolver.environments.sql import SPEC as SQL
from opd_evolver.policy.scripted import ScriptedPolicy
from opd_evolver.records import GenerationRequest, Prompt

HEAD = re.compile(r"(?:(skill|tool|traj) )?(\w+) (\w+)(?: (?![hr]\d)\S+)*(?: h(\d+))? r(\d+)(?: :)? (.*)")


def _text(prompt: Prompt, at: int = -1) -> str:
    return " ".join(segment.text for segment in prompt.messages[at].segments)


def _spec(words: list[str]) -> Domain:
    return SQL if words[0] in OPS or SQL.procedure(words[0]) else APPS


def _key(words: list[str]) -> str:
    return words[1] if words[0] in OPS else words[0]


def _entries(listed: str) -> dict[tuple[str, str], tuple[int, str, str, str]]:
    """(scope, key) → (round, level, body, handle) of the newest entry."""
    found: dict[tuple[str, str], tuple[int, str, str, str]] = {}
    for part in listed.split(" | "):
        if head := HEAD.match(part.strip()):
            level, scope, key, handle, number, body = head.groups()
            one = (int(number), level or "tip", body, handle or "")
            found[scope, key] = max(found.get((scope, key), (0, "", "", "")), one)
    return found


def _action(spec: Domain, words: list[str], word: str) -> str:
    if words[0] in OPS:
        return f"select {OPS[words[0]]} from jobs where state = {word}"
    if spec.procedure(words[0]):
        return f"select {word} from {words[1]}" if spec is SQL else f"call {word} {words[1]}"
    return f"call {word} call {words[0]} {words[1]}"


def _words_of(level: str, body: str) -> list[str]:
    """The words of an entry's moves, in order."""
    pieces = body.split(" ; ")
    if level == "traj":
        pieces = [piece for piece in pieces if piece.startswith(("select ", "call "))]
    return [piece.split()[1] if level in ("tool", "traj") else piece for piece in pieces]


def _act(prompt: Prompt) -> str:
    listed, _, task = _text(prompt, 0).rpartition("task ")
    scope, text = task.split(" | ")[0].split(" ", 1)
    text = " ".join(word for word in text.split() if word not in CONTEXTS)
    asked = text.split(" then ")
    stage, number = 1, 0
    for at in range(2, len(prompt.messages), 2):
        said = _text(prompt, at).partition(" next ")[2].split()
        if said and re.fullmatch(r"s\d", said[-1]):
            stage = int(said[-1][1:])
        elif said:
            stage, number = 1, asked.index(" ".join(said[1:]))
    words = asked[number].split()
    spec, key = _spec(words), _key(words)
    known = _entries(listed.removeprefix("act mem ")).get((scope, key))
    if known is not None and known[1] == "tool":
        return f"{scope} {key} r{known[0]} do run {' '.join(words)}"
    if known is not None:
        return f"{scope} {key} r{known[0]} do {_action(spec, words, _words_of(*known[1:3])[stage - 1])}"
    choices = spec.choices(key)
    place = zlib.crc32(f"{task} {number} {stage} {len(prompt.messages)}".encode()) % len(choices)
    return f"{scope} {key} guess {choices[place]} do {_action(spec, words, choices[place])}"


def _select(prompt: Prompt) -> str:
    head, _, listed = _text(prompt).partition(" | ")
    scope, text = head.removeprefix("select ").split(" ", 1)
    found = _entries(listed)
    keys = [_key(part.split()) for part in text.split(" then ")]
    return " ".join(f"{scope} {key} h{found[scope, key][3]}" for key in keys if (scope, key) in found) or "none"


def _write(prompt: Prompt) -> str:
    text = _text(prompt)
    task = text.partition("task ")[2].split(" | ")[0]
    turns = text.partition("task ")[2].split(" | ")[1:]
    found: dict[str, list[tuple[str, str]]] = {}
    guessed: set[str] = set()
    for one in turns:
        if " got ok" not in one:
            continue
        said, action = one.split(" got ")[0].split(" do ")
        key = said.split()[1]
        found.setdefault(key, []).append((action.split()[1], action))
        if " guess " in said:
            guessed.add(key)
    out = []
    for place, part in enumerate(task.split(" ", 1)[1].split(" then ")):
        words = part.split()
        key, spec = _key(words), _spec(words)
        procedure = spec.procedure(key)
        if key not in guessed or (procedure and len(found[key]) < procedure.n_moves):
            continue
        if procedure is None:
            said = next(one for one in turns if f" {key} guess " in one and " got ok" in one)
            out.append(f"tip {key} {said.split()[3]}")
        elif procedure.level == "skill":
            out.append(f"skill {key} : {' ; '.join(word for word, _ in found[key])}")
        elif procedure.level == "tool":
            code = " ; ".join(re.sub(rf" {words[1]}$", " $1", action) for _, action in found[key])
            out.append(f"tool {key} : {code}")
        elif place == 0:
            out.append("traj")
    return " | ".join(out) or "none"


def reader() -> ScriptedPolicy:
    """Obeys the newest entry of every level, else guesses; selects and writes by the rules."""

    def respond(prompt: Prompt, request: GenerationRequest) -> str:
        return {"act": _act, "select": _select, "write": _write}.get(prompt.ability, lambda _: "finish")(prompt)

    return ScriptedPolicy(respond, "level-reader")
