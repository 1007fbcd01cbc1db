"""Tips in other words in the seed data: only where asked, moving nothing else, never the measured templates."""

from __future__ import annotations

from typing import Any

import pytest

from opd_evolver.benchmark import wordings as measured
from opd_evolver.environments import registry
from opd_evolver.records import LEVELS, TipContent
from opd_evolver.seed import tokenizer as vocabulary
from opd_evolver.seed import wordings
from opd_evolver.seed.data import Encoded, Encoder, batch
from opd_evolver.seed.settings import SeedSettings


@pytest.fixture(scope="module")
def made() -> tuple[Any, Encoder, tuple[Any, ...]]:
    domains = tuple(registry.load(name, LEVELS) for name in ("sql", "apps"))
    tokenizer = vocabulary.build(domains)
    return tokenizer, Encoder(tokenizer), domains


def drawn(made: tuple[Any, Encoder, tuple[Any, ...]], share: float) -> list[Encoded]:
    """A generator for each: two wordings of one value are rivals, so that what maintenance is shown differs."""
    _, encoder, domains = made
    return [
        batch(encoder, domains, 1, drill_share=0.0, key=(n, "wordings"), worded=(share, 0.0))[0] for n in range(200)
    ]


def test_templates_of_training_and_of_the_probe_share_no_word() -> None:
    trained, probed = (
        {word for one in templates for word in one.split()}
        for templates in ((*wordings.TEMPLATES, *wordings.WORDS), measured.TEMPLATES)
    )
    assert trained & probed == {"{}"}


def test_what_is_asked_for_and_replied_stays_the_same(made: tuple[Any, Encoder, tuple[Any, ...]]) -> None:
    plain, other = drawn(made, 0.0), drawn(made, 0.5)
    assert plain == drawn(made, 0.0) and other == drawn(made, 0.5)
    longer = sum(len(b.token_ids) > len(a.token_ids) for a, b in zip(plain, other, strict=True))
    assert longer > 50
    for a, b in zip(plain, other, strict=True):
        assert a.ability == b.ability
        assert a.ability == "maintain" or len(a.token_ids) <= len(b.token_ids)
        if a.ability in ("act", "select"):  # what carries loss does not know of the wording
            replies = [
                [token for token, scored in zip(one.token_ids, one.scored, strict=True) if scored] for one in (a, b)
            ]
            assert replies[0] == replies[1]


def test_a_worded_tip_keeps_its_value_and_other_levels_are_left_alone() -> None:
    tip = TipContent(trigger="late", text="4")
    assert wordings.worded(tip, "sql", "zora", 1) is tip
    with wordings.wording(1.0):
        texts = [wordings.worded(tip, "sql", "zora", round_) for round_ in range(60)]
        assert texts == [wordings.worded(tip, "sql", "zora", round_) for round_ in range(60)]
    said = [one.text for one in texts if isinstance(one, TipContent)]
    assert all("4" in text.split() and text != "4" for text in said) and len(set(said)) > 30
    places = {text.split().index("4") for text in said}
    assert len(places) >= 3


def test_the_last_polish_words_the_drill_too_and_what_is_recited_stays_plain(
    made: tuple[Any, Encoder, tuple[Any, ...]],
) -> None:
    settings = SeedSettings(steps=4, polish_steps=2, wording_steps=2)
    assert settings.all_steps == 8 and [step for step in range(8) if settings.begins_polish(step)] == [4, 6]
    assert settings.worded(5) == (settings.worded_share, 0.0)
    assert settings.worded(6) == (settings.wording_share, settings.wording_share)
    assert [settings.lowest_round(step) for step in (3, 4, 7)] == [2, 1, 1]

    _, encoder, domains = made
    drills = {
        shares: batch(encoder, domains, 60, drill_share=1.0, key=(0, "drill"), worded=shares)
        for shares in ((0.0, 0.0), (0.5, 0.0), (0.5, 0.5))
    }
    plain, first, last = drills.values()
    # Orders show entries as memory does, so that some of their tips are worded from the beginning.
    assert sum(len(b.token_ids) > len(a.token_ids) for a, b in zip(first, last, strict=True)) > 5
    for a, b in zip(plain, last, strict=True):
        replies = [[token for token, scored in zip(one.token_ids, one.scored, strict=True) if scored] for one in (a, b)]
        assert replies[0] == replies[1]
