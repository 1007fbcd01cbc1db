"""Over-long prompts lose the middle of their history, never the instruction, the hindsight or the reply header.

Order: whole exchanges (a reply and the observation after it) from the middle; the last reply; whole
`history` segments from the middle; the middle of the last one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from opd_evolver.records import Message, Segment

Size = Callable[[Sequence[Message]], int]
# Characters: without fewer, a prompt would hardly be another.
_LEAST_CUT = 200


def cut(messages: Sequence[Message], limit: int, size: Size) -> tuple[Message, ...] | None:
    """Messages that fit, or None when even the bare prompt does not.

    Args:
        messages: the whole conversation; the last message is the user's.
        limit: most tokens.
        size: tokens of a conversation, hindsight left out.

    Paper: truncation rule of the slow loop's views.
    """
    kept = tuple(messages)
    for shorten in (_without_middle_exchange, _without_last_reply, _without_middle_segment):
        while size(kept) > limit:
            shorter = shorten(kept)
            if shorter is None:
                break
            kept = shorter
    if size(kept) <= limit:
        return kept
    return _with_cut_segment(kept, limit, size)


def shorter(messages: Sequence[Message]) -> tuple[Message, ...] | None:
    """Messages without a quarter of the history that is left, or None when hardly any is; for whoever cannot count.

    Args:
        messages: as of `cut`; lengths are those of texts.
    """
    history = sum(len(one.text) for message in messages for one in message.segments if one.kind in ("history", "reply"))
    if history < _LEAST_CUT:
        return None
    return cut(messages, _n_characters(messages) - max(history // 4, _LEAST_CUT), _n_characters)


def _n_characters(messages: Sequence[Message]) -> int:
    return sum(len(segment.text) for message in messages for segment in message.segments)


def _has_hindsight(message: Message) -> bool:
    return any(segment.kind == "hindsight" for segment in message.segments)


def _exchanges(messages: tuple[Message, ...]) -> list[tuple[int, int]]:
    """[start, end) of every assistant message with what follows it, the last message left out."""
    starts = [index for index, message in enumerate(messages) if message.role == "assistant"]
    return list(zip(starts, [*starts[1:], len(messages) - 1], strict=False))


def _without_middle_exchange(messages: tuple[Message, ...]) -> tuple[Message, ...] | None:
    droppable = [
        (start, end)
        for start, end in _exchanges(messages)[:-1]
        if not any(_has_hindsight(message) for message in messages[start:end])
    ]
    if not droppable:
        return None
    start, end = droppable[len(droppable) // 2]
    return messages[:start] + messages[end:]


def _without_last_reply(messages: tuple[Message, ...]) -> tuple[Message, ...] | None:
    """Drop the one reply that is left; the two user messages around it become one."""
    exchanges = _exchanges(messages)
    if len(exchanges) != 1:
        return None
    start, end = exchanges[0]
    if any(_has_hindsight(message) for message in messages[start:end]) or start == 0:
        return None
    before, after = messages[start - 1], messages[-1]
    joined = Message(role="user", segments=(*before.segments, Segment(text="\n"), *after.segments))
    return (*messages[: start - 1], joined)


def _history(messages: tuple[Message, ...]) -> list[tuple[int, int]]:
    """(message, segment) of every history segment with something in it."""
    return [
        (number, place)
        for number, message in enumerate(messages)
        for place, segment in enumerate(message.segments)
        if segment.kind == "history" and (segment.text or segment.token_ids)
    ]


def _replaced(messages: tuple[Message, ...], where: tuple[int, int], segment: Segment | None) -> tuple[Message, ...]:
    number, place = where
    segments = messages[number].segments
    new = segments[:place] + (() if segment is None else (segment,)) + segments[place + 1 :]
    return (*messages[:number], Message(role=messages[number].role, segments=new), *messages[number + 1 :])


def _without_middle_segment(messages: tuple[Message, ...]) -> tuple[Message, ...] | None:
    places = _history(messages)
    if len(places) < 2:
        return None
    return _replaced(messages, places[(len(places) - 1) // 2], None)


def _with_cut_segment(messages: tuple[Message, ...], limit: int, size: Size) -> tuple[Message, ...] | None:
    """Keep as many words at both ends of the last history segment as fit (binary search)."""
    places = _history(messages)
    if not places:
        return None
    number, place = places[-1]
    segment = messages[number].segments[place]
    # Words keep their spacing, and a text without spaces is cut between characters.
    pieces = segment.text.split(" ")
    glue = " " if len(pieces) > 8 else ""
    pieces = pieces if glue else list(segment.text)

    def with_ends(n_pieces: int) -> tuple[Message, ...]:
        head, tail = (n_pieces + 1) // 2, n_pieces // 2
        text = glue.join([*pieces[:head], *([] if tail == 0 else pieces[-tail:])])
        return _replaced(messages, (number, place), Segment(kind="history", text=text))

    low, high = 0, len(pieces)
    if size(with_ends(0)) > limit:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(with_ends(middle)) <= limit else (low, middle)
    return with_ends(low)
