"""Replies that were made to break a parser, or are merely very long: read quickly, never an exception."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opd_evolver.abilities import dialects
from opd_evolver.abilities.instruct import reading
from opd_evolver.policy.thinking import without_thinking

SPEAK = dialects.of("instruct")
HUGE = "0x1" + "0" * 3900
DEEP = '{"x": ' * 900 + "1" + "}" * 900


@pytest.mark.parametrize(
    "value",
    [
        HUGE,
        f"{{'x': {HUGE}}}",
        f"{{{HUGE}: 1}}",
        f"[({HUGE}, 'a')]",
        DEEP,
        "{(1, 2): 3}",
        "{b'a': b'c'}",
        "{1j}",
        "...",
    ],
    ids=["huge", "inside", "key", "in a tuple", "deep", "tuple as key", "bytes", "set", "ellipsis"],
)
@pytest.mark.parametrize(
    "form",
    [
        "{}",
        "{{'entries': [{}]}}",
        "{{'level': 'tip', 'trigger': {}, 'text': {}}}",
        "{{'name': 'report', 'arguments': [{}]}}",
        "{{'action': {}}}",
        "{{'use': [{}]}}",
        "{{'command': 'delete', 'entries': [{}]}}",
        "{{'command': 'lookup', 'query': {}}}",
    ],
)
def test_values_that_no_honest_reply_holds_are_unreadable(form: str, value: str) -> None:
    for reply in (form.format(*[value] * 2), form.format(*[value] * 2).replace("'", '"')):
        assert SPEAK.select.parse(reply, 5, 3) is None
        assert SPEAK.write.parse(reply, limit=3).contents == ()
        assert SPEAK.maintain.parse(reply, 6).kind == "unreadable"
        SPEAK.act.parse(reply)


def test_half_characters_of_every_spelling_are_replaced() -> None:
    assert reading.values(r"{'a': ('\ud800', '\U0000d800')}") == [{"a": ("?", "?")}]


@pytest.mark.parametrize("text", ["[THINK]look?[/THINK]Action: look", "look?[/THINK]\nAction: look"])
def test_mistral_thinks_in_square_brackets(text: str) -> None:
    assert SPEAK.act.parse(text) == ("look", True)
    assert without_thinking("a [think] b") == "a [think] b", "no model's mark"


@pytest.mark.parametrize("closing", ["</think>", "</thinking>\n"])
def test_long_thinking_loses_no_answer(closing: str) -> None:
    thought = "hm, or {} perhaps " * (2 * reading.MOST_CHARS // 10)
    for begun in (f"<{closing[2:].strip()}", ""):
        assert SPEAK.act.parse(f"{begun}{thought}{closing}Action: look") == ("look", True)
        assert SPEAK.select.parse(f'{begun}{thought}{closing}{{"use": ["m2"]}}', 5, 3) == [1]
    assert reading.said(f"<think>{thought}") == ""
    assert len(reading.said("x" * 99_000)) == reading.MOST_CHARS


TAGS = st.sampled_from(
    [f"<{slash}{name}>" for slash in ("", "/") for name in ("think", "THINK", "thinking", "thought", "reasoning")]
    + ["[THINK]", "[/THINK]", "a", " ", "\n", "<th", "ink>", "</", "[", "]"]
)


@settings(max_examples=400, deadline=None)
@given(st.lists(TAGS, max_size=14).map("".join))
def test_thinking_ends_where_its_own_tag_closes(text: str) -> None:
    names = r"(?:think|thinking|thought|reasoning)"
    angled = re.sub(r"\[(/?)THINK\]", r"<\1think>", text)
    plain = re.sub(rf"<({names})>.*?</\1>", "", angled, flags=re.DOTALL | re.IGNORECASE)
    plain = re.sub(rf"\A.*</{names}>", "", plain, flags=re.DOTALL | re.IGNORECASE)
    assert without_thinking(text) == re.sub(rf"<{names}>.*\Z", "", plain, flags=re.DOTALL | re.IGNORECASE).strip()


@pytest.mark.parametrize(
    "piece", ["<think>", "</think>", "<think></think>", "<think></thought>", "<", "<think><thought></thought>"]
)
def test_a_reply_of_nothing_but_tags_is_read_quickly(piece: str) -> None:
    began = time.process_time()
    reading.said(piece * (2_000_000 // len(piece)))
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    "reply",
    [
        "Sure:\n```" + "A" * 30000,
        "```json" + " " * 16000 + '{"use": ["m1"',
        "``` " * 7500,
        "action" + " " * 29000 + "x",
        "Action: look\nthought" + " " * 29000 + "x",
        "Action: look\naction input" + " " * 29000 + "x",
        "<action>" * 3700,
        "</action>" + "<action>" * 3700,
    ],
    ids=["language", "blanks", "fences", "label", "other label", "input label", "tags", "tags after an end"],
)
def test_a_reply_of_one_long_run_is_read_quickly(reply: str) -> None:
    began = time.process_time()
    SPEAK.select.parse(reply, 5, 3)
    SPEAK.act.parse(reply)
    SPEAK.write.parse(reply, limit=3)
    SPEAK.maintain.parse(reply, 6)
    assert time.process_time() - began < 5


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.sampled_from(["`", "``", "```", "a", " ", "\t", "\n", "json", "{}", "[1]", "+"]), max_size=14).map(
        "".join
    )
)
def test_fences_are_those_of_the_pattern(text: str) -> None:
    pattern = re.compile(r"```[\w+-]*[ \t]*\n?(.*?)```", re.DOTALL)
    assert list(reading._fenced(text)) == pattern.findall(text)
