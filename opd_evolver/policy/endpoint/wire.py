"""The OpenAI-compatible chat protocol as vLLM and SGLang speak it: what is sent, and what comes back.

They differ in where thinking stands (`reasoning_content`, `reasoning`, or a block in `content`), in the
place of usage details, and in the shape of errors; all are read, so nobody need say which server it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from opd_evolver.policy.thinking import without_thinking
from opd_evolver.records import GenerationRequest, Message, Prompt, Segment

# Many servers put a message into the template before they tokenise, so that these would be obeyed.
_ROLE_MARKS = re.compile(
    r"<(?=[|｜])|<(?=</?SYS>>)"
    r"|<(?=/?(?:s|bos|eos|pad|unk|start_of_turn|end_of_turn|start_of_image|SPECIAL_\d+|extra_id_\d+)>)"
    r"|\[(?=/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_RESULTS|TOOL_CALLS|TOOL_CONTENT|ARGS|THINK)\])",
    re.IGNORECASE,
)
_BLOCK_MARKS = re.compile(r"<(?=/?(?:think|thinking|tool_call|tool_response|tools)>)", re.IGNORECASE)
# How servers say that a prompt is longer than their context. What is wrongly taken for it costs refusals alone.
_TOO_LONG = re.compile(
    rb"context[ _](?:length|size|window)|model length|too long|token count|reduce the length|`inputs`",
    re.IGNORECASE,
)
_SHOWN, _SHOWN_MALFORMED = 300, 80


class Tokens(NamedTuple):
    """Tokens of one call as the server counted them; `reasoning` and `cached` are parts of the other two."""

    prompt: int
    reply: int
    reasoning: int = 0
    cached: int = 0


class Answer(NamedTuple):
    """One reply. `tokens` is None when the server did not count."""

    text: str
    reasoning: str
    finish: Literal["stop", "length"]
    tokens: Tokens | None


Scrub = Callable[[str], str]


def brief(said: str, scrub: Scrub, most: int = _SHOWN) -> str:
    """What a server says in one short line. Scrubbed first: of a key that lies across the cut, a part would stay."""
    return " ".join(scrub(said).split())[:most]


class Failed(Exception):
    """An answer that is none. `said` is the server's own text, whole and with whatever secrets it repeats."""

    def __init__(self, seen: str, said: str = "") -> None:
        super().__init__(seen)
        self.seen, self._said = seen, said

    def told(self, scrub: Scrub) -> str:
        """What was seen, with the beginning of what the server said."""
        said = brief(self._said, scrub, _SHOWN_MALFORMED if isinstance(self, Malformed) else _SHOWN)
        return f"{self.seen} ({said!r})" if said else self.seen


class Malformed(Failed):
    """A complete answer that is no chat completion."""


class Broken(Failed):
    """An answer that ended too early, or in which the server says that it failed."""


def body(model: str, request: GenerationRequest, *, thinking: bool | None, stream: bool) -> dict[str, Any]:
    """The JSON of one request.

    Args:
        model: the id the server knows it by.
        request: prompt, sampling, seed.
        thinking: switches the chat template's thinking; None leaves it as the server has it.
        stream: ask for the reply as it comes.
    """
    sampling = request.sampling
    tree: dict[str, Any] = {
        "model": model,
        "messages": messages(request.prompt),
        "temperature": sampling.temperature,
        "top_p": sampling.top_p if sampling.temperature > 0 else 1.0,
        "max_tokens": sampling.max_new_tokens,
        "seed": request.seed,
        "stream": stream,
    }
    if stream:
        tree["stream_options"] = {"include_usage": True}
    if thinking is not None:
        tree["chat_template_kwargs"] = {"enable_thinking": thinking}
    return tree


def messages(prompt: Prompt) -> list[dict[str, str]]:
    """Role and content of every message; segments are joined as the local encoder joins them."""
    return [{"role": message.role, "content": _content(message)} for message in prompt.messages]


def _content(message: Message) -> str:
    said = ""
    for segment in message.segments:
        text = _harmless(segment, message.role)
        apart = not said or said[-1:].isspace() or text[:1].isspace() or not text
        said += text if apart else f" {text}"
    return said


def _harmless(segment: Segment, role: str) -> str:
    """Text that cannot forge a role: a blank parts every control mark. Earlier replies lose their thinking.

    The system message is sent as the dialect wrote it: no text of others stands in it, its marks are forms of reply.
    """
    text = segment.text.encode("utf-8", "replace").decode()
    if role == "system":
        return text
    text = without_thinking(text) if role == "assistant" else _BLOCK_MARKS.sub("< ", text)
    return _ROLE_MARKS.sub(lambda found: f"{found[0]} ", text)


def whole(raw: bytes) -> Answer:
    """The answer in a body that came in one piece.

    Raises:
        Malformed: it is no chat completion.
        Broken: the server gave up.
    """
    return _answer(_tree(raw))


def error_text(raw: bytes) -> str:
    """All a server says about a failure: `{"error": {"message": …}}`, `{"message": …}`, or the body as it is."""
    try:
        tree = _tree(raw)
    except Malformed:
        return raw.decode(errors="replace")
    error = tree.get("error", tree)
    return str(error.get("message", error) if isinstance(error, dict) else error)


def is_too_long(raw: bytes) -> bool:
    """Whether a refusal speaks of the prompt's length."""
    return _TOO_LONG.search(raw) is not None


class Stream:
    """Gathers a reply from server-sent events, line by line.

    Use: `feed` every line; then `answer`.
    """

    def __init__(self) -> None:
        self._said: dict[str, list[str]] = {"content": [], "reasoning": []}
        self._calls: dict[int, dict[str, str]] = {}
        self._finish: str | None = None
        self._usage: Any = None
        self._begun = self.done = False

    def feed(self, line: bytes) -> None:
        """One line; comments, event names and empty lines say nothing.

        Raises:
            Malformed: the data is no chat completion chunk.
            Broken: the server reports a failure.
        """
        field, _, data = line.partition(b":")
        if field.strip() != b"data" or not data.strip() or self.done:
            return
        if data.strip() == b"[DONE]":
            self.done = True
            return
        tree = _tree(data)
        self._usage = tree.get("usage") or self._usage
        for choice in _choices(tree)[:1]:
            self._begun = True
            delta = choice.get("delta")
            if isinstance(delta, dict):
                self._said["content"].append(_text(delta.get("content")))
                self._said["reasoning"].append(_reasoning(delta))
                self._gather(delta.get("tool_calls"))
            self._finish = choice.get("finish_reason") or self._finish

    def answer(self) -> Answer:
        """The reply.

        Raises:
            Broken: the stream ended before the reply did.
            Malformed: it held no choice.
        """
        if not self._begun and self.done:
            raise Malformed("a stream without choices")
        if self._finish is None and not self.done:
            raise Broken("the stream was cut")
        message = {name: "".join(parts) for name, parts in self._said.items()}
        calls = [{"function": call} for _, call in sorted(self._calls.items())]
        choice = {"message": {**message, "tool_calls": calls}, "finish_reason": self._finish}
        return _answer({"choices": [choice], "usage": self._usage})

    def _gather(self, calls: Any) -> None:
        for call in calls if isinstance(calls, list) else []:
            function = call.get("function") if isinstance(call, dict) else None
            if isinstance(function, dict):
                place = call.get("index")
                held = self._calls.setdefault(place if isinstance(place, int) else 0, {"name": "", "arguments": ""})
                for name in held:
                    held[name] += _text(function.get(name))


def _tree(raw: bytes) -> dict[str, Any]:
    try:
        tree = json.loads(raw)
    except (ValueError, RecursionError):
        said = raw.decode(errors="replace")
        raise Malformed("no JSON" if said.strip() else "an empty body", said) from None
    if not isinstance(tree, dict):
        raise Malformed(f"JSON that is no object ({type(tree).__name__})")
    return tree


def _choices(tree: Mapping[str, Any]) -> list[dict[str, Any]]:
    if tree.get("error"):
        raise Broken("the server reports a failure", error_text(json.dumps(tree).encode()))
    choices = tree.get("choices")
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise Malformed("an object without choices", f"keys: {', '.join(tree) or 'none'}")
    return choices


def _answer(tree: Mapping[str, Any]) -> Answer:
    choices = _choices(tree)
    if not choices:
        raise Malformed("an empty list of choices")
    message, finish = choices[0].get("message"), choices[0].get("finish_reason")
    if not isinstance(message, dict):
        raise Malformed("a choice without a message")
    if finish in ("abort", "error"):
        raise Broken(f"the server gave up on the reply (finish_reason {finish})")
    text = "\n".join(one for one in (_text(message.get("content")), _calls_text(message.get("tool_calls"))) if one)
    return Answer(text, _reasoning(message), "length" if finish == "length" else "stop", _tokens(tree.get("usage")))


def _text(value: Any) -> str:
    """A text, or the text parts of a list; whatever cannot be UTF-8 is replaced."""
    if isinstance(value, list):
        value = "".join(one["text"] for one in value if isinstance(one, dict) and isinstance(one.get("text"), str))
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else ""


def _reasoning(message: Mapping[str, Any]) -> str:
    """SGLang and older vLLM say `reasoning_content`, newer vLLM `reasoning`."""
    return _text(message.get("reasoning_content")) or _text(message.get("reasoning"))


def _calls_text(calls: Any) -> str:
    """Structured tool calls in the form in which models write them: the instruct dialect reads it."""
    parts = []
    for call in calls if isinstance(calls, list) else []:
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict) and isinstance(function.get("name"), str):
            arguments = function.get("arguments")
            told = _text(arguments) if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
            name = json.dumps(_text(function["name"]), ensure_ascii=False)
            parts.append(f'<tool_call>\n{{"name": {name}, "arguments": {told or "{}"}}}\n</tool_call>')
    return "\n".join(parts)


def _tokens(usage: Any) -> Tokens | None:
    if not isinstance(usage, dict):
        return None
    prompt, reply = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    if prompt is None or reply is None:
        return None

    def detail(flat: str, group: str, name: str) -> int:
        held = usage.get(group)
        return _count(held.get(name) if isinstance(held, dict) else usage.get(flat)) or 0

    return Tokens(
        prompt,
        reply,
        detail("reasoning_tokens", "completion_tokens_details", "reasoning_tokens"),
        detail("cached_tokens", "prompt_tokens_details", "cached_tokens"),
    )


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
