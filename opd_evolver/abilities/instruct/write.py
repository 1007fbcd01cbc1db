"""Write, for chat models: one reflection; the reply a JSON object with new entries, each level with all its fields.

`{"entries": [{"level": "tip", "trigger": "late", "text": "4"}, …]}`, or `{"entries": []}`. A trajectory names
learnings and tags only: the harness adds the episode's task and steps, and to every entry scope and round.
Hindsight: the *future* value of what was written.
Paper: fast loop step 4 and the write view of the slow loop.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, cast

from opd_evolver.abilities import write as terse
from opd_evolver.abilities.dialect import verdict
from opd_evolver.abilities.instruct import reading
from opd_evolver.abilities.instruct.wording import (
    hint,
    notes_segments,
    quoted,
    said_of,
    segment,
    system,
    turn_text,
    user,
    value_text,
)
from opd_evolver.abilities.write import Written
from opd_evolver.memory.acceptance import ACTIONS
from opd_evolver.memory.levels import Count, n_words
from opd_evolver.records import (
    LEVELS,
    Attribution,
    Content,
    Entry,
    Level,
    Prompt,
    Segment,
    SkillContent,
    TipContent,
    ToolContent,
    TrajectoryContent,
    TurnRecord,
)

FORMS = (
    '{"level": "tip", "trigger": "what it is about, in a word or two", "text": "what holds", "severity": "info"}\n'
    '{"level": "skill", "description": "what for", "preconditions": "", "technique": "", "steps": ["…", "…"]}\n'
    '{"level": "tool", "name": "short_name", "language": "actions", "code": "action ; action with $1", '
    '"input_description": "", "output_description": ""}\n'
    '{"level": "trajectory", "learnings": ["…"], "tags": ["…"]}'
)
SYSTEM = system(
    "You reflect on an episode that an agent has just finished and write down what will help it with later tasks of "
    "the same scope. Write only what the episode itself has shown and the notes do not say yet: a fact that an "
    "observation confirmed, a procedure that worked, a sequence worth replaying. Most episodes teach little: to "
    "write nothing is a good answer, and a wrong note does harm.\n\n"
    'Reply with one JSON object and nothing else: {"entries": []}, or entries of these forms:\n' + FORMS + "\n\n"
    "A tool's language is actions (actions of the environment, separated by ;), python or bash. A trajectory keeps "
    "the steps of this episode by itself."
)
_SEVERITIES = ("info", "warning", "critical")
_OUTCOMES = {"win": "success", "part": "partial success", "fail": "failure"}


def prompt(
    task_text: str,
    turns: Sequence[TurnRecord],
    replies: Sequence[str],
    memories: Sequence[Entry],
    *,
    episode_return: float,
    success: bool,
    token_budget: int,
    count: Count = n_words,
    hindsight: Segment | None = None,
) -> Prompt:
    """The writer's prompt; see abilities/write.py. Steps are told by their actions, without what was thought."""
    segments = [segment(f"Task: {quoted(task_text)}")]
    segments += notes_segments(memories, token_budget=token_budget, count=count)
    segments.append(segment("\n\nEpisode:"))
    segments += [segment(f"\n{turn_text(number, turn)}", "history") for number, turn in enumerate(turns, start=1)]
    outcome = _OUTCOMES[terse.outcome_word(episode_return, success)]
    segments.append(segment(f"\n\nOutcome: {outcome} (return {episode_return:.2f})"))
    if hindsight is not None:
        segments.append(hindsight)
    return Prompt(ability="write", messages=(SYSTEM, user(*segments)))


def written_form(content: Content) -> str:
    """How a reply writes this content; the inverse of `parse`."""
    told: dict[str, Any] = content.model_dump(mode="json", exclude_defaults=True)
    if isinstance(content, TrajectoryContent):
        told = {key: told[key] for key in ("learnings", "tags") if key in told}
    return json.dumps({"level": content.level, **told}, ensure_ascii=False)


def hindsight(written: Sequence[Entry], attributions: Mapping[str, Attribution], threshold: float) -> Segment | None:
    """V of what the episode wrote, as it turned out later; None when there is no evidence."""
    lines = []
    for entry in written:
        found = attributions.get(entry.entry_id)
        if sign := verdict(found, threshold):
            lines.append(f"{quoted(written_form(entry.content))} {said_of(sign)}{value_text(found)}")
    return hint(*lines)


def parse(
    reply: str,
    *,
    limit: int,
    levels: Collection[Level] = LEVELS,
    task_text: str = "",
    turns: Sequence[TurnRecord] = (),
    episode_return: float = 0.0,
    success: bool = False,
) -> Written:
    """Entries of a reply, at most `limit`; unreadable ones are rejected with their reason, the rest kept."""
    text = reading.said(reply)
    trees = _trees(text)
    if trees is None:
        nothing = reading.last_line(text).strip().strip("*`_. ").lower() in ("", "none", "nothing")
        return Written((), () if nothing else (f"unreadable: {' '.join(text.split())[:80]}",))

    def episode() -> Content | None:
        return terse.trajectory(task_text, turns, episode_return, success)

    return terse.admitted(((_content(tree, episode()), _shown(tree)) for tree in trees), limit, levels)


def content_of(tree: Any) -> Content | None:
    """One entry as JSON, for a merge: no trajectory, which needs an episode."""
    return _content(tree, None)


def _shown(tree: Any) -> str:
    return " ".join(json.dumps(tree, ensure_ascii=False).split())[:80]


def _trees(text: str) -> list[Any] | None:
    """The entries of a reply: of its last list, or by themselves; None when it holds no JSON at all."""
    found = reading.values(text)
    lists = [reading.field(tree, "entries", "notes", "memories") for tree in found if isinstance(tree, dict)]
    lists += [tree for tree in found if isinstance(tree, list)]
    lists = [one for one in lists if isinstance(one, (list, dict))]
    if lists:
        return lists[-1] if isinstance(lists[-1], list) else [lists[-1]]
    return [tree for tree in found if isinstance(tree, dict)] or None


def _content(tree: Any, episode: Content | None) -> Content | None:
    if not isinstance(tree, dict):
        return None
    level = reading.text_of(tree, "level", "type", "kind").lower()
    match level:
        case "tip":
            severity = reading.text_of(tree, "severity").lower()
            return TipContent(
                trigger=" ".join(reading.text_of(tree, "trigger", "when", "topic").split()),
                text=" ".join(reading.text_of(tree, "text", "note", "content", "tip").split()),
                severity=cast(Literal["info", "warning", "critical"], severity if severity in _SEVERITIES else "info"),
            )
        case "skill":
            return _skill(tree)
        case "tool":
            language = reading.text_of(tree, "language").lower() or ACTIONS
            return ToolContent(
                name=" ".join(reading.text_of(tree, "name").split()),
                language=language,
                code=_code(tree, language),
                input_description=reading.text_of(tree, "input_description", "inputs"),
                output_description=reading.text_of(tree, "output_description", "outputs"),
            )
        case "trajectory" if isinstance(episode, TrajectoryContent):
            told = {name: _texts(reading.field(tree, name)) for name in ("learnings", "tags")}
            return None if None in told.values() else episode.model_copy(update=told)
    return None


def _skill(tree: dict[str, Any]) -> SkillContent | None:
    steps = _texts(reading.field(tree, "steps"))
    if steps is None:
        return None
    return SkillContent(
        description=reading.text_of(tree, "description", "name"),
        preconditions=reading.text_of(tree, "preconditions"),
        technique=reading.text_of(tree, "technique"),
        steps=steps,
    )


def _code(tree: dict[str, Any], language: str) -> str:
    """Code as one text; actions may come as a list."""
    code = reading.field(tree, "code", "actions", "steps")
    if isinstance(code, list) and all(isinstance(part, str) for part in code):
        return (" ; " if language == ACTIONS else "\n").join(code)
    return code.strip("\n") if isinstance(code, str) else ""


def _texts(value: Any) -> tuple[str, ...] | None:
    """A list of texts, or one text; None when something in it is neither."""
    if value is None or value == "":
        return ()
    if isinstance(value, str):
        return (value.strip(),)
    if not isinstance(value, list) or not all(isinstance(one, (str, int, float)) for one in value):
        return None
    return tuple(text for one in value if (text := str(one).strip()))
