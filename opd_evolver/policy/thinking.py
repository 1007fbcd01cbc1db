"""What a model thought aloud is not what it said: thinking blocks are taken out of a reply."""

from __future__ import annotations

import re

_NAMES = r"(?:think|thinking|thought|reasoning)"
_BLOCK = re.compile(rf"<({_NAMES})>.*?</\1>", re.DOTALL | re.IGNORECASE)
_ENDED = re.compile(rf"\A.*</{_NAMES}>", re.DOTALL | re.IGNORECASE)
_UNENDED = re.compile(rf"<{_NAMES}>.*\Z", re.DOTALL | re.IGNORECASE)


def without_thinking(text: str) -> str:
    """The reply without its thinking; empty when it was cut while it still thought.

    A closing tag alone ends thinking that the chat template had begun.
    """
    return _UNENDED.sub("", _ENDED.sub("", _BLOCK.sub("", text))).strip()
