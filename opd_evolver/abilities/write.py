"""Write: one reflection on (x, tau, R, S): new entries per level, or none.

Student prompt `write mem <S> task <task> | <reply> got <observation> | … | win`; reply
`tip late 4 | skill audit : fee ; net ; tax`, `tool report : select fee from $1 ; …` (actions of the environment;
`tool report python : print ( 1 )` is code), `traj` (the harness adds the
episode's task and steps) or `none`. Writing nothing is neutral. The harness adds name (scope)
and round to what is returned.
Hindsight: the *future* value of what was written, `hint tip late 4 up | tip held 7 down`.
Paper: fast loop step 4 and the write view of the slow loop.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from typing import Literal, NamedTuple

from opd_evolver.abilities.dialect import HINT, SEPARATOR, entries_text, segment, turns_segments, user, verdict
from opd_evolver.memory.acceptance import ACTIONS, TOOL_LANGUAGES, fault, parts_of
from opd_evolver.memory.levels import Count, n_words, one_line
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
    TrajectoryStep,
    TurnRecord,
)

CODE_LANGUAGES = tuple(language for language in TOOL_LANGUAGES if language != ACTIONS)


class Written(NamedTuple):
    """What a reply proposes, and what of it was rejected and why."""

    contents: tuple[Content, ...]
    rejected: tuple[str, ...]


def outcome_word(episode_return: float, success: bool) -> str:
    return "win" if success else ("part" if episode_return > 0 else "fail")


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
    """The writer's prompt; the teacher's when `hindsight` is given. `replies` are the act replies' texts."""
    segments = [segment("write")]
    if memories:
        listed = entries_text(memories, token_budget=token_budget, count=count)
        segments += [segment("mem"), segment(listed, "memory")]
    segments.append(segment(f"task {task_text}"))
    segments += turns_segments(turns, replies)
    segments.append(segment(f"| {outcome_word(episode_return, success)}"))
    if hindsight is not None:
        segments.append(hindsight)
    return Prompt(ability="write", messages=(user(*segments),))


def written_form(content: Content) -> str:
    """How a reply writes this content; the inverse of `parse`."""
    match content:
        case TipContent():
            return one_line(f"tip {content.trigger} {content.text}")
        case SkillContent():
            return one_line(f"skill {content.description} : {' ; '.join(content.steps)}")
        case ToolContent():
            language = "" if content.language == ACTIONS else f" {content.language}"
            return one_line(f"tool {content.name}{language} : {content.code}")
        case TrajectoryContent():
            return "traj"


def hindsight(written: Sequence[Entry], attributions: Mapping[str, Attribution], threshold: float) -> Segment | None:
    """V of what the episode wrote, as it turned out later; None when there is no evidence."""
    marks = [
        f"{written_form(entry.content)} {mark}"
        for entry in written
        if (mark := verdict(attributions.get(entry.entry_id), threshold))
    ]
    return segment(f"{HINT} {SEPARATOR.join(marks)}", "hindsight") if marks else None


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
    """Entries of a reply, at most `limit`; parts that are unreadable or without ground are rejected, the rest kept.

    A tip, skill or tool has its ground in the turns: what it says to do was done there. A policy that knows some of its
    answers may say one thing and do another; what it said is then no experience of anything.
    """
    parts = [words for part in reply.split("|") if (words := part.split()) and words != ["none"]]
    read = [(_content(words, task_text, turns, episode_return, success), " ".join(words)) for words in parts]
    done = [set(turn.action.split()) for turn in _kept(turns)]
    sound: list[tuple[Content | None, str]] = []
    baseless: list[str] = []
    for content, said in read:
        if content is None or not turns or _grounded(content, done):
            sound.append((content, said))
        else:
            baseless.append(f"ungrounded: {said[:80]}")
    written = admitted(sound, limit, levels)
    return Written(written.contents, (*written.rejected, *baseless))


def _grounded(content: Content, done: Sequence[Set[str]]) -> bool:
    """Whether what it says was done: a value in some action, steps one after the other."""
    match content:
        case TipContent(text=text):
            return any(not words.isdisjoint(text.split()) for words in done)
        case SkillContent(steps=steps):
            said = steps
        case ToolContent(language=language, code=code) if language == ACTIONS:
            said = parts_of(code)
        case _:
            return True
    rest = iter(done)
    wanted = [{word for word in step.split() if not word.startswith("$")} for step in said]
    return all(any(step <= words for words in rest) for step in wanted)


def admitted(proposed: Iterable[tuple[Content | None, str]], limit: int, levels: Collection[Level] = LEVELS) -> Written:
    """What of a reply becomes entries, at most `limit`, and why the rest does not.

    Args:
        proposed: each part of the reply as content (None: unreadable), and as it was said.
        limit: most entries.
        levels: those that are kept; others do not count.
    """
    contents: list[Content] = []
    rejected: list[str] = []
    for content, said in proposed:
        if content is None:
            rejected.append(f"unreadable: {said[:80]}")
        elif found := fault(content):
            rejected.append(found)
        elif content.level not in levels:
            rejected.append(f"level: {content.level} is off")
        elif content in contents:
            rejected.append(f"duplicate: {said[:80]}")
        elif len(contents) >= limit:
            rejected.append(f"over the limit of {limit}: {said[:80]}")
        else:
            contents.append(content)
    return Written(tuple(contents), tuple(rejected))


def _content(
    words: list[str], task_text: str, turns: Sequence[TurnRecord], episode_return: float, success: bool
) -> Content | None:
    kind, rest = words[0], words[1:]
    if kind == "tip" and len(rest) >= 2:
        return TipContent(trigger=rest[0], text=" ".join(rest[1:]))
    if kind in ("skill", "tool") and ":" in rest[1:-1]:
        cut = rest.index(":", 1)
        name, body = " ".join(rest[:cut]), " ".join(rest[cut + 1 :])
        if kind == "tool":
            named, _, language = name.rpartition(" ")
            if named and language in CODE_LANGUAGES:
                return ToolContent(name=named, language=language, code=body)
            return ToolContent(name=name, language=ACTIONS, code=body)
        return SkillContent(description=name, steps=tuple(step.strip() for step in body.split(";") if step.strip()))
    return trajectory(task_text, turns, episode_return, success) if kind == "traj" and not rest else None


def trajectory(
    task_text: str, turns: Sequence[TurnRecord], episode_return: float, success: bool
) -> TrajectoryContent | None:
    """The episode as an entry; None when nothing was done in it."""
    if not turns:
        return None
    steps = tuple(
        TrajectoryStep(observation=t.observation, action=t.action, result=t.result, reward=t.reward)
        for t in _kept(turns)
    )
    outcome: Literal["success", "partial", "failure"] = "partial" if episode_return > 0 else "failure"
    return TrajectoryContent(
        task=task_text, steps=steps, outcome="success" if success else outcome, episode_return=episode_return
    )


def _kept(turns: Sequence[TurnRecord]) -> Sequence[TurnRecord]:
    """What a trajectory keeps of its turns: where several were rewarded, rewards tell which ones led on."""
    rewarded = [turn for turn in turns if turn.reward > 0]
    return rewarded if len(rewarded) > 1 else turns
