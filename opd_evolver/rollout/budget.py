"""What memory.entry_token_budget counts: words, or the policy's own tokens.

The fast loop, the slow loop's views and the probes take their count from here, so that a prompt is
rendered again exactly as it was served.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Literal

from opd_evolver.errors import SetupError
from opd_evolver.memory.levels import Count, n_words
from opd_evolver.policy.protocol import EncodedPrompt, Policy, TokenPolicy
from opd_evolver.records import Message, Prompt, Segment

Unit = Literal["words", "tokens"]
Encode = Callable[[Prompt], EncodedPrompt]
_CACHED_TEXTS = 65536


def token_count(encode: Encode) -> Count:
    """Tokens of a text as `encode` puts it into a prompt; one that fits into no prompt counts as endless."""

    def n_ids(text: str) -> int:
        message = Message(role="user", segments=(Segment(kind="memory", text=text),))
        return len(encode(Prompt(ability="act", messages=(message,))).token_ids)

    frame = n_ids("")

    @lru_cache(_CACHED_TEXTS)
    def count(text: str) -> int:
        try:
            return n_ids(text) - frame
        except SetupError:
            return sys.maxsize

    return count


def count_of(unit: Unit, encode: Encode | None) -> Count:
    """The count of a budget in this unit.

    Raises:
        SetupError: tokens are asked for and the policy's tokens are unknown.
    """
    if unit == "words":
        return n_words
    if encode is None:
        raise SetupError(
            "memory.budget_unit is tokens and the policy only speaks text",
            "a policy whose tokens are known",
            "set memory.budget_unit to words",
        )
    return token_count(encode)


def policy_count(unit: Unit, policy: Policy | None) -> Count:
    """As `count_of`, for a policy. `None` and text-only policies have words alone."""
    return count_of(unit, policy.encode if isinstance(policy, TokenPolicy) else None)
