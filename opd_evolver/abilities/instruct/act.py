"""Act, for chat models: one action a reply, as `Action: …` (ReAct) or as a tool call.

The opening message holds task, notes and first observation; injected once per episode. A saved tool is called
with `Action: run <tool name> <arg …>` (rollout/tools.py), or with a tool call `run`.
Internalisation: the student acts without notes; the teacher's hindsight holds the helpful entries S+ and a
successful trajectory.
Paper: fast loop step 3 and the act view of the slow loop.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import Any

from opd_evolver.abilities.act import reply_message
from opd_evolver.abilities.instruct import reading
from opd_evolver.abilities.instruct.wording import (
    entries_text,
    hint,
    indented,
    notes_segments,
    quoted,
    segment,
    system,
    turn_text,
    user,
)
from opd_evolver.memory.levels import Count, n_words
from opd_evolver.records import Entry, Message, Prompt, Segment, TurnRecord

__all__ = ["SYSTEM", "first_message", "hindsight", "observation_message", "parse", "prompt", "reply_message"]

SYSTEM = system(
    "You are an agent that carries out a task in an environment, one action at a time. After each action you get an "
    "observation; learn from it, above all from errors. There may be notes from memory: trust those that apply to "
    "the task's scope, and of two that contradict each other the one of the later round. A note may be a tool: call "
    "it with the action `run NAME ARGUMENTS`. Without a note that applies, explore.\n\n"
    "Reply with a short thought and one action, and stop there:\n"
    "Thought: why\nAction: the action, in one line\n\n"
    'Or reply with one tool call: <tool_call>{"name": "act", "arguments": {"action": "the action"}}</tool_call>'
)
_LABEL = re.compile(r"^[\s>#*_-]*(?:final\s+)?action(?:\s*\d+)?[\s*_]*:[*_]*[ \t]*(.*)$", re.IGNORECASE)
_INPUT = re.compile(r"^[\s>#*_-]*action[ _]input(?:\s*\d+)?[\s*_]*:[*_]*[ \t]*(.*)$", re.IGNORECASE)
_OTHER = re.compile(r"^[\s>#*_-]*(?:observation|thought|result)(?:\s*\d+)?[\s*_]*:", re.IGNORECASE)
_OPENED = re.compile(r"(\*+)(?=final|action)", re.IGNORECASE)
_BOLD = re.compile(r"(\*{1,3})([^\s*](?:.*[^\s*])?)\1")
_CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
_TAG, _TAG_END = re.compile("<action>", re.IGNORECASE), re.compile("</action>", re.IGNORECASE)
_FENCED = re.compile(r"\A```[\w+-]*[ \t]*\n?(.*?)(?:```|\Z)", re.DOTALL)
_ACTING = {"act", "action", "step", "execute", "environment", "env", "do"}
# Keys under which a text is a line of arguments, as behind a tool's name.
_LINES = {"arguments", "args"}


def first_message(
    task_text: str,
    observation: str,
    memories: Sequence[Entry],
    *,
    token_budget: int,
    count: Count = n_words,
    hindsight: Segment | None = None,
) -> Message:
    """The opening user message; `memories` is empty for the student of internalisation."""
    segments = [segment(f"Task: {quoted(task_text)}")]
    segments += notes_segments(memories, token_budget=token_budget, count=count)
    if hindsight is not None:
        segments.append(hindsight)
    if observation.strip():
        segments.append(segment(f"\n\nObservation:\n{indented(observation)}"))
    return user(*segments)


def observation_message(observation: str) -> Message:
    return user(segment(f"Observation:\n{indented(observation) or '    (nothing)'}", "history"))


def prompt(first: Message, history: Sequence[Message] = ()) -> Prompt:
    """`history` alternates reply and observation messages and ends with an observation."""
    return Prompt(ability="act", messages=(SYSTEM, first, *history))


def hindsight(
    helpful: Sequence[Entry],
    won: Sequence[tuple[str, TurnRecord]] = (),
    *,
    token_budget: int,
    count: Count = n_words,
) -> Segment | None:
    """S+ and tau+: helpful entries, then the steps of a successful trajectory."""
    notes = entries_text(helpful, token_budget=token_budget, count=count)
    steps = "\n".join(turn_text(number, turn) for number, (_, turn) in enumerate(won, start=1))
    return hint(
        f"These notes help:\n{notes}" if notes else "", f"An attempt at this task succeeded:\n{steps}" if steps else ""
    )


def parse(reply: str) -> tuple[str, bool]:
    """The action and whether the reply was readable; an unreadable reply goes to the environment as it is.

    The first action counts: what a model goes on to make up after it (observations, further actions) does not.
    """
    text = reading.said(reply)
    found = _called(text) or _labelled(text) or _tagged(text)
    if found:
        return found, True
    return " ".join(text.split()), False


def _called(text: str) -> str | None:
    """The action of a tool call: in tags, or a reply that is nothing else."""
    tagged = _CALL.search(text)
    if tagged is not None:
        before = text[: tagged.start()]
        if _labelled(before) is not None:
            return None  # an action stands before it
        return next((action for tree in reading.values(tagged[1]) if (action := _action_of(tree))), None)
    if text[:1] not in ("{", "[", "`"):
        return None
    trees = [one for tree in reading.values(text) for one in (tree if isinstance(tree, list) else [tree])]
    return _action_of(trees[0]) if trees else None


def _action_of(tree: Any) -> str | None:
    """`{"name": …, "arguments": {…}}`, `{"action": "…"}` or `{"action": …, "action_input": …}`, also in `function`."""
    if not isinstance(tree, dict):
        return None
    inner = reading.field(tree, "function")
    tree = inner if isinstance(inner, dict) else tree
    name = reading.text_of(tree, "name", "tool")
    arguments = reading.field(tree, "arguments", "parameters", "args", "input")
    if isinstance(arguments, str) and (unpacked := next(iter(reading.values(arguments)), None)) is not None:
        arguments = unpacked
    if not name and (given := reading.field(tree, "action_input")) not in (None, "", [], {}):
        name, arguments = reading.text_of(tree, "action"), given
    if not name:
        return _line(reading.text_of(tree, "action", "command")) or None
    if name.lower() in _ACTING:
        if isinstance(arguments, dict):
            arguments = reading.field(arguments, "action", "command", "input", "text")
        return _line(arguments) or None if isinstance(arguments, str) else None
    values = _values(arguments)
    if values is None:
        return None
    # Of `run` the first value is the tool's name, or the whole call; a text by itself is a line of arguments.
    n_bare = 1 if name.lower() == "run" else len(values) if isinstance(arguments, str) else 0
    words = [*values[:n_bare], *map(_word, values[n_bare:])]
    return " ".join(["run", *words] if name.lower() == "run" else ["run", name, *words])


def _values(arguments: Any) -> list[str] | None:
    """Arguments of a saved tool in their order; None when one is no plain value."""
    if arguments is None or arguments == "":
        return []
    if isinstance(arguments, dict):
        arguments = [
            value.split() if isinstance(value, str) and str(key).lower() in _LINES else value
            for key, value in arguments.items()
        ]
    found: list[str] = []
    for value in arguments if isinstance(arguments, list) else [arguments]:
        inner = _values(value) if isinstance(value, list) else None
        if inner is not None:
            found += inner
        elif isinstance(value, (str, int, float)) and not isinstance(value, bool):
            found.append(" ".join(str(value).split()))
        else:
            return None
    return [one for one in found if one]


def _word(value: str) -> str:
    """A value as one argument of a call, as `tools.find` reads it."""
    return shlex.quote(value) if any(mark in value for mark in " '\"\\") else value


def _labelled(text: str) -> str | None:
    """What stands behind the first `Action:`, on its line, in the fence or on the line below it; JSON over lines."""
    lines = text.splitlines()
    for place, line in enumerate(lines):
        if _INPUT.match(line) or (matched := _LABEL.match(line)) is None:
            continue
        below = lines[place + 1 :]
        action = _unbold(line[: matched.start(1)], matched[1].strip())
        if not action or action.startswith(("```", "{")):
            rest = "\n".join([action, *below]).strip()
            action = _fenced(rest)
            call = reading.leading_object(rest if rest.startswith("{") else action.strip())
            if call is not None:
                return _action_of(call)
        for following in below:
            if (_LABEL.match(following) and not _INPUT.match(following)) or _OTHER.match(following):
                break
            if given := _INPUT.match(following):
                return _with_input(action, given[1].strip())
        return _line(action) or None
    return None


def _unbold(label: str, action: str) -> str:
    """An action without the asterisks that made it or its whole line bold; its own stay."""
    opened = _OPENED.search(label)
    if opened is not None and "*" not in label[opened.end() :]:
        return action.removesuffix(opened[1]).strip()
    wrapped = _BOLD.fullmatch(action)
    return wrapped[2] if wrapped else action


def _with_input(name: str, given: str) -> str | None:
    """ReAct in two lines: `Action: run` and `Action Input: report 7`."""
    unpacked = next(iter(reading.values(given)), None)
    return _action_of({"name": name.strip("`"), "arguments": unpacked if unpacked is not None else given})


def _fenced(text: str) -> str:
    """The inside of a fence, or the first line, unless that begins something else."""
    if matched := _FENCED.match(text):
        return matched[1]
    first = text.split("\n", 1)[0]
    return "" if _OTHER.match(first) else first


def _tagged(text: str) -> str | None:
    begun = _TAG.search(text)
    end = _TAG_END.search(text, begun.end()) if begun else None
    return _line(text[begun.end() : end.start()]) or None if begun and end else None


def _line(action: str) -> str:
    """An action without quotes of code around it; several lines stay several."""
    text = "\n".join(line.strip() for line in action.strip().splitlines() if line.strip())
    if len(text) > 1 and text[0] == text[-1] == "`" and "`" not in (inside := text.strip("`")):
        text = inside.strip()
    if len(text) > 1 and text[0] == text[-1] == '"' and text.count('"') == 2:
        text = text[1:-1].strip()
    return text
