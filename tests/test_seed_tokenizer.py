"""The seed policy's tokenizer: any text comes back, words are one piece, names two, content forges no role."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seed_world import DOMAINS, chat, tokenizer
from transformers import AutoTokenizer

from opd_evolver.environments.conventions import GROUPS, names
from opd_evolver.records import Message, Prompt, Segment
from opd_evolver.seed import tokenizer as vocabulary
from opd_evolver.seed.data import domains_of
from opd_evolver.seed.settings import SeedSettings

anything = st.characters(exclude_categories=["Cs", "Zs", "Zl", "Zp"])
odd_words = st.text(anything, min_size=1, max_size=8).filter(lambda word: not any(c.isspace() for c in word))
known_words = st.sampled_from([*vocabulary.words(DOMAINS), *names("seed"), *vocabulary.SPECIAL, "137", "▁", "…"])
single_spaced = st.lists(odd_words | known_words, min_size=1, max_size=12).map(" ".join)


@settings(deadline=None, max_examples=60)
@given(single_spaced)
def test_text_comes_back_from_the_tokenizer(text: str) -> None:
    ids = chat().tokenize(text)
    expected = text
    for name in vocabulary.SPECIAL:  # a token that forges a role comes back broken
        expected = expected.replace(name, f"{name[0]} {name[1:]}")
    assert tokenizer().decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False) == expected


def test_a_word_that_is_a_special_token_comes_back_broken() -> None:
    ids = chat().tokenize("x <|end|> y")
    assert tokenizer().decode(list(ids), clean_up_tokenization_spaces=False) == "x < |end|> y"


@settings(deadline=None, max_examples=60)
@given(single_spaced)
def test_the_memory_of_words_changes_no_id(text: str) -> None:
    plain = chat().tokenize
    assert vocabulary.by_word(plain)(text) == plain(text)
    assert vocabulary.by_word(plain)(f" {text}") == plain(f" {text}")


@settings(deadline=None, max_examples=60)
@given(st.text(st.sampled_from("ab\t\n <|end>zora"), max_size=20))
def test_the_memory_of_words_agrees_on_odd_spacing(text: str) -> None:
    plain = chat().tokenize
    assert vocabulary.by_word(plain)(text) == plain(text)


def test_every_word_is_one_piece_and_every_name_two() -> None:
    lengths = {word: len(chat().tokenize(word)) for word in vocabulary.words(DOMAINS)}
    assert {word: n for word, n in lengths.items() if n != 1} == {}
    for group in GROUPS:
        assert {len(chat().tokenize(name)) for name in names(group)} == {2}
    assert len(chat().tokenize("r15 h50 7")) == 3
    assert len(chat().tokenize("137")) == 3


def test_every_word_a_domain_speaks_is_at_most_two_pieces() -> None:
    for domain in DOMAINS:
        assert max(len(chat().tokenize(word)) for word in domain.words()) <= 2


@pytest.mark.parametrize("token", vocabulary.SPECIAL)
def test_content_forges_no_role(token: str) -> None:
    segments = (Segment(text=f"act {token} x"), Segment(text=token))
    forged = Prompt(ability="act", messages=(Message(role="user", segments=segments),))
    honest = Prompt(ability="act", messages=(Message(role="user", segments=(Segment(text="act x"),)),))

    def roles(prompt: Prompt) -> list[int]:
        return [one for one in chat().encode(prompt).token_ids if one in tokenizer().all_special_ids]

    assert roles(forged) == roles(honest)


def test_it_reads_the_same_after_saving(tmp_path: Path) -> None:
    tokenizer().save_pretrained(tmp_path)
    read = AutoTokenizer.from_pretrained(tmp_path)
    text = "zora late r3 4 do select count ( * ) from jobs where state = 4 | ñ"
    assert read(text)["input_ids"] == tokenizer()(text)["input_ids"]
    assert (read.eos_token, read.pad_token) == (vocabulary.END, vocabulary.PAD)
    chat_ = [{"role": "user", "content": "act"}, {"role": "assistant", "content": "do"}]
    rendered = read.apply_chat_template(chat_, tokenize=False, add_generation_prompt=True)
    assert rendered == "<|user|>act<|end|><|assistant|>do<|end|><|assistant|>"


def test_the_committed_policy_has_this_tokenizer() -> None:
    with resources.as_file(resources.files("opd_evolver") / "assets" / "seed-policy" / "tokenizer.json") as path:
        committed = json.loads(path.read_text(encoding="utf-8"))
    built = json.loads(vocabulary.build(domains_of(SeedSettings())).backend_tokenizer.to_str())
    assert committed["model"] == built["model"]
    assert committed["pre_tokenizer"] == built["pre_tokenizer"]
