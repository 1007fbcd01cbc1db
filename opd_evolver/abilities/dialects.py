"""How the abilities are worded. Whoever renders a prompt or parses a reply asks here and does not know which it got.

`terse` is what the seed policy speaks: the modules of this package. `instruct` is what chat models get: instruct/.
Each dialect has one file per ability that satisfies the protocols below; student, teacher and service all go
through the same one, so prompts stay token-identical outside the hindsight whatever the dialect.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, Protocol

from opd_evolver.abilities import act, maintain, select, write
from opd_evolver.abilities.dialect import RENDERER
from opd_evolver.abilities.instruct import act as instruct_act
from opd_evolver.abilities.instruct import maintain as instruct_maintain
from opd_evolver.abilities.instruct import select as instruct_select
from opd_evolver.abilities.instruct import wording
from opd_evolver.abilities.instruct import write as instruct_write
from opd_evolver.abilities.maintain import Command, Notes
from opd_evolver.abilities.write import Written
from opd_evolver.memory.levels import Count
from opd_evolver.records import Attribution, Content, Entry, Level, Message, Prompt, Reply, Segment, TurnRecord
from opd_evolver.sections import DialectName


class Select(Protocol):
    """Which of the retrieved entries to bring; see abilities/select.py."""

    def prompt(
        self,
        task_text: str,
        candidates: Sequence[Entry],
        *,
        token_budget: int,
        count: Count = ...,
        hindsight: Segment | None = None,
    ) -> Prompt: ...

    def hindsight(
        self, candidates: Sequence[Entry], attributions: Mapping[str, Attribution], threshold: float
    ) -> Segment | None: ...

    def parse(self, reply: str, n_candidates: int, max_selected: int) -> list[int] | None: ...


class Act(Protocol):
    """The acting turns; see abilities/act.py."""

    def first_message(
        self,
        task_text: str,
        observation: str,
        memories: Sequence[Entry],
        *,
        token_budget: int,
        count: Count = ...,
        hindsight: Segment | None = None,
    ) -> Message: ...

    def reply_message(self, reply: Reply | tuple[int, ...], text: str = "") -> Message: ...

    def observation_message(self, observation: str) -> Message: ...

    def prompt(self, first: Message, history: Sequence[Message] = ()) -> Prompt: ...

    def hindsight(
        self,
        helpful: Sequence[Entry],
        won: Sequence[tuple[str, TurnRecord]] = (),
        *,
        token_budget: int,
        count: Count = ...,
    ) -> Segment | None: ...

    def parse(self, reply: str) -> tuple[str, bool]: ...


class Write(Protocol):
    """The reflection; see abilities/write.py."""

    def prompt(
        self,
        task_text: str,
        turns: Sequence[TurnRecord],
        replies: Sequence[str],
        memories: Sequence[Entry],
        *,
        episode_return: float,
        success: bool,
        token_budget: int,
        count: Count = ...,
        hindsight: Segment | None = None,
    ) -> Prompt: ...

    def written_form(self, content: Content) -> str: ...

    def hindsight(
        self, written: Sequence[Entry], attributions: Mapping[str, Attribution], threshold: float
    ) -> Segment | None: ...

    def parse(
        self,
        reply: str,
        *,
        limit: int,
        levels: Collection[Level] = ...,
        task_text: str = "",
        turns: Sequence[TurnRecord] = (),
        episode_return: float = 0.0,
        success: bool = False,
    ) -> Written: ...


class Maintain(Protocol):
    """The episode over the repository; see abilities/maintain.py."""

    def listing(
        self, entries: Sequence[Entry], first_handle: int, *, token_budget: int, count: Count = ..., notes: Notes
    ) -> str: ...

    def first_message(
        self,
        n_entries: int,
        shown: Sequence[Entry],
        *,
        token_budget: int,
        count: Count = ...,
        notes: Notes,
        hindsight: Segment | None = None,
    ) -> Message: ...

    def result_message(self, text: str) -> Message: ...

    def prompt(self, first: Message, history: Sequence[Message] = ()) -> Prompt: ...

    def hindsight(
        self,
        shown: Sequence[Entry],
        attributions: Mapping[str, Attribution],
        redundant: frozenset[str],
        threshold: float,
        past: Sequence[str] = (),
    ) -> Segment | None: ...

    def parse(self, reply: str, n_shown: int) -> Command: ...


class Dialect(NamedTuple):
    """The four abilities in one wording. `renderer` names it and its version in ledger rows."""

    renderer: str
    select: Select
    act: Act
    write: Write
    maintain: Maintain


TERSE = Dialect(RENDERER, select, act, write, maintain)
INSTRUCT = Dialect(wording.RENDERER, instruct_select, instruct_act, instruct_write, instruct_maintain)


def of(name: DialectName) -> Dialect:
    """The dialect that `policy.dialect` names."""
    return {"terse": TERSE, "instruct": INSTRUCT}[name]
