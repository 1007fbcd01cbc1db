"""What may be written: every proposed content is checked here before it becomes an entry.

Types by pydantic, lengths by field, no control characters, and code that can be run at all. A
fault is `reason: detail`; reasons are few and fixed, so that they can be counted.
Source: ours; the limits are in docs/sandbox.md.
"""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections.abc import Iterator

from pydantic import TypeAdapter, ValidationError

from opd_evolver.records import Content, SkillContent, TipContent, ToolContent, TrajectoryContent

ACTIONS = "actions"
TOOL_LANGUAGES = (ACTIONS, "python", "bash")
# Most characters of a text field, and most items of a list field, by level.
MAX_CHARS: dict[str, dict[str, int]] = {
    "trajectory": {
        "task": 4000,
        "steps.observation": 20_000,
        "steps.action": 4000,
        "steps.result": 20_000,
        "learnings": 1000,
        "tags": 64,
    },
    "tip": {"trigger": 200, "text": 2000},
    "skill": {"description": 400, "technique": 2000, "preconditions": 1000, "steps": 500},
    "tool": {"name": 64, "code": 8000, "input_description": 1000, "output_description": 1000},
}
MAX_ITEMS: dict[str, dict[str, int]] = {
    "trajectory": {"steps": 64, "learnings": 16, "tags": 16},
    "tip": {},
    "skill": {"steps": 32},
    "tool": {},
}
REASONS = (
    "wrong type",
    "too long",
    "control characters",
    "empty",
    "empty code",
    "unsupported language",
    "syntax error",
)
_CONTENT: TypeAdapter[Content] = TypeAdapter(Content)
_SEPARATOR = re.compile(r"(?:^|\s);(?=\s|$)")
_INVISIBLE = {"Cc", "Cs"}
_BIDIRECTIONAL = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def parts_of(code: str) -> tuple[str, ...]:
    """The environment actions of an `actions` tool, in order; a part may be empty."""
    return tuple(" ".join(part.split()) for part in _SEPARATOR.split(code))


def _texts(content: Content) -> Iterator[tuple[str, str]]:
    """Every text of a content with its field's name."""
    for field, value in content:
        if field == "level":
            continue
        if isinstance(value, str):
            yield field, value
        elif isinstance(value, tuple):
            for item in value:
                if isinstance(item, str):
                    yield field, item
                else:
                    yield from ((f"{field}.{name}", text) for name, text in item if isinstance(text, str))


def _is_control(letter: str) -> bool:
    if letter in "\n\t":
        return False
    return unicodedata.category(letter) in _INVISIBLE or letter in _BIDIRECTIONAL


def _too_long(content: Content) -> str | None:
    for field, most in MAX_ITEMS[content.level].items():
        if (n := len(getattr(content, field))) > most:
            return f"too long: {content.level} {field} has {n} items, at most {most}"
    for field, text in _texts(content):
        most_chars = MAX_CHARS[content.level].get(field)
        if most_chars is not None and len(text) > most_chars:
            return f"too long: {content.level} {field} has {len(text)} characters, at most {most_chars}"
    return None


def _empty(content: Content) -> str | None:
    match content:
        case TipContent():
            needed = {"trigger": content.trigger, "text": content.text}
        case SkillContent():
            needed = {"description": content.description, "steps": content.technique + "".join(content.steps)}
        case ToolContent():
            needed = {"name": content.name}
        case TrajectoryContent():
            needed = {"task": content.task, "steps": "".join(step.action for step in content.steps)}
    return next((f"empty: {content.level} {field}" for field, text in needed.items() if not text.strip()), None)


def _code_fault(content: ToolContent) -> str | None:
    if content.language not in TOOL_LANGUAGES:
        return f"unsupported language: {content.language[:40]}"
    if not content.code.strip():
        return f"empty code: tool {content.name}"
    if content.language == ACTIONS and not all(parts_of(content.code)):
        return f"empty code: tool {content.name} has an empty action"
    if content.language == "python":
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                compile(content.code, content.name, "exec", dont_inherit=True)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            return f"syntax error: tool {content.name}: {' '.join(str(error).split())[:120]}"
    return None


def fault(content: Content) -> str | None:
    """Why this may not be written, as `reason: detail` with a reason of `REASONS`; None when it may.

    Args:
        content: as a reply, a merge or an import proposes it.
    """
    try:
        # Again: a copy made with `model_copy(update=…)` was never checked.
        _CONTENT.validate_python(content.model_dump(warnings=False), strict=True)
    except ValidationError as error:
        return f"wrong type: {content.level} {'.'.join(map(str, error.errors()[0]['loc'][1:]))}"
    if found := _too_long(content):
        return found
    for field, text in _texts(content):
        if letter := next((letter for letter in text if _is_control(letter)), None):
            return f"control characters: {content.level} {field} holds U+{ord(letter):04X}"
    return _empty(content) or (_code_fault(content) if isinstance(content, ToolContent) else None)
