"""The seed data: batches of encoded conversations, drawn from a counter, never stored, never repeated.

Prompts are rendered by the abilities and encoded by `ChatEncoder`, so their bytes are the deployed ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from opd_evolver.abilities import act
from opd_evolver.environments import conventions as cv
from opd_evolver.environments import registry
from opd_evolver.errors import SetupError
from opd_evolver.policy.chat import ChatEncoder
from opd_evolver.records import Ability, Message, Prompt
from opd_evolver.seed import act_data, drill, maintain_data, select_data, write_data
from opd_evolver.seed.facts import Conversation
from opd_evolver.seed.settings import SeedSettings
from opd_evolver.seed.tokenizer import by_word
from opd_evolver.seed.wordings import wording

DRILL_SHARE = 0.2
Maker = Callable[[cv.Procedural, np.random.Generator, int], Conversation]
Mixture = tuple[tuple[float, Maker], ...]
TIPS_MIXTURE: Mixture = ((0.42, act_data.sample), (0.40, select_data.sample), (0.18, write_data.sample))
# Families of several levels: longer episodes, more to write; and maintenance, whose rest it is.
LEVELS_MIXTURE: Mixture = ((0.42, act_data.sample), (0.33, select_data.sample), (0.18, write_data.sample))
MAX_PROMPT_TOKENS = 768


class Encoded(NamedTuple):
    """Token ids of a whole conversation and, for each, whether it is to be predicted."""

    ability: str
    token_ids: list[int]
    scored: list[bool]


class Encoder:
    """Conversations to token ids, as served.

    Args:
        tokenizer: the seed policy's.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._chat = ChatEncoder(tokenizer, MAX_PROMPT_TOKENS)
        self._chat.tokenize = self._tokenize = by_word(self._chat.tokenize)
        self._end = int(tokenizer.eos_token_id)

    def encode(self, conversation: Conversation) -> Encoded:
        """The whole conversation; loss on the replies' tokens that are scored, end included."""
        ability: Ability = "act" if conversation.ability == "drill" else conversation.ability  # type: ignore[assignment]
        messages: list[Message] = []
        ids: list[int] = []
        scored: list[bool] = []
        for message, reply in conversation.turns:
            messages.append(message)
            ids = list(self._chat.encode(Prompt(ability=ability, messages=tuple(messages))).token_ids)
            scored += [False] * (len(ids) - len(scored))
            said = (*self._tokenize(reply.text), self._end)
            n_masked = len(said)
            if reply.scored:
                begun = " ".join(reply.text.split(" ")[: reply.n_masked_words])
                n_masked = len(self._tokenize(begun)) if begun else 0
            ids += said
            scored += [False] * n_masked + [True] * (len(said) - n_masked)
            messages.append(act.reply_message(said, reply.text))
        return Encoded(conversation.ability, ids, scored)


def domains_of(settings: SeedSettings) -> tuple[cv.Procedural, ...]:
    """The domains, as makers of data.

    Raises:
        SetupError: one of them is not procedural.
    """
    found: list[cv.Procedural] = []
    for name in settings.domains:
        domain = registry.load(name, settings.levels)
        if not isinstance(domain, cv.Procedural):
            raise SetupError(f"domain {name}", "a procedural domain (demo, action, observation, words)", "leave it out")
        found.append(domain)
    return tuple(found)


def draw(
    domains: Sequence[cv.Procedural], rng: np.random.Generator, *, drill_share: float, lowest_round: int = 1
) -> Conversation:
    """One conversation: which domain, which ability, what in it."""
    domain = domains[int(rng.integers(len(domains)))]
    if rng.random() < drill_share:
        return drill.sample(domain, rng)
    tips_only = domain.spec.levels == cv.TIPS_ONLY
    kind = rng.random()
    for share, make in TIPS_MIXTURE if tips_only else LEVELS_MIXTURE:
        if kind < share:
            return make(domain, rng, lowest_round)
        kind -= share
    return write_data.sample(domain, rng) if tips_only else maintain_data.sample(domains, rng)


def batch(
    encoder: Encoder,
    domains: Sequence[cv.Procedural],
    n: int,
    *,
    drill_share: float,
    key: tuple[object, ...],
    lowest_round: int = 1,
    worded: tuple[float, float] = (0.0, 0.0),
) -> list[Encoded]:
    """`n` conversations with loss somewhere; the same key always gives the same ones.

    Args:
        encoder: renders them.
        domains: procedural domains.
        n: how many.
        drill_share: 1.0 for the drill alone.
        key: counter, such as (seed, step, shard).
        lowest_round: see `SeedSettings.lowest_round`.
        worded: see `SeedSettings.worded`.
    """
    rng = cv.generator("seed-policy", *key)
    found: list[Encoded] = []
    with wording(*worded):
        while len(found) < n:
            made = encoder.encode(draw(domains, rng, drill_share=drill_share, lowest_round=lowest_round))
            if any(made.scored):
                found.append(made)
    return found
