"""A scripted agent that speaks instruct in the sql world: it reads prompts only, as a chat model would."""

from __future__ import annotations

import json
import re

from rollout_world import SQL_OPS

from opd_evolver.records import GenerationRequest, Prompt

_TIP = re.compile(r"(\[m\d+\]|-) tip for (\S+), round \d+[^\n]*\n    When: (\S+)\n    Note: (\S+)")
_TURN = re.compile(r"^\d+\. Action: (.*)\n   Observation:\n    (.*)$", re.MULTILINE)


def _text(prompt: Prompt, place: int) -> str:
    return "".join(segment.text for segment in prompt.messages[place].segments)


def _task(text: str) -> str:
    return text.split("Task: ", 1)[1].split("\n", 1)[0]


def _question(task: str, *observations: str) -> list[str]:
    """Scope, operation and key that are asked for now."""
    asked = task.split(" then ")[0].split()
    for observation in observations:
        if " next " in observation:
            asked = observation.split(" next ", 1)[1].split()
    return asked


def _act(prompt: Prompt, request: GenerationRequest) -> str:
    first = _text(prompt, 1)
    later = [
        _text(prompt, place) for place, message in enumerate(prompt.messages) if place > 1 and message.role == "user"
    ]
    scope, operation, key = _question(_task(first), *later)[:3]
    known = {found[2]: found[3] for found in _TIP.findall(first) if found[1] == scope}
    value = known.get(key, str(request.seed % 10))
    return f"Thought: {key} is {value}\nAction: select {SQL_OPS[operation]} from jobs where state = {value}"


def _select(prompt: Prompt) -> str:
    text = _text(prompt, 1)
    task = _task(text).split()
    return json.dumps(
        {"use": [found[0].strip("[]") for found in _TIP.findall(text) if found[1] == task[0] and found[2] in task]}
    )


def _write(prompt: Prompt) -> str:
    text = _text(prompt, 1)
    known = {found[2] for found in _TIP.findall(text)}
    entries, seen = [], []
    for action, result in _TURN.findall(text):
        key = _question(_task(text), *seen)[2]
        if result.startswith("ok") and key not in known:
            entries.append({"level": "tip", "trigger": key, "text": action.split()[-1]})
        seen.append(result)
    return f"```json\n{json.dumps({'entries': entries})}\n```"


def agent(prompt: Prompt, request: GenerationRequest) -> str:
    """Selects by key, now and then not; uses what it was given or guesses; writes down guesses that held."""
    if prompt.ability == "act":
        return _act(prompt, request)
    if prompt.ability == "select":
        return '{"use": []}' if request.seed % 4 == 0 else _select(prompt)
    if prompt.ability == "write":
        return _write(prompt)
    return ['{"command": "lookup", "query": "late"}', "hm", '{"command": "finish"}'][
        min(2, (len(prompt.messages) - 2) // 2)
    ]
