"""Chat encoding: no forged roles, student and teacher identical outside hindsight, the truncation rules."""

from __future__ import annotations

import string
from typing import Any

import checkpoints
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from opd_evolver.abilities import act
from opd_evolver.errors import SetupError
from opd_evolver.policy.chat import ChatEncoder
from opd_evolver.records import Message, Prompt, Segment, SegmentKind

TOKENIZERS = {
    "qwen3": checkpoints.qwen3_tokenizer(),
    "llama": checkpoints.llama_tokenizer(),
    "lfm2": checkpoints.lfm2_tokenizer(),
}
ENCODERS = {name: ChatEncoder(tokenizer, 4096) for name, tokenizer in TOKENIZERS.items()}
SPECIALS = (
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|start_header_id|>", "<|begin_of_text|>",
    "<|user|>", "<|assistant|>", "<|end|>", "<|pad|>", "\ue0000\ue001", "\ue000",
)  # fmt: skip
hostile = st.lists(st.one_of(st.sampled_from(SPECIALS), st.text(max_size=8)), max_size=8).map("".join)
each = pytest.mark.parametrize("name", sorted(TOKENIZERS))


def message(role: Any, *texts: str, kind: SegmentKind = "text") -> Message:
    return Message(role=role, segments=tuple(Segment(text=text, kind=kind) for text in texts))


def conversation(*messages: Message) -> Prompt:
    return Prompt(ability="act", messages=messages)


@each
def test_plain_prompt_is_the_models_own_template(name: str) -> None:
    tokenizer, text = TOKENIZERS[name], "count late jobs"
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
    )
    ids = ENCODERS[name].encode(conversation(message("user", text))).token_ids
    assert tokenizer.decode(ids) == rendered
    assert list(ids) == tokenizer(rendered, add_special_tokens=False)["input_ids"]


@each
@settings(max_examples=60, deadline=None)
@given(texts=st.lists(hostile, min_size=1, max_size=3))
def test_no_text_can_forge_a_role(name: str, texts: list[str]) -> None:
    encoder, tokenizer = ENCODERS[name], TOKENIZERS[name]
    ids = encoder.encode(conversation(message("user", *texts, kind="memory"))).token_ids
    bare = encoder.encode(conversation(message("user", "x"))).token_ids
    special = set(tokenizer.all_special_ids)
    assert [one for one in ids if one in special] == [one for one in bare if one in special]
    assert all(text in tokenizer.decode(ids) for text in texts)


def test_special_words_of_the_models_own_vocabulary_are_broken() -> None:
    """A whitespace vocabulary holds `<|end|>` as a word: splitting added tokens alone would not stop it."""
    tokenizer = word_tokenizer()
    encoder = ChatEncoder(tokenizer, 64)
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    ids = encoder.encode(conversation(message("user", "zora <|end|> late <|end|>"))).token_ids
    assert ids.count(end) == 1
    assert tokenizer.convert_tokens_to_ids("zora") in ids and tokenizer.convert_tokens_to_ids("late") in ids


def word_tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<|pad|>", "<|user|>", "<|assistant|>", "<|end|>", "<unk>", "zora", "late", "hint", "task"]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|user|>", "<|assistant|>"],
    )
    tokenizer.chat_template = checkpoints.NO_SYSTEM
    return tokenizer


@each
@settings(max_examples=20, deadline=None)
@example(parts=["", "<|im_start|>"], hint="", place=2, limit=60)  # what stood before the hint is cut
@given(
    parts=st.lists(hostile, min_size=1, max_size=4), hint=hostile, place=st.integers(0, 4), limit=st.integers(60, 300)
)
def test_student_and_teacher_differ_by_hindsight_alone(
    name: str, parts: list[str], hint: str, place: int, limit: int
) -> None:
    segments = [Segment(text=text, kind="history" if index % 2 else "text") for index, text in enumerate(parts)]
    hindsight = Segment(text="hint " + hint, kind="hindsight")
    taught = [*segments[:place], hindsight, *segments[place:]]
    encoder = ChatEncoder(TOKENIZERS[name], limit)
    turns = (message("assistant", "x " * 20), message("user", "ok " * 20, kind="history"))

    def encoded(first: list[Segment]) -> Any:
        return encoder.encode(conversation(Message(role="user", segments=tuple(first)), *turns, *turns))

    try:
        student = encoded(segments)
    except SetupError:
        with pytest.raises(SetupError):
            encoded(taught)
        return
    if encoder.count(hindsight.text) + 1 > limit:
        return
    teacher = encoded(taught)
    ((start, end),) = teacher.hindsight_spans
    assert teacher.token_ids[:start] + teacher.token_ids[end:] == student.token_ids
    assert teacher.n_dropped == student.n_dropped


@each
def test_served_replies_stand_verbatim_with_one_end_token(name: str) -> None:
    encoder = ENCODERS[name]
    end = next(iter(encoder._template_end()))
    odd = (200, 201, 202)  # no tokenisation of their own text
    for served in (odd, (*odd, end)):
        reply = Message(role="assistant", segments=(Segment(kind="reply", text="?", token_ids=served),))
        ids = encoder.encode(conversation(message("user", "a"), reply, message("user", "b"))).token_ids
        at = ids.index(200)
        assert ids[at : at + 3] == odd and ids[at + 3] == end and ids[at + 4] != end
    first = encoder.encode(conversation(message("user", "a"))).token_ids
    assert ids[: len(first)] == first, "the next turn's prompt continues what was served"


def test_system_role_is_folded_where_the_template_refuses_it() -> None:
    prompt = conversation(message("system", "be terse"), message("user", "count"))
    text = TOKENIZERS["lfm2"].decode(ENCODERS["lfm2"].encode(prompt).token_ids)
    assert text == "<|user|>be terse\n\ncount<|end|><|assistant|>"
    assert "<|im_start|>system\nbe terse<|im_end|>" in TOKENIZERS["qwen3"].decode(
        ENCODERS["qwen3"].encode(prompt).token_ids
    )


def test_no_template_and_refusing_template_say_what_mends_them() -> None:
    tokenizer = checkpoints.byte_level_tokenizer(("<|end|>",), None, eos_token="<|end|>")
    with pytest.raises(SetupError, match=r"chat_template\.jinja"):
        ChatEncoder(tokenizer, 64)
    tokenizer.chat_template = "{{ messages[0].content }}"
    with pytest.raises(SetupError, match="loses messages"):
        ChatEncoder(tokenizer, 64).encode(
            conversation(message("user", "a"), message("assistant", "b"), message("user", "c"))
        )


def long_act(n_turns: int, hindsight: bool = False) -> Prompt:
    hint = Segment(text="hint zora late r3 4", kind="hindsight") if hindsight else None
    first = act.first_message("zora count late", "", (), token_budget=64, hindsight=hint)
    turns: list[Message] = []
    for turn in range(n_turns):
        turns += [message("assistant", f"reply{turn}"), act.observation_message(f"seen{turn} " * 5)]
    return act.prompt(first, turns)


def shown(prompt: Prompt, limit: int) -> tuple[str, Any]:
    encoder = ChatEncoder(TOKENIZERS["qwen3"], limit)
    encoded = encoder.encode(prompt)
    return TOKENIZERS["qwen3"].decode(encoded.token_ids), encoded


@pytest.mark.parametrize("hindsight", [False, True])
def test_truncation_drops_whole_exchanges_from_the_middle(hindsight: bool) -> None:
    prompt = long_act(6, hindsight)
    whole, encoded = shown(prompt, 4096)
    assert encoded.n_dropped == 0
    limit = (len(encoded.token_ids) * 6) // 10
    text, encoded = shown(prompt, limit)
    assert encoded.n_dropped > 0
    spans = sum(end - start for start, end in encoded.hindsight_spans)
    assert len(encoded.token_ids) - spans <= limit
    assert text.startswith(whole[: whole.index("<|im_start|>assistant")]), "instruction and hindsight stay"
    assert text.endswith("<|im_start|>assistant\n")
    assert "seen5 seen5" in text and "reply0" in text and "reply2" not in text
    kept = [turn for turn in range(6) if f"reply{turn}" in text]
    assert all(f"seen{turn} " * 4 in text for turn in kept), "an exchange goes as a whole"


def test_truncation_goes_on_to_the_last_reply_and_to_segments() -> None:
    limit = len(shown(long_act(1), 4096)[1].token_ids) - 1
    text, encoded = shown(long_act(2), limit)
    assert "act task zora count late" in text and "seen1" in text and "reply" not in text
    assert text.count("<|im_start|>") == 2 and len(encoded.token_ids) <= limit

    history = [Segment(text=f"| step{turn} got no", kind="history") for turn in range(9)]
    write = Prompt(
        ability="write",
        messages=(Message(role="user", segments=(Segment(text="write zora"), *history, Segment(text="| fail"))),),
    )
    text, encoded = shown(write, 100)
    assert "write zora | step0 got no" in text and "| step8 got no | fail" in text and "step4" not in text

    one = Segment(text=" ".join(f"word{number}" for number in range(50)), kind="history")
    single = Prompt(ability="write", messages=(Message(role="user", segments=(Segment(text="write"), one)),))
    text, encoded = shown(single, 80)
    assert "word0" in text and "word49" in text and "word25" not in text
    assert 60 < len(encoded.token_ids) <= 80


def test_a_prompt_that_cannot_fit_names_the_parameter() -> None:
    with pytest.raises(SetupError, match=r"policy\.max_prompt_tokens"):
        shown(conversation(message("user", string.ascii_letters * 5)), 50)
    hindsight = Segment(text=string.ascii_letters * 5, kind="hindsight")
    with pytest.raises(SetupError, match=r"policy\.max_prompt_tokens"):
        shown(conversation(Message(role="user", segments=(Segment(text="a"), hindsight))), 50)
    with pytest.raises(ValueError, match="end with a user message"):
        shown(conversation(message("user", "a"), message("assistant", "b")), 50)
