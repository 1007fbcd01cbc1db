"""Reading what chat models say: thinking taken out, JSON with or without fences, small slips forgiven.

What is forgiven never changes what was meant; anything else is unreadable, and the caller says what that costs.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Iterator
from typing import Any

from opd_evolver.policy.thinking import without_thinking

MOST_CHARS = 30_000
_MOST_STARTS = 50
_MOST_LITERAL = 4000
# Beyond these, writing a value down again fails: json.dumps by its depth, str by its digits.
_MOST_DEEP = 40
_MOST_BITS = 4096
_FENCE = "```"
_LANGUAGE = re.compile(r"[\w+-]*[ \t]*\n?")
_TRAILING = re.compile(r",(\s*[}\]])")
_HANDLE = re.compile(r"[\[(`#]{0,2}m?(\d{1,3})[\])`]{0,2}(?=$|[\s:,;])", re.IGNORECASE)
_BARE = re.compile(
    r"(?:[A-Za-z ]{1,24}:)?\s*(?P<list>none|\[?m\d{1,3}\]?(?:(?:\s*,\s*(?:and\s+)?|\s+and\s+|\s+)\[?m\d{1,3}\]?)*)\.?",
    re.IGNORECASE,
)
_SECOND = re.compile(r"\bm\d{1,3}\b|[\[#]\d|^\s*(?:[,;]|and\b|or\b|to\b)\s*\d", re.IGNORECASE)
_BARE_HANDLE = re.compile(r"m(\d{1,3})", re.IGNORECASE)


def said(reply: str) -> str:
    """The reply without thinking, cut where no honest reply ends."""
    return without_thinking(reply)[:MOST_CHARS]


def values(text: str) -> list[Any]:
    """JSON objects in a text, in order; a list only where the text, or a fence of it, is nothing else."""
    if _is_tree(whole := _forgiving(text)):
        return [whole]
    if fenced := [tree for inside in _fenced(text) if _is_tree(tree := _forgiving(inside))]:
        return fenced
    found, at = [], text.find("{")
    for _ in range(_MOST_STARTS):
        if at < 0:
            break
        tree, end = _object_at(text, at)
        if isinstance(tree, dict):
            found.append(tree)
        at = text.find("{", end)
    return found


def leading_object(text: str) -> dict[str, Any] | None:
    """The JSON object that a text begins with, whatever comes after it."""
    if text[:1] != "{":
        return None
    found = (_forgiving(text), _forgiving(text.split("\n", 1)[0]), _object_at(text, 0)[0])
    return next((tree for tree in found if isinstance(tree, dict)), None)


def _fenced(text: str) -> Iterator[str]:
    """What stands in closed fences, without the language. Found step by step: a pattern would try every start anew."""
    at = text.find(_FENCE)
    while at >= 0 and (begun := _LANGUAGE.match(text, at + len(_FENCE))):
        end = text.find(_FENCE, begun.end())
        if end < 0:
            return
        yield text[begun.end() : end]
        at = text.find(_FENCE, end + len(_FENCE))


def _is_tree(value: Any) -> bool:
    return isinstance(value, (dict, list))


def _forgiving(text: str) -> Any:
    """A text as JSON, also with a comma too many or in Python's quotes; None when it is neither."""
    text = text.strip()
    if text[:1] not in ("{", "["):
        return None
    for attempt in (text, _TRAILING.sub(r"\1", text)):
        try:
            return _plain(json.loads(attempt, strict=False))
        except (ValueError, RecursionError):
            continue
    if len(text) > _MOST_LITERAL:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _plain(ast.literal_eval(text))
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None


def _object_at(text: str, at: int) -> tuple[Any, int]:
    """The object that begins at `at`, read forgivingly, and where to look on."""
    try:
        tree, end = json.JSONDecoder(strict=False).raw_decode(text, at)
        return _plain(tree), end
    except (ValueError, RecursionError):
        pass  # a slip, perhaps one that can be forgiven
    depth, quoted, escaped = 0, False, False
    for place in range(at, len(text)):
        letter = text[place]
        if escaped:
            escaped = False
        elif quoted and letter == "\\":
            escaped = True
        elif letter == '"':
            quoted = not quoted
        elif not quoted and letter in "{}":
            depth += 1 if letter == "{" else -1
            if depth == 0:
                tree = _forgiving(text[at : place + 1])
                return tree, at + 1 if tree is None else place + 1
    return None, at + 1


def _plain(tree: Any, depth: int = 0) -> Any:
    """A tree of plain values, half characters (`\\ud800`) replaced: no ledger could hold them.

    Raises:
        ValueError: nesting or a number beyond what an honest reply holds, or values that JSON does not know.
    """
    if isinstance(tree, str):
        return tree.encode("utf-8", "replace").decode()
    if depth > _MOST_DEEP or (isinstance(tree, int) and tree.bit_length() > _MOST_BITS):
        raise ValueError("too deep or too large")
    if isinstance(tree, dict) and not any(isinstance(key, tuple) for key in tree):
        return {_plain(key, depth + 1): _plain(value, depth + 1) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(_plain(value, depth + 1) for value in tree)
    if tree is None or isinstance(tree, (int, float)):
        return tree
    raise ValueError(f"{type(tree).__name__} is no plain value")


def field(tree: dict[str, Any], *names: str) -> Any:
    """The first of these keys that is there, whatever its case."""
    lower = {str(key).lower(): value for key, value in tree.items()}
    return next((lower[name] for name in names if name in lower), None)


def text_of(tree: dict[str, Any], *names: str) -> str:
    """As `field`, as text; empty when it is missing or no text or number."""
    found = field(tree, *names)
    if isinstance(found, str):
        return found.strip()
    return str(found) if isinstance(found, (int, float)) and not isinstance(found, bool) else ""


def handles(value: Any) -> list[int] | None:
    """Handles of a JSON value (`["m1", 2, "[m3] tip"]`, `"m1, m3"`, `[]`, `"none"`); None when one is no handle."""
    if value is None or (isinstance(value, str) and value.strip().lower() in ("", "none")):
        return []
    if isinstance(value, str):
        return bare_handles(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return [value]
    if not isinstance(value, (list, tuple)):
        return None
    found: list[int] = []
    for item in value:
        if isinstance(item, dict):
            item = field(item, "handle", "id", "entry", "note")
        if isinstance(item, bool) or not isinstance(item, (int, str)):
            return None
        named = [item] if isinstance(item, int) else _item_handles(item.strip())
        if named is None:
            return None
        found += named
    return found


def _item_handles(item: str) -> list[int] | None:
    """Handles of one item of a list: nothing but handles, or one in front of what it names (`[m3] tip for zora`)."""
    if (several := bare_handles(item)) is not None:
        return several
    matched = _HANDLE.match(item)
    if matched is None:
        return None
    is_marked, rest = not matched[0].isdigit(), item[matched.end() :]
    return [int(matched[1])] if not rest or (is_marked and _SECOND.search(rest) is None) else None


def bare_handles(line: str) -> list[int] | None:
    """Handles of a line that holds nothing else (`Use: m1, m3`, `[m2]`, `none`); None for any other line."""
    matched = _BARE.fullmatch(line.strip().strip("*`_ "))
    if matched is None:
        return None
    return [int(found) for found in _BARE_HANDLE.findall(matched["list"])]


def last_line(text: str) -> str:
    """The last line that holds something."""
    return next((line for line in reversed(text.splitlines()) if line.strip()), "")
