"""Tips in other people's words: the same facts, in templates that no seed data ever had."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from opd_evolver.records import Entry, TipContent

TEMPLATES = (
    *("it is {}", "use {}", "the answer was {}", "{} works"),
    *("always {} here", "try {} first", "turned out to be {}", "{} was right"),
)
"""Never to be used in training: what a policy makes of unseen wording is measured with them."""


def reworded(entries: Sequence[Entry], rng: np.random.Generator) -> list[Entry]:
    """The entries with every tip's text in one of the templates."""
    found = []
    for one in entries:
        if isinstance(one.content, TipContent):
            text = TEMPLATES[int(rng.integers(len(TEMPLATES)))].format(one.content.text)
            one = one.model_copy(update={"content": one.content.model_copy(update={"text": text})})
        found.append(one)
    return found
