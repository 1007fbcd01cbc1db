"""Prompts to token ids: the chat template is glue, everything inside a message is data.

The template is rendered once per sequence of roles over sentinels. The text between sentinels (glue) is
tokenised with special tokens obeyed, every segment on its own (a space parts it from the one before) with
special tokens split, served replies verbatim. Hence
(a) no memory text can forge a role, (b) student and teacher are token-identical outside `hindsight`
segments by construction, (c) training sees exactly the tokens that were served.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from opd_evolver.errors import SetupError
from opd_evolver.policy.protocol import EncodedPrompt
from opd_evolver.policy.truncation import cut
from opd_evolver.records import Message, Prompt, Segment

Tokenize = Callable[[str], tuple[int, ...]]
# Templates that think aloud spend the reply's budget; a template that prints today's date is not reproducible.
TEMPLATE_OPTIONS: Mapping[str, Any] = {"enable_thinking": False, "date_string": "26 Jul 2024"}
_CACHED_SEGMENTS = 65536
_CACHED_ROLE_SEQUENCES = 1024


class Glue(NamedTuple):
    """A rendered role sequence: `parts[k]`, content of message `order[k]`, …, `parts[-1]` (the reply header)."""

    parts: tuple[tuple[int, ...], ...]
    order: tuple[int, ...]

    @property
    def n_tokens(self) -> int:
        return sum(map(len, self.parts))


class ChatEncoder:
    """Renders prompts exactly as served.

    Args:
        tokenizer: a Hugging Face tokenizer with a chat template.
        max_prompt_tokens: most tokens outside hindsight; also the most tokens of hindsight.
        template_options: variables handed to the chat template.
        end_ids: further tokens that end a reply, beside the template's and the tokenizer's.

    Raises:
        SetupError: the tokenizer has no chat template, or one that loses message contents.

    Differs: the limit counts tokens outside hindsight, so that the longer teacher prompt is cut
    exactly where the student's is.
    """

    def __init__(
        self,
        tokenizer: Any,
        max_prompt_tokens: int,
        *,
        template_options: Mapping[str, Any] = TEMPLATE_OPTIONS,
        end_ids: Iterable[int] = (),
    ) -> None:
        template = getattr(tokenizer, "chat_template", None)
        if not template:
            raise SetupError(
                f"the tokenizer of {getattr(tokenizer, 'name_or_path', '') or 'this policy'} has no chat template",
                "a chat model's tokenizer",
                "put the model's chat_template.jinja into the policy's folder",
            )
        self.tokenizer = tokenizer
        self.max_prompt_tokens = max_prompt_tokens
        self._options = dict(template_options)
        self._control_ids = control_ids(tokenizer, str(template))
        self.tokenize: Tokenize = lru_cache(_CACHED_SEGMENTS)(content_tokenizer(tokenizer, str(template)))
        self._glue = lru_cache(_CACHED_ROLE_SEQUENCES)(self._render)
        eos = tokenizer.eos_token_id
        self.end_ids: frozenset[int] = frozenset(end_ids) | ({eos} if eos is not None else set())
        self.end_ids |= self._template_end()
        self._glue.cache_clear()

    def count(self, text: str) -> int:
        """Tokens of a text as a segment of its own; the `Count` of memory rendering."""
        return len(self.tokenize(text))

    def encode(self, prompt: Prompt) -> EncodedPrompt:
        """Token ids of a prompt, reply header included, and where its hindsight lies.

        Raises:
            SetupError: it does not fit even without its history; names `policy.max_prompt_tokens`.
            ValueError: the last message is not the user's.
        """
        if not prompt.messages or prompt.messages[-1].role != "user":
            raise ValueError(f"a {prompt.ability} prompt must end with a user message")
        ids, spans, messages = self._assembled(prompt.messages)
        hindsight = _within(spans)
        if len(ids) - hindsight <= self.max_prompt_tokens and hindsight <= self.max_prompt_tokens:
            return EncodedPrompt(ids, spans)
        if hindsight > self.max_prompt_tokens:
            raise SetupError(
                f"{hindsight} tokens of hindsight in a {prompt.ability} prompt",
                f"at most {self.max_prompt_tokens}",
                "raise policy.max_prompt_tokens",
            )
        kept = cut(messages, self.max_prompt_tokens, self._size)
        if kept is None:
            raise SetupError(
                f"a {prompt.ability} prompt of {len(ids) - hindsight} tokens does not fit without its history",
                f"at most {self.max_prompt_tokens} tokens outside hindsight",
                "raise policy.max_prompt_tokens, or lower memory.max_selected or memory.entry_token_budget",
            )
        short, spans, _ = self._assembled(kept)
        # Outside hindsight, which may begin with a space more or less where its neighbour was cut.
        n_dropped = len(ids) - hindsight - (len(short) - _within(spans))
        return EncodedPrompt(short, spans, n_dropped=n_dropped)

    def _segment_ids(self, segment: Segment, before: str) -> tuple[int, ...]:
        """Ids of a segment after the text `before` in its message (hindsight left out, so that it changes nothing)."""
        if segment.token_ids is not None:
            return segment.token_ids
        apart = not before or before[-1:].isspace() or segment.text[:1].isspace() or not segment.text
        return self.tokenize(segment.text if apart else f" {segment.text}")

    def _size(self, messages: Sequence[Message]) -> int:
        """Tokens outside hindsight."""
        ids, spans, _ = self._assembled(messages)
        return len(ids) - _within(spans)

    def _assembled(
        self, messages: Sequence[Message]
    ) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...], tuple[Message, ...]]:
        messages = tuple(messages)
        glue = self._glue(tuple(message.role for message in messages))
        if glue is None:
            messages = fold_system(messages)
            glue = self._glue(tuple(message.role for message in messages))
        if glue is None:
            roles = " ".join(message.role for message in messages)
            raise SetupError(
                f"the chat template of {self.tokenizer.name_or_path} loses messages ({roles})",
                "a template that renders every message once",
                "use the model's own chat template",
            )
        ids: list[int] = list(glue.parts[0])
        spans: list[tuple[int, int]] = []
        for after, index in zip(glue.parts[1:], glue.order, strict=True):
            before = ""
            for segment in messages[index].segments:
                start = len(ids)
                ids += self._segment_ids(segment, before)
                if segment.kind != "hindsight":
                    before = segment.text or before
                elif len(ids) > start:
                    spans.append((start, len(ids)))
            # A served reply brings its end token; the glue after it brings one too.
            served = messages[index].segments and messages[index].segments[-1].token_ids
            if served and served[-1] in self.end_ids and not self.end_ids.isdisjoint(after[:2]):
                ids.pop()
            ids += after
        return tuple(ids), tuple(spans), messages

    def _render(self, roles: tuple[str, ...]) -> Glue | None:
        """Glue of a role sequence; None when the template refuses or drops a role of it.

        Raises:
            SetupError: refused although there is no system message to fold.
        """
        # Private-use characters survive `trim` and cannot stand in a template.
        sentinels = [f"\ue000{number}\ue001" for number in range(len(roles))]
        conversation = [{"role": role, "content": mark} for role, mark in zip(roles, sentinels, strict=True)]
        try:
            text = self.tokenizer.apply_chat_template(
                conversation, tokenize=False, add_generation_prompt=True, **self._options
            )
        except Exception as error:  # jinja's errors, and whatever a template raises by itself
            if "system" in roles:
                return None
            raise SetupError(
                f"the chat template of {self.tokenizer.name_or_path} refuses {' '.join(roles)}: {error}",
                "a template for user and assistant turns",
                "use the model's own chat template",
            ) from error
        if any(text.count(mark) != 1 for mark in sentinels):
            return None
        order = sorted(range(len(roles)), key=lambda index: text.index(sentinels[index]))
        parts = []
        for index in order:
            before, text = text.split(sentinels[index])
            parts.append(self._glue_ids(before))
        return Glue((*parts, self._glue_ids(text)), tuple(order))

    def _glue_ids(self, text: str) -> tuple[int, ...]:
        if not text:
            return ()
        return tuple(self.tokenizer(text, add_special_tokens=False, split_special_tokens=False)["input_ids"])

    def _template_end(self) -> frozenset[int]:
        """The control token with which the template ends an assistant's message."""
        glue = self._glue(("user", "assistant", "user"))
        if glue is None or 1 not in glue.order:
            return frozenset()
        after = glue.parts[glue.order.index(1) + 1]
        return frozenset([token for token in after[:2] if token in self._control_ids][:1])


def _within(spans: Sequence[tuple[int, int]]) -> int:
    return sum(end - start for start, end in spans)


def fold_system(messages: Sequence[Message]) -> tuple[Message, ...]:
    """For templates that reject a system role: its segments open the first user message."""
    system = [segment for message in messages if message.role == "system" for segment in message.segments]
    folded: list[Message] = []
    for message in messages:
        if message.role == "system":
            continue
        if system and message.role == "user":
            message = Message(role="user", segments=(*system, Segment(text="\n\n"), *message.segments))
            system = []
        folded.append(message)
    return tuple(folded)


def control_ids(tokenizer: Any, template: str) -> frozenset[int]:
    """Ids that content must never hold: special tokens and added tokens that the template speaks of."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    marked = {index for index, token in added.items() if token.special or token.content in template}
    return frozenset(marked | set(tokenizer.all_special_ids)) - {tokenizer.unk_token_id}


def content_tokenizer(tokenizer: Any, template: str) -> Tokenize:
    """A tokenizer of content: no special or control token can come out of any text."""
    forbidden = control_ids(tokenizer, template)
    names = sorted({str(tokenizer.convert_ids_to_tokens(index)) for index in forbidden}, key=len, reverse=True)
    plain = _plain_backend(tokenizer, template)

    def tokenize(text: str) -> tuple[int, ...]:
        ids = plain(text)
        if forbidden.isdisjoint(ids):
            return tuple(ids)
        # The token is a word of the model's own vocabulary: tokenise so that it never stands whole.
        pieces = [text]
        for name in names:
            pieces = [part for piece in pieces for part in _broken(piece, name)]
        ids = [index for piece in pieces for index in plain(piece)]
        if not forbidden.isdisjoint(ids):
            ids = [index for character in text for index in plain(character)]
        return tuple(index for index in ids if index not in forbidden)

    return tokenize


def _broken(text: str, name: str) -> list[str]:
    """Cut a text inside every occurrence of `name`, after its first character."""
    first, *rest = text.split(name)
    parts = [first]
    for following in rest:
        parts[-1] += name[:1]
        parts.append(name[1:] + following)
    return [part for part in parts if part]


def _plain_backend(tokenizer: Any, template: str) -> Callable[[str], list[int]]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return lambda text: list(tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))
    from tokenizers import Tokenizer

    state = json.loads(backend.to_str())
    for token in state["added_tokens"]:
        token["special"] = token["special"] or token["content"] in template
    state["truncation"] = state["padding"] = None
    plain = Tokenizer.from_str(json.dumps(state))
    plain.encode_special_tokens = True
    return lambda text: list(plain.encode(text, add_special_tokens=False).ids)
