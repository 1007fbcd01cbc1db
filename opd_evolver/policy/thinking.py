"""What a model thought aloud is not what it said: thinking blocks are taken out of a reply."""

from __future__ import annotations

import re

_NAMES = r"(?:think|thinking|thought|reasoning)"
_TAG = re.compile(rf"<(/?)({_NAMES})>", re.IGNORECASE)
_ENDED = re.compile(rf"\A.*</{_NAMES}>", re.DOTALL | re.IGNORECASE)
_UNENDED = re.compile(rf"<{_NAMES}>.*\Z", re.DOTALL | re.IGNORECASE)


def without_thinking(text: str) -> str:
    """The reply without its thinking; empty when it was cut while it still thought.

    A closing tag alone ends thinking that the chat template had begun. Mistral's models think in square brackets.
    """
    text = text.replace("[THINK]", "<think>").replace("[/THINK]", "</think>")
    return _UNENDED.sub("", _ENDED.sub("", _without_blocks(text))).strip()


def _without_blocks(text: str) -> str:
    """Without what stands between a tag and the next that closes it, in time linear in the text: it may be hostile."""
    tags = list(_TAG.finditer(text))
    closed = {tag[2].lower(): tag.start() for tag in tags if tag[1]}
    kept, at, inside = [], 0, ""
    for tag in tags:
        name = tag[2].lower()
        if inside:
            if tag[1] and name == inside:
                at, inside = tag.end(), ""
        elif not tag[1] and closed.get(name, -1) > tag.start():
            kept.append(text[at : tag.start()])
            inside = name
    return "".join((*kept, text[at:]))
