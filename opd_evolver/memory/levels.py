"""How each memory level is embedded and rendered. Every level renders whole, within a token budget.

Paper: the four-level memory hierarchy. Differs: the authors' code renders only the embedded text,
so that tool code, skill steps and trajectory steps never reach the model; here what is rendered is
what is logged.
"""

from __future__ import annotations

from collections.abc import Callable

from opd_evolver.records import Content, Entry, SkillContent, TipContent, ToolContent, TrajectoryContent

Count = Callable[[str], int]


def n_words(text: str) -> int:
    """The default token count where no tokenizer is at hand."""
    return len(text.split())


def one_line(text: str) -> str:
    """Memory text is untrusted: separators of the dialect and line breaks in it become spaces."""
    return " ".join(text.replace("|", " ").split())


def embed_text(entry: Entry) -> str:
    """The text that is embedded and indexed, by level (see the level table in docs/paper_map.md)."""
    content = entry.content
    match content:
        case TrajectoryContent():
            body = " ".join((_untold(content.task, entry.scope), *content.learnings))
        case TipContent():
            body = f"{content.trigger} {content.text}"
        case SkillContent():
            body = f"{content.description} {content.preconditions}"
        case ToolContent():
            body = f"{content.name} {content.input_description} {content.output_description}"
    return one_line(f"{entry.scope} {body}")


def _untold(task: str, scope: str) -> str:
    """A task's text without the scope that it begins with, which stands before it anyway."""
    return task.removeprefix(f"{scope} ")


def head(entry: Entry) -> str:
    """What names the entry: the level's word (tips have none), its scope and key."""
    content = entry.content
    match content:
        case TrajectoryContent():
            words = f"traj {entry.scope} {_untold(content.task, entry.scope)}"
        case TipContent():
            words = f"{entry.scope} {content.trigger}"
        case SkillContent():
            words = f"skill {entry.scope} {content.description}"
        case ToolContent():
            words = f"tool {entry.scope} {content.name}"
    return one_line(words)


def pieces(content: Content) -> tuple[str, ...]:
    """What the entry says, in pieces that a budget may leave out from the end."""
    match content:
        case TrajectoryContent():
            began = (step.observation for step in content.steps[:1] if step.observation)
            steps = (*began, *(f"{step.action} got {step.result}" for step in content.steps))
            return tuple(one_line(piece) for piece in (content.outcome, *steps, *content.learnings))
        case TipContent():
            return (one_line(content.text),)
        case SkillContent():
            lead = (content.preconditions, content.technique)
            return tuple(one_line(piece) for piece in (*lead, *content.steps) if piece.strip())
        case ToolContent():
            signature = f"{content.input_description} gives {content.output_description}"
            described = content.input_description or content.output_description
            return tuple(one_line(piece) for piece in ((signature,) if described else ()) + (content.code,))


def _cut(words: str, numbers: str, token_budget: int, count: Count) -> str:
    """The head's first words that fit beside its numbers, which stay in any case."""
    if count(words + numbers) <= token_budget:
        return words
    kept = words.split()
    while kept and count(" ".join([*kept, "…"]) + numbers) > token_budget:
        kept.pop()
    return " ".join([*kept, "…"])


def render(entry: Entry, *, handle: int | None = None, token_budget: int, count: Count = n_words) -> str:
    """One entry as selector and executor see it: head, handle (selector only), round, then all it says.

    Args:
        entry: the entry.
        handle: its 1-based place in the selector's list; None for the executor.
        token_budget: most tokens of the whole text; pieces that do not fit are left out and `…` says so.
        count: tokens of a text.
    """
    numbers = (f" h{handle}" if handle is not None else "") + f" r{entry.learnt_round}"
    start = _cut(head(entry), numbers, token_budget, count) + numbers
    separator = " " if entry.level == "tip" else " : "
    text = start
    for number, piece in enumerate(pieces(entry.content)):
        longer = text + (separator if number == 0 else " ; ") + piece
        if count(longer) > token_budget:
            return text + " …"
        text = longer
    return text
