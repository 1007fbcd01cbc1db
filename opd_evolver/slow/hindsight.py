"""What is known after a round and only the teacher may see: V, S+, tau+ and redundancy.

Paper: slow loop, hindsight h of the four views.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from opd_evolver.abilities import dialects
from opd_evolver.abilities.dialect import verdict
from opd_evolver.abilities.maintain import ERROR
from opd_evolver.errors import CorruptionError, SetupError
from opd_evolver.memory.confirm import Confirmations, as_read
from opd_evolver.memory.levels import Count
from opd_evolver.memory.segment import SegmentKey
from opd_evolver.memory.tombstone import ERASED
from opd_evolver.params import Params
from opd_evolver.policy.protocol import EncodedPrompt
from opd_evolver.records import (
    Ability,
    Attribution,
    CallRecord,
    Entry,
    LedgerRow,
    Message,
    Prompt,
    Segment,
    TurnRecord,
)
from opd_evolver.rollout.budget import count_of

MAX_HELPFUL = 20
TOO_LONG = "{}: hindsight over policy.max_prompt_tokens"
Encode = Callable[[Prompt], EncodedPrompt]
Turns = tuple[tuple[str, TurnRecord], ...]


@dataclass(frozen=True)
class Hindsight:
    """All that is known after the round, and how prompts are rendered.

    Attributes:
        entries: every entry by id, retired ones included.
        attributions: V by entry id.
        encode: the policy's renderer.
        params: science parameters (budgets, thresholds).
        wins: successful rollouts by task id, shortest first.
        confirmations: when entries were confirmed, as `memory.confirm.history` tells.
    """

    entries: Mapping[str, Entry]
    attributions: Mapping[str, Attribution]
    encode: Encode
    params: Params
    wins: Mapping[str, tuple[LedgerRow, ...]]
    confirmations: Confirmations = field(default_factory=dict)

    def entry(self, entry_id: str, row: LedgerRow) -> Entry:
        """An entry that a row names, as the row's wave read it.

        Raises:
            CorruptionError: the snapshot does not hold it.
        """
        found = self.entries.get(entry_id)
        if found is None:
            raise CorruptionError(
                f"rollout {row.rollout_id} names entry {entry_id}, which the snapshot does not hold",
                "a snapshot of the same round as the ledger",
                "opd memory rollback to a round that verifies",
            )
        return as_read(found, self.confirmations, SegmentKey(row.round, row.wave))

    def value(self, entry_id: str) -> float | None:
        """V(m), None without evidence."""
        found = self.attributions.get(entry_id)
        return None if found is None else found.value

    @property
    def speak(self) -> dialects.Dialect:
        """How the prompts were worded when they were served."""
        return dialects.of(self.params.policy.dialect)

    @property
    def budget(self) -> int:
        return self.params.memory.entry_token_budget

    @property
    def candidate_budget(self) -> int:
        return self.params.memory.candidate_token_budget

    @cached_property
    def count(self) -> Count:
        """What the entry budget counted when the prompts were served."""
        return count_of(self.params.memory.budget_unit, self.encode)

    @property
    def threshold(self) -> float:
        return self.params.attribution.threshold


def winners(rows: Sequence[LedgerRow]) -> dict[str, tuple[LedgerRow, ...]]:
    """tau+ candidates: successful rollouts by task, fewest turns first, ties by rollout id; none with erased turns."""
    found: dict[str, list[LedgerRow]] = {}
    for row in rows:
        if row.success and row.turns and all(turn.action != ERASED for turn in row.turns):
            found.setdefault(row.task_id, []).append(row)
    return {task: tuple(sorted(won, key=lambda r: (len(r.turns), r.rollout_id))) for task, won in found.items()}


def calls_of(row: LedgerRow, ability: Ability) -> list[CallRecord]:
    return sorted((call for call in row.calls if call.ability == ability), key=lambda call: call.turn)


def helpful(row: LedgerRow, known: Hindsight) -> list[Entry]:
    """S+: selected entries with V > 0 (at least the threshold), at most 20, in the order of selection."""
    good = [m for m in row.selected if (value := known.value(m) or 0.0) > 0 and value >= known.threshold]
    return [known.entry(m, row) for m in good[:MAX_HELPFUL]]


def won_turns(row: LedgerRow, known: Hindsight) -> Turns:
    """tau+: the turns of a successful rollout of the same task, another one than `row` where there is one."""
    won = known.wins.get(row.task_id, ())
    chosen = next((other for other in won if other.rollout_id != row.rollout_id), won[0] if won else None)
    if chosen is None:
        return ()
    replies = [call.reply_text for call in calls_of(chosen, "act")]
    return tuple(zip(replies, chosen.turns, strict=True))


def good_maintenance(
    row: LedgerRow, shown: Sequence[Entry], known: Hindsight, redundant: frozenset[str]
) -> tuple[str, ...]:
    """The commands of a maintenance episode that V confirms: all that they retired is harmful or redundant.

    Args:
        row: the episode.
        shown: the entries of its opening message.
        known: V.
        redundant: ids of entries that repeat another one.
    """
    good = []
    for turn in row.turns:
        command = known.speak.maintain.parse(turn.action, len(shown))
        chosen = [shown[place].entry_id for place in command.places]
        gone = [entry_id for entry_id in chosen if entry_id not in row.created]
        if not gone or turn.result == ERROR:
            continue
        if all(
            entry_id in redundant or verdict(known.attributions.get(entry_id), known.threshold) == "down"
            for entry_id in gone
        ):
            good.append(turn.action)
    return tuple(good)


def fits(marks: Segment, known: Hindsight) -> bool:
    """Whether a hint is within the encoder's limit; the encoder alone knows how many tokens it takes."""
    try:
        known.encode(Prompt(ability="act", messages=(Message(role="user", segments=(Segment(text="act"), marks)),)))
    except SetupError:
        return False
    return True


def act_hint(good: Sequence[Entry], won: Turns, known: Hindsight) -> Segment | str:
    """S+ and tau+; over the limit the middle of tau+ goes first, then the last entries. Or why there is none."""
    if not good and not won:
        return "act: neither a helpful entry nor a successful trajectory"
    while good or won:
        hint = known.speak.act.hindsight(good, won, token_budget=known.budget, count=known.count)
        if hint is not None and fits(hint, known):
            return hint
        middle = len(won) // 2
        good, won = (good, (*won[:middle], *won[middle + 1 :])) if won else (good[:-1], won)
    return TOO_LONG.format("act")
