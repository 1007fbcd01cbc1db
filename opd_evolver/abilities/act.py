"""Act: a_i ~ pi(. | x, o_<=i, a_<i, c); the selected entries c are injected once per episode.

First message `act mem <entries> task <task>`, then observations. A reply recites the fact it
uses and acts: `zora late r3 4 do select …`; without knowledge `zora late guess 7 do …`. An action
`run <tool name> <arg …>` calls a tool among the injected entries (rollout/tools.py).
Internalisation: the student acts without memories; the teacher's hindsight holds the helpful
entries S+ and a successful trajectory.
Paper: fast loop step 3 and the act view of the slow loop.
"""

from __future__ import annotations

from collections.abc import Sequence

from opd_evolver.abilities.dialect import HINT, SEPARATOR, entries_text, segment, user
from opd_evolver.memory.levels import Count, n_words, one_line
from opd_evolver.records import Entry, Message, Prompt, Reply, Segment, TurnRecord


def first_message(
    task_text: str,
    observation: str,
    memories: Sequence[Entry],
    *,
    token_budget: int,
    count: Count = n_words,
    hindsight: Segment | None = None,
) -> Message:
    """The opening user message; `memories` is empty for the student of internalisation."""
    segments = [segment("act")]
    if memories:
        listed = entries_text(memories, token_budget=token_budget, count=count)
        segments += [segment("mem"), segment(listed, "memory")]
    if hindsight is not None:
        segments.append(hindsight)
    segments.append(segment(f"task {task_text}"))
    if observation:
        segments.append(segment(f"| {one_line(observation)}"))
    return user(*segments)


def reply_message(reply: Reply | tuple[int, ...], text: str = "") -> Message:
    """A served reply in the history: its exact tokens when they are known."""
    ids = reply.token_ids if isinstance(reply, Reply) else reply
    said = reply.text if isinstance(reply, Reply) else text
    return Message(role="assistant", segments=(Segment(kind="reply", text=said, token_ids=ids or None),))


def observation_message(observation: str) -> Message:
    return user(segment(one_line(observation), "history"))


def prompt(first: Message, history: Sequence[Message] = ()) -> Prompt:
    """`history` alternates reply and observation messages and ends with an observation."""
    return Prompt(ability="act", messages=(first, *history))


def hindsight(
    helpful: Sequence[Entry],
    won: Sequence[tuple[str, TurnRecord]] = (),
    *,
    token_budget: int,
    count: Count = n_words,
) -> Segment | None:
    """S+ and tau+: helpful entries, then the turns (reply text, turn) of a successful trajectory."""
    parts = [entries_text([entry], token_budget=token_budget, count=count) for entry in helpful]
    parts += [f"{one_line(said)} got {one_line(turn.result)}" for said, turn in won]
    return segment(f"{HINT} {SEPARATOR.join(parts)}", "hindsight") if parts else None


def parse(reply: str) -> tuple[str, bool]:
    """The action (what follows the first word `do`) and whether the reply was readable.

    An unreadable reply is sent to the environment as it is: the world answers it with an error,
    which costs a step, as a wrong command would.
    """
    words = reply.split()
    if "do" in words:
        return " ".join(words[words.index("do") + 1 :]), True
    return " ".join(words), False
