"""The four views: from the ledger to examples of what the student sees and what only the teacher sees.

Student and teacher are rendered by the same code of `abilities/`, and the prompts of select and
write must be the served ones, token for token. Hindsight never enters a student's prompt.
Paper: slow loop, four views, one policy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

from opd_evolver.errors import SetupError
from opd_evolver.memory.attribution import sure
from opd_evolver.memory.confirm import Confirmations
from opd_evolver.memory.rivals import duplicates
from opd_evolver.params import Params
from opd_evolver.policy.protocol import EncodedPrompt
from opd_evolver.records import (
    SCHEMA_VERSION,
    Attribution,
    CallRecord,
    Entry,
    Example,
    LedgerRow,
    Message,
    Record,
    Segment,
)
from opd_evolver.slow.hindsight import (
    TOO_LONG,
    Encode,
    Hindsight,
    act_hint,
    calls_of,
    fits,
    good_maintenance,
    helpful,
    winners,
    won_turns,
)

MEMORY_SUFFIX = "/memory"


class Outcome(Record):
    """What was served in an example's state, and how its rollout ended: for the margin, never for training.

    Attributes:
        reply_token_ids: the served reply.
        episode_return: r of its rollout, in [0, 1].
    """

    schema_version: int = SCHEMA_VERSION
    example_id: str
    reply_token_ids: tuple[int, ...]
    episode_return: float


@dataclass
class Views:
    """Examples with their outcomes, in the order of rollout ids, and why states gave none.

    Attributes:
        cut: ids of act examples whose history was cut to fit, with or without memories.
    """

    examples: list[Example] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    cut: set[str] = field(default_factory=set)
    skipped: Counter[str] = field(default_factory=Counter)


def build(
    rows: Sequence[LedgerRow],
    entries: Sequence[Entry],
    attributions: Mapping[str, Attribution],
    encode: Encode,
    params: Params,
    confirmations: Confirmations | None = None,
    earlier: Sequence[LedgerRow] = (),
) -> Views:
    """The example sets of a round.

    Args:
        rows: the rollouts to learn from.
        entries: the snapshot, retired entries included.
        attributions: V from `memory.attribution.attribute`; with `attribution.sure` the teacher is told the sure ones.
        encode: renders prompts exactly as they were served.
        params: resolved science parameters.
        confirmations: from `memory.confirm.history`; prompts tell of an entry as it stood at their wave.
        earlier: rollouts of rounds before; of these writing alone is learnt, by what came of it since.

    Raises:
        CorruptionError: ledger and snapshot do not belong together.
        SetupError: a re-rendered prompt differs from the served one (other renderer, budget or tokenizer).

    Paper: slow loop, four views. Differs: tau+ comes from the same task only; states with neither S+
        nor tau+, and selections and writings without evidence, give no example.
    """
    told = sure(attributions) if params.attribution.sure else attributions
    known = Hindsight({one.entry_id: one for one in entries}, told, encode, params, winners(rows), confirmations or {})
    views = Views()
    for row in sorted(earlier, key=lambda row: row.rollout_id):
        if row.renderer != known.speak.renderer or not all(call.prompt_token_ids for call in row.calls):
            views.skipped["earlier rollout: text only, or of another renderer"] += 1
            continue
        try:
            _add(views, list(_write(row, known)))
        except SetupError:  # of a lineage with other budgets, before a fork
            views.skipped["earlier rollout: renders to other tokens now"] += 1
    for row in sorted(rows, key=lambda row: row.rollout_id):
        if any(not call.prompt_token_ids for call in row.calls):
            views.skipped["text-only rollout"] += 1
            continue
        _add(views, _select(row, known), _act(row, known, views.cut), _write(row, known), _maintain(row, known))
    return views


Made = Iterable[tuple[Example, Outcome] | str]


def _add(views: Views, *makers: Made) -> None:
    for item in chain(*makers):
        if isinstance(item, str):
            views.skipped[item] += 1
        else:
            example, outcome = item
            views.examples.append(example)
            # Maintenance has no return of its own.
            views.outcomes += [outcome] if example.ability != "maintain" else []


def _example(
    row: LedgerRow,
    call: CallRecord,
    student: tuple[int, ...],
    teacher: EncodedPrompt,
    max_new_tokens: int,
    *,
    with_memory: bool = False,
) -> tuple[Example, Outcome]:
    example_id = f"{row.rollout_id}/{call.ability}/{call.turn}{MEMORY_SUFFIX if with_memory else ''}"
    example = Example(
        example_id=example_id,
        ability=call.ability,
        rollout_id=row.rollout_id,
        group=row.group,
        student_ids=student,
        teacher_ids=teacher.token_ids,
        hindsight_spans=teacher.hindsight_spans,
        max_new_tokens=max_new_tokens,
        with_memory=with_memory,
    )
    outcome = Outcome(example_id=example_id, reply_token_ids=call.reply_token_ids, episode_return=row.episode_return)
    return example, outcome


def _as_served(row: LedgerRow, call: CallRecord, rendered: tuple[int, ...]) -> None:
    if rendered != call.prompt_token_ids:
        pairs = enumerate(zip(rendered, call.prompt_token_ids, strict=False))
        at = next((place for place, (ours, theirs) in pairs if ours != theirs), "the end")
        raise SetupError(
            f"the {call.ability} prompt of rollout {row.rollout_id} renders to other tokens than were served"
            f" (first difference at {at}; {len(rendered)} against {len(call.prompt_token_ids)} tokens)",
            f"the renderer, budgets and tokenizer of the ledger ({row.renderer}, policy {row.policy_version})",
            "run the fast loop again with these parameters: opd run --name NEW",
        )


def _select(row: LedgerRow, known: Hindsight) -> Made:
    """z = x, C; h = V of every candidate with evidence, negatives kept."""
    for call in calls_of(row, "select"):
        shown = [known.entry(candidate.entry_id, row) for candidate in row.candidates]
        student = known.encode(
            known.speak.select.prompt(row.task_text, shown, token_budget=known.candidate_budget, count=known.count)
        ).token_ids
        _as_served(row, call, student)
        marks = known.speak.select.hindsight(shown, known.attributions, known.threshold)
        if marks is None:
            yield "select: no candidate has evidence"
            continue
        if not fits(marks, known):
            yield TOO_LONG.format("select")
            continue
        teacher = known.encode(
            known.speak.select.prompt(
                row.task_text, shown, token_budget=known.candidate_budget, count=known.count, hindsight=marks
            )
        )
        yield _example(row, call, student, teacher, known.params.fast.select_max_new_tokens)


def _act(row: LedgerRow, known: Hindsight, cut: set[str]) -> Made:
    """Internalisation: z = x and the visited history without memories; h = S+ and tau+.

    With `slow.act_with_memory` the served prompts too, memories and all: what was learnt must not make deaf to them.
    """
    calls = calls_of(row, "act")
    if not calls:
        return
    hint = act_hint(helpful(row, known), won_turns(row, known), known)
    if isinstance(hint, str):
        for _ in calls:
            yield hint
        return
    memories = [known.entry(m, row) for m in row.injected]
    opening = row.turns[0].observation

    def first(shown: Sequence[Entry], hindsight: Segment | None) -> Message:
        return known.speak.act.first_message(
            row.task_text, opening, shown, token_budget=known.budget, count=known.count, hindsight=hindsight
        )

    history: list[Message] = []
    for call, turn in zip(calls, row.turns, strict=True):
        served = known.encode(known.speak.act.prompt(first(memories, None), history))
        _as_served(row, call, served.token_ids)
        student = known.encode(known.speak.act.prompt(first((), None), history))
        teacher = known.encode(known.speak.act.prompt(first((), hint), history))
        limit = known.params.fast.act_max_new_tokens
        example, outcome = _example(row, call, student.token_ids, teacher, limit)
        if served.n_dropped or student.n_dropped:
            cut.add(example.example_id)
        yield example, outcome
        if memories and known.params.slow.act_with_memory and not served.n_dropped:
            told = known.encode(known.speak.act.prompt(first(memories, hint), history))
            if told.n_dropped:
                yield TOO_LONG.format("act with memory")
            else:
                yield _example(row, call, served.token_ids, told, limit, with_memory=True)
        history += [
            known.speak.act.reply_message(call.reply_token_ids, call.reply_text),
            known.speak.act.observation_message(turn.result),
        ]


def _write(row: LedgerRow, known: Hindsight) -> Made:
    """z = x, tau, R, S; h = the future value of what this rollout wrote."""
    replies = [call.reply_text for call in calls_of(row, "act")]
    memories = [known.entry(m, row) for m in row.injected]
    written = [known.entry(m, row) for m in row.created]
    for call in calls_of(row, "write"):

        def prompt(hindsight: Segment | None) -> EncodedPrompt:
            return known.encode(
                known.speak.write.prompt(
                    row.task_text,
                    row.turns,
                    replies,
                    memories,
                    episode_return=row.episode_return,
                    success=row.success,
                    token_budget=known.budget,
                    count=known.count,
                    hindsight=hindsight,
                )
            )

        student = prompt(None).token_ids
        _as_served(row, call, student)
        marks = known.speak.write.hindsight(written, known.attributions, known.threshold)
        if marks is None:
            yield "write: nothing written, or no evidence for it yet"
            continue
        if not fits(marks, known):
            yield TOO_LONG.format("write")
            continue
        yield _example(row, call, student, prompt(marks), known.params.fast.write_max_new_tokens)


def _maintain(row: LedgerRow, known: Hindsight) -> Made:
    """z = the served listing and the commands so far; h = V and redundancy of each entry shown first, good commands."""
    calls = calls_of(row, "maintain")
    if not calls:
        return
    shown = [known.entry(candidate.entry_id, row) for candidate in row.candidates]
    twice = duplicates(shown)
    past = good_maintenance(row, shown, known, twice)
    marks = known.speak.maintain.hindsight(shown, known.attributions, twice, known.threshold, past)
    reason = "maintain: no shown entry has evidence" if marks is None else ""
    if marks is not None and not fits(marks, known):
        reason = TOO_LONG.format("maintain")
    if marks is None or reason:
        for _ in calls:
            yield reason
        return
    # Usage counts have moved on since, so the hint is put into the served prompts, not into new ones.
    bare = known.encode(known.speak.maintain.prompt(Message(role="user", segments=(Segment(text="maintain"), marks))))
    start, end = bare.hindsight_spans[0]
    cut = len(calls[0].prompt_token_ids) - (len(bare.token_ids) - end)
    opening, hint = calls[0].prompt_token_ids[:cut], bare.token_ids[start:end]
    for call in calls:
        if call.prompt_token_ids[:cut] != opening:
            yield "maintain: the listing was cut from the prompt"
            continue
        teacher = EncodedPrompt((*opening, *hint, *call.prompt_token_ids[cut:]), ((cut, cut + end - start),))
        yield _example(row, call, call.prompt_token_ids, teacher, known.params.fast.write_max_new_tokens)
