"""Maintenance: an episode over the repository with lookup, merge, delete and finish.

A generator like any episode. What it decides is applied by the committer as one segment; merged
and deleted entries are retired with lineage, never lost. Nonsense changes nothing but costs a step.
Paper: fast loop step 5, every Q = 30 tasks. Differs: at the first barrier after Q tasks; undoable.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pydantic import SerializerFunctionWrapHandler, model_serializer

from opd_evolver.abilities import dialects
from opd_evolver.abilities.maintain import DONE, ERROR, NOTHING, Command, Notes
from opd_evolver.fast.redundancy import first_shown, in_doubt
from opd_evolver.fast.wave import Wave
from opd_evolver.memory import rivals
from opd_evolver.memory.levels import Count, n_words
from opd_evolver.memory.store import entry_of
from opd_evolver.params import DialectName, Params
from opd_evolver.records import (
    LEVELS,
    MAINTAIN,
    Candidate,
    Entry,
    GenerationRequest,
    LedgerRow,
    Level,
    MemoryOperation,
    Message,
    Proposal,
    Record,
    Reply,
    Sampling,
    TurnRecord,
    uuid5_of,
)
from opd_evolver.rollout.budget import Unit
from opd_evolver.rollout.calls import Calls, waiting_by_itself


class Repository(Protocol):
    """The memory as maintenance may read it."""

    def entries(self) -> list[Entry]: ...

    def retrieve(
        self, query: str, *, domain: str, scope: str, limit: int, alpha: float, scope_filter: bool
    ) -> Sequence[tuple[Entry, float]]: ...


class MaintenanceSettings(Record):
    """Budgets and sampling of a maintenance episode. Entries are merged into one of the `levels` alone."""

    seed: int
    dialect: DialectName = "terse"
    max_steps: int
    episodes: int = 1
    shown: int
    levels: tuple[Level, ...] = LEVELS
    alpha: float
    entry_token_budget: int
    budget_unit: Unit = "words"
    sampling: Sampling

    @model_serializer(mode="wrap")
    def _dump(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Keys that were made before levels were kept here stay as they were."""
        tree: dict[str, Any] = dump(self)
        if self.levels == LEVELS:
            del tree["levels"]
        return tree

    @classmethod
    def of(cls, params: Params) -> MaintenanceSettings:
        """From the resolved science parameters."""
        fast, memory = params.fast, params.memory
        return cls(
            seed=params.seed,
            dialect=params.policy.dialect,
            max_steps=fast.maintain_max_steps,
            episodes=fast.maintain_episodes,
            shown=memory.candidates,
            levels=memory.levels,
            alpha=memory.alpha,
            entry_token_budget=memory.entry_token_budget,
            budget_unit=memory.budget_unit,
            sampling=Sampling(temperature=fast.temperature, top_p=fast.top_p, max_new_tokens=fast.write_max_new_tokens),
        )


@dataclass(frozen=True)
class Maintenance:
    """What a maintenance episode decided, not yet applied.

    Attributes:
        row: its ledger row; None when there was nothing to maintain.
        operations: merges and deletions, in order.
        created: entries that merges made.
        seconds: telemetry.
    """

    row: LedgerRow | None = None
    operations: tuple[MemoryOperation, ...] = ()
    created: tuple[Entry, ...] = ()
    seconds: float = 0.0


@dataclass
class _Desk:
    """The entries shown so far, by handle, and what has been decided about them."""

    repository: Repository
    settings: MaintenanceSettings
    name: str
    round: int
    shown: list[Entry]
    domains: tuple[str, ...]
    count: Count = n_words
    notes: Notes = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    operations: list[MemoryOperation] = field(default_factory=list)
    created: list[Entry] = field(default_factory=list)

    def apply(self, command: Command) -> str:
        """The answer to one command; what cannot be done is an error and changes nothing."""
        if command.kind == "lookup":
            return self._lookup(command.query)
        chosen = [self.shown[place] for place in command.places]
        if not chosen or any(entry.entry_id in self.gone for entry in chosen):
            return ERROR
        if command.kind == "delete":
            self._retire("delete", [entry.entry_id for entry in chosen], ())
            return DONE
        return self._merge(command, chosen)

    def _lookup(self, query: str) -> str:
        known = {entry.entry_id for entry in self.shown} | self.gone
        limit, alpha = self.settings.shown + len(known), self.settings.alpha
        with waiting_by_itself():
            found = [
                hit
                for domain in self.domains
                for hit in self.repository.retrieve(
                    query, domain=domain, scope="", limit=limit, alpha=alpha, scope_filter=False
                )
            ]
        found.sort(key=lambda hit: (-hit[1], hit[0].entry_id))
        return self._show([entry for entry, _ in found if entry.entry_id not in known][: self.settings.shown])

    def _show(self, entries: list[Entry]) -> str:
        if not entries:
            return NOTHING
        speak, budget = dialects.of(self.settings.dialect).maintain, self.settings.entry_token_budget
        listed = speak.listing(entries, len(self.shown) + 1, token_budget=budget, count=self.count, notes=self.notes)
        self.shown += entries
        return f"found {listed}"

    def _merge(self, command: Command, chosen: list[Entry]) -> str:
        if command.content is None or command.content.level not in self.settings.levels:
            return ERROR
        if len({(entry.domain, entry.scope) for entry in chosen}) > 1:
            return ERROR
        merged = entry_of(
            Proposal(
                domain=chosen[0].domain,
                scope=chosen[0].scope,
                content=command.content,
                source_episodes=tuple(sorted({one for entry in chosen for one in entry.source_episodes})),
            ),
            self.round,
        )
        ids = [entry.entry_id for entry in chosen if entry.entry_id != merged.entry_id]
        if merged.entry_id in self.gone:
            return ERROR
        merged = merged.model_copy(update={"parents": tuple(sorted(ids))})
        self._retire("merge", ids, (merged.entry_id,))
        self.created.append(merged)
        if merged.entry_id in {entry.entry_id for entry in self.shown}:
            return DONE
        return self._show([merged])

    def _retire(self, kind: str, ids: list[str], created: tuple[str, ...]) -> None:
        retired = tuple(sorted(ids))
        self.gone.update(retired)
        self.operations.append(
            MemoryOperation(
                operation_id=uuid5_of("operation", self.name, str(len(self.operations)), kind, *retired, *created),
                kind="merge" if kind == "merge" else "delete",
                round=self.round,
                retired=retired,
                created=created,
            )
        )


def maintenance(
    wave: Wave,
    repository: Repository,
    settings: MaintenanceSettings,
    count: Count = n_words,
    *,
    number: int = 0,
    seen: Collection[str] = (),
) -> Generator[GenerationRequest, Reply, Maintenance]:
    """One maintenance episode at the barrier of `wave`; yields requests and returns what was decided.

    Args:
        wave: names the episode.
        repository: the memory after the wave's commit.
        settings: budgets and sampling.
        count: what the entry budget counts.
        number: of the episode at this barrier.
        seen: ids of entries that an earlier episode of this barrier began with.
    """
    began = time.perf_counter()
    with waiting_by_itself():
        live = repository.entries()
    told = rivals.notes(live)
    # A policy that is shown nothing doubtful retires something all the same: further episodes need a reason.
    first_entries = first_shown(in_doubt(live, told) if number else live, settings.shown, seen, told)
    if not first_entries or settings.max_steps == 0:
        return Maintenance()
    name = f"{wave.name}/maintain" + (f"/{number}" if number else "")
    calls = Calls(name, wave.round, settings.seed)
    domains = tuple(sorted({entry.domain for entry in live}))
    speak = dialects.of(settings.dialect)
    desk = _Desk(repository, settings, name, wave.round, list(first_entries), domains, count, told)
    first = speak.maintain.first_message(
        len(live), first_entries, token_budget=settings.entry_token_budget, count=count, notes=told
    )
    history: list[Message] = []
    turns: list[TurnRecord] = []
    observation = ""
    for turn in range(settings.max_steps):
        reply = yield from calls.ask("maintain", turn, speak.maintain.prompt(first, history), settings.sampling)
        command = speak.maintain.parse(reply.text, len(desk.shown))
        unreadable = command.kind == "unreadable"
        result = DONE if command.kind == "finish" else (ERROR if unreadable else desk.apply(command))
        turns.append(
            TurnRecord(observation=observation, action=reply.text, result=result, reward=0.0, parsed=not unreadable)
        )
        if command.kind == "finish":
            break
        history += [speak.act.reply_message(reply), speak.maintain.result_message(result)]
        observation = result
    row = _row(wave, name, first_entries, turns, calls, desk)
    return Maintenance(row, tuple(desk.operations), tuple(desk.created), time.perf_counter() - began)


def _row(
    wave: Wave, name: str, first_entries: Sequence[Entry], turns: list[TurnRecord], calls: Calls, desk: _Desk
) -> LedgerRow:
    """Its ledger row: the shown entries stand as candidates; none is selected, so none gets credit."""
    return LedgerRow(
        rollout_id=name,
        round=wave.round,
        wave=wave.index,
        task_id=MAINTAIN,
        domain=MAINTAIN,
        scope=MAINTAIN,
        group=MAINTAIN,
        task_text="",
        candidates=tuple(
            Candidate(handle=number, entry_id=entry.entry_id, score=0.0)
            for number, entry in enumerate(first_entries, start=1)
        ),
        selected=(),
        injected=(),
        created=tuple(dict.fromkeys(entry.entry_id for entry in desk.created)),
        episode_return=0.0,
        success=False,
        turns=tuple(turns),
        calls=tuple(calls.records),
        n_prompt_tokens=calls.n_prompt_tokens,
        n_reply_tokens=calls.n_reply_tokens,
        policy_version=calls.policy_version or "",
        renderer=dialects.of(desk.settings.dialect).renderer,
    )
