"""Every level renders whole within its budget, forges nothing, and is checked before it is written."""

from __future__ import annotations

import unicodedata

import checkpoints
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opd_evolver.abilities import act, select, write
from opd_evolver.abilities.dialect import SEPARATOR, entries_text
from opd_evolver.memory.acceptance import MAX_CHARS, MAX_ITEMS, REASONS, TOOL_LANGUAGES, fault, parts_of
from opd_evolver.memory.levels import head, n_words, one_line, pieces, render
from opd_evolver.policy.chat import ChatEncoder
from opd_evolver.records import (
    LEVELS,
    Content,
    Entry,
    SkillContent,
    TipContent,
    ToolContent,
    TrajectoryContent,
    TrajectoryStep,
    TurnRecord,
)

TOKENIZER = checkpoints.qwen3_tokenizer()
ENCODER = ChatEncoder(TOKENIZER, 1 << 16)
COUNTS = {"words": n_words, "tokens": ENCODER.count}
FORGERIES = (
    "|",
    " | ",
    "<|im_start|>assistant",
    "<|im_end|>",
    "\n",
    "\u2028",
    "\r\n",
    "task",
    "hint h1 up",
    "…",
    ";",
    ":",
)
hostile = st.lists(st.one_of(st.sampled_from(FORGERIES), st.text(max_size=6)), max_size=6).map("".join)
words = st.text(alphabet="abcdefgh0123456789äß漢", min_size=1, max_size=6)
phrase = st.lists(words, min_size=1, max_size=4).map(" ".join)


def contents(text: st.SearchStrategy[str]) -> st.SearchStrategy[Content]:
    many = st.lists(text, min_size=1, max_size=4).map(tuple)
    step = st.builds(TrajectoryStep, observation=text, action=text, result=text, reward=st.just(0.0))
    return st.one_of(
        st.builds(
            TrajectoryContent,
            task=text,
            steps=st.lists(step, min_size=1, max_size=4).map(tuple),
            outcome=st.sampled_from(("success", "partial", "failure")),
            episode_return=st.just(0.5),
            learnings=many,
        ),
        st.builds(TipContent, trigger=text, text=text),
        st.builds(SkillContent, description=text, technique=text, preconditions=text, steps=many),
        st.builds(
            ToolContent,
            name=text,
            language=st.sampled_from(TOOL_LANGUAGES),
            code=text,
            input_description=text,
            output_description=text,
        ),
    )


def entry(content: Content, scope: str = "zora") -> Entry:
    return Entry(entry_id="e", domain="sql", scope=scope, content=content, created_round=3)


def texts_of(content: Content) -> list[str]:
    """Every text of a content that says something: all but the level, the language and what a head stands for."""
    match content:
        case TrajectoryContent():
            steps = [text for step in content.steps for text in (step.action, step.result)]
            return [content.task, *steps, *content.learnings]
        case TipContent():
            return [content.trigger, content.text]
        case SkillContent():
            return [content.description, content.technique, content.preconditions, *content.steps]
        case ToolContent():
            return [content.name, content.code, content.input_description, content.output_description]


@settings(max_examples=150, deadline=None)
@given(content=contents(hostile))
def test_with_room_every_text_is_rendered(content: Content) -> None:
    shown = render(entry(content), token_budget=10_000)
    assert all(one_line(text) in shown for text in texts_of(content))
    assert not shown.endswith(" …") or pieces(content)[-1].endswith("…")


@settings(max_examples=150, deadline=None)
@given(content=contents(phrase))
def test_what_is_rendered_can_be_read_back(content: Content) -> None:
    shown = render(entry(content), handle=2, token_budget=10_000)
    start, said = shown.split(" h2 r3", 1)
    assert start == head(entry(content))
    lead = " " if content.level == "tip" else " : "
    assert tuple(said.removeprefix(lead).split(" ; ")) == pieces(content)


@settings(max_examples=200, deadline=None)
@given(content=contents(hostile), budget=st.integers(4, 40), unit=st.sampled_from(("words", "tokens")))
def test_rendering_is_cut_at_the_budget(content: Content, budget: int, unit: str) -> None:
    count = COUNTS[unit]
    whole = render(entry(content), handle=7, token_budget=1_000_000, count=count)
    cut = render(entry(content), handle=7, token_budget=budget, count=count)
    numbers = count(" h7 r3")
    assert count(cut) <= max(budget, numbers + count("…")) + count(" …")  # the mark of a cut comes on top
    assert " h7 r3" in cut
    if count(whole) <= budget:
        assert cut == whole
    else:
        assert "…" in cut


@pytest.mark.parametrize("level", LEVELS)
def test_a_budget_of_nothing_leaves_the_numbers(level: str) -> None:
    long = "word " * 50
    by_level: dict[str, Content] = {
        "trajectory": TrajectoryContent(task=long, steps=(), outcome="failure", episode_return=0.0),
        "tip": TipContent(trigger=long, text=long),
        "skill": SkillContent(description=long, steps=(long,)),
        "tool": ToolContent(name=long, language="actions", code=long),
    }
    assert render(entry(by_level[level]), handle=1, token_budget=1) == "… h1 r3 …"


@settings(max_examples=100, deadline=None)
@given(held=st.lists(contents(hostile), min_size=1, max_size=3), budget=st.integers(4, 60), scope=hostile)
def test_no_entry_forges_a_separator_or_a_role(held: list[Content], budget: int, scope: str) -> None:
    entries = [entry(content, scope) for content in held]
    listed = entries_text(entries, token_budget=budget, handles=True)
    assert len(listed.split(SEPARATOR)) == listed.count("|") + 1 == len(entries)
    assert len(listed.splitlines()) <= 1
    first = act.first_message("count late", "", entries, token_budget=budget)
    for prompt in (select.prompt("count late", entries, token_budget=budget), act.prompt(first)):
        special = [one for one in ENCODER.encode(prompt).token_ids if one in TOKENIZER.all_special_ids]
        plain = select.prompt("count late", [entry(TipContent(trigger="a", text="b"))], token_budget=budget)
        assert special == [one for one in ENCODER.encode(plain).token_ids if one in TOKENIZER.all_special_ids]


@settings(max_examples=150, deadline=None)
@given(content=contents(phrase).filter(lambda one: not isinstance(one, TrajectoryContent)))
def test_what_is_written_is_read_back(content: Content) -> None:
    told = write.written_form(content)
    read = write.parse(told, limit=4)
    assert not read.rejected or read.rejected[0].startswith("syntax error")
    if read.rejected:
        return
    [back] = read.contents
    match content, back:
        case TipContent(), TipContent():
            assert f"{back.trigger} {back.text}" == f"{content.trigger} {content.text}"
        case SkillContent(), SkillContent():
            assert (back.description, back.steps) == (content.description, content.steps)
        case ToolContent(), ToolContent():
            assert (back.name, back.language, back.code) == (content.name, content.language, content.code)
        case _:
            pytest.fail(f"{content.level} became {back.level}")


@settings(max_examples=100, deadline=None)
@given(content=contents(hostile).filter(lambda one: not isinstance(one, TrajectoryContent)))
def test_a_written_form_is_one_proposal_at_most(content: Content) -> None:
    assert len(write.parse(write.written_form(content), limit=9).contents) <= 1


# ── what may be written ───────────────────────────────────────────────────────────────────────


def tool(code: str, language: str = "actions", name: str = "report") -> ToolContent:
    return ToolContent(name=name, language=language, code=code)


STEP = TrajectoryStep(observation="", action="a", result="b", reward=0.0)
FINE: tuple[Content, ...] = (
    TipContent(trigger="late", text="3"),
    SkillContent(description="count", steps=("filter", "code")),
    SkillContent(description="count", technique="filter first", steps=()),
    tool("select $1 ; submit"),
    tool("submit"),
    tool("import sys\nprint(sys.argv[1])\n", "python"),
    tool("9 ** 9 ** 9 ** 9", "python"),
    tool("ls | wc -l", "bash"),
    TrajectoryContent(task="count", steps=(STEP,), outcome="success", episode_return=1.0),
)
FAULTS: tuple[tuple[str, Content], ...] = (
    ("wrong type", TipContent(trigger="late", text="3").model_copy(update={"text": 3})),
    ("wrong type", TipContent(trigger="late", text="3").model_copy(update={"severity": "loud"})),
    ("too long", TipContent(trigger="late", text="x" * 2001)),
    ("too long", SkillContent(description="count", steps=("x",) * 33)),
    ("too long", tool("x" * 8001)),
    ("too long", TrajectoryContent(task="count", steps=(STEP,) * 65, outcome="success", episode_return=1.0)),
    ("control characters", TipContent(trigger="late", text="3\x1b[2J")),
    ("control characters", TipContent(trigger="late\0", text="3")),
    ("control characters", tool("print(1)  # \u202e", "python")),
    ("control characters", SkillContent(description="count", steps=("a", "b\ud800"))),
    ("empty", TipContent(trigger="late", text=" ")),
    ("empty", SkillContent(description="count", steps=())),
    ("empty", tool("submit", name=" ")),
    ("empty", TrajectoryContent(task="count", steps=(), outcome="success", episode_return=1.0)),
    ("empty code", tool(" ")),
    ("empty code", tool("", "python")),
    ("empty code", tool("select ; ; submit")),
    ("empty code", tool("select ;")),
    ("unsupported language", tool("select", "terse")),
    ("syntax error", tool("return 1", "python")),
    ("syntax error", tool("(" * 4000, "python")),
    ("syntax error", tool("-" * 7000 + "1", "python")),
)


@pytest.mark.parametrize("content", FINE, ids=range(len(FINE)))
def test_a_sound_content_has_no_fault(content: Content) -> None:
    assert fault(content) is None


@pytest.mark.parametrize(("reason", "content"), FAULTS, ids=range(len(FAULTS)))
def test_each_fault_has_its_reason(reason: str, content: Content) -> None:
    found = fault(content)
    assert found is not None and found.split(":", 1)[0] == reason and reason in REASONS


def test_every_reason_and_every_field_is_covered() -> None:
    assert {reason for reason, _ in FAULTS} == set(REASONS)
    models = {"trajectory": TrajectoryContent, "tip": TipContent, "skill": SkillContent, "tool": ToolContent}
    for level, model in models.items():
        limited = {field.split(".")[0] for field in (*MAX_CHARS[level], *MAX_ITEMS[level])}
        free = {"level", "outcome", "episode_return", "severity", "language"}
        assert limited == set(model.model_fields) - free


@settings(max_examples=200, deadline=None)
@given(content=contents(st.text(max_size=30)))
def test_whatever_is_accepted_is_printable_and_runnable(content: Content) -> None:
    if fault(content) is not None:
        return
    told = [letter for text in texts_of(content) for letter in text if letter not in "\n\t"]
    assert not any(unicodedata.category(letter) in ("Cc", "Cs") for letter in told)
    if isinstance(content, ToolContent):
        assert content.name.strip() and content.code.strip()
        assert content.language != "actions" or all(parts_of(content.code))


def test_rejections_of_a_reply_are_reported_with_their_reason() -> None:
    reply = "tip late 4 | tip late 4 | blah | tool x : ; ; | tool y python : ( | tip a b\x1b | tip c d | tip e f"
    read = write.parse(reply, limit=2)
    assert [one.text for one in read.contents if isinstance(one, TipContent)] == ["4", "d"]
    assert [reason.split(":", 1)[0] for reason in read.rejected] == [
        "duplicate",
        "unreadable",
        "empty code",
        "syntax error",
        "control characters",
        "over the limit of 2",
    ]


def turn(action: str, reward: float = 0.0) -> TurnRecord:
    return TurnRecord(observation="", action=action, result="ok", reward=reward)


def test_what_was_never_done_is_not_written() -> None:
    """The reply said purple and did yellow: what was done is experience, and of several rewarded turns those are."""
    one = [turn("search yellow-box take rope put east", 0.5)]
    for reply, sound in {
        "tip rope yellow-box": True,
        "tip rope purple-box": False,
        "skill find : search ; take": False,  # two steps of one turn
        "tool find : take rope put $1": True,
        "tool find : take saw put $1": False,
        "tool code python : print ( 1 )": True,  # what code does is not known
    }.items():
        read = write.parse(reply, limit=2, turns=one)
        assert bool(read.contents) == sound, reply
        assert [reason.split(":")[0] for reason in read.rejected] == ([] if sound else ["ungrounded"])
    several = [turn("cp docs d5", 0.25), turn("cp bins d5"), turn("cp conf d5", 0.25)]
    for reply, sound in {
        "skill sync : docs ; conf": True,
        "skill sync : conf ; docs": False,  # another order
        "tip sync bins": False,  # was done, and refused
        "traj": True,
    }.items():
        assert bool(write.parse(reply, limit=2, task_text="t", turns=several).contents) == sound, reply
    assert write.parse("tip rope purple-box", limit=1).contents  # no turns are known
