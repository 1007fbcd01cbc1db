"""Tips in many wordings, so that a policy looks for the value and not for a place.

A third of the worded tips are phrases, the others put words around the value: English ones and letters at random.
None of the English ones stands in the templates by which unseen wording is measured (`benchmark/wordings.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np

from opd_evolver.environments.conventions import generator
from opd_evolver.records import Content, TipContent

TEMPLATES = (
    *("value {}", "say {}", "{} fits", "goes with {}", "needs {}", "only {} passed"),
    *("means {}", "pick {} then", "so far {}", "set {}", "they want {}", "{} again"),
)
# fmt: off
WORDS = (
    "a", "about", "after", "all", "an", "and", "any", "as", "at", "because", "been", "before", "being", "both",
    "but", "by", "can", "could", "day", "did", "each", "even", "every", "for", "from", "gave", "get", "give",
    "good", "had", "has", "have", "how", "i", "if", "in", "into", "its", "just", "keep", "know", "last",
    "less", "like", "look", "made", "make", "many", "may", "might", "more", "most", "much", "must", "my",
    "never", "new", "not", "now", "of", "off", "on", "one", "or", "other", "our", "own", "people", "place",
    "said", "same", "saw", "seen", "she", "should", "since", "some", "still", "such", "take", "team", "than",
    "that", "them", "then", "there", "these", "they", "think", "this", "those", "through", "took", "under",
    "until", "up", "very", "wanted", "way", "we", "went", "were", "what", "when", "where", "which", "while",
    "who", "will", "with", "without", "would", "year", "yes", "you",
)
# fmt: on
LETTERS = "abcdefghijklmnopqrstuvwxyz"
MOST_WORDS, MOST_LETTERS = 4, 8
_shares: ContextVar[tuple[float, float]] = ContextVar("_shares", default=(0.0, 0.0))


@contextmanager
def wording(share: float, of_drill: float = 0.0) -> Iterator[None]:
    """Within it these shares of the tips are worded: of all, and of those in the drill's look-ups."""
    token = _shares.set((share, of_drill))
    try:
        yield
    finally:
        _shares.reset(token)


@contextmanager
def drilling() -> Iterator[None]:
    """Within it the drill's share counts for all."""
    with wording(_shares.get()[1]):
        yield


def worded(content: Content, *entry: object) -> Content:
    """A tip in some wording, or as it is. The same entry is always worded alike; nothing else is drawn.

    Args:
        content: of any level.
        entry: what else names the entry.
    """
    share, _ = _shares.get()
    if not isinstance(content, TipContent) or share <= 0.0:
        return content
    rng = generator("wording", *entry, content.trigger, content.text)
    if rng.random() >= share:
        return content
    if rng.random() < 1 / 3:
        template = TEMPLATES[int(rng.integers(len(TEMPLATES)))]
        return content.model_copy(update={"text": template.format(content.text)})
    words = []
    for _ in range(int(rng.integers(1, MOST_WORDS + 1))):
        words.append(_word(rng))
    words.insert(int(rng.integers(len(words) + 1)), content.text)
    return content.model_copy(update={"text": " ".join(words)})


def _word(rng: np.random.Generator) -> str:
    if rng.random() < 0.5:
        return WORDS[int(rng.integers(len(WORDS)))]
    n = int(rng.integers(2, MOST_LETTERS + 1))
    return "".join(LETTERS[int(at)] for at in rng.integers(len(LETTERS), size=n))
