"""The leakage audit: no example goes to training unless its student is blind and its teacher is not.

Checked against the ledger, not against the code that made the examples: a student's prompt must be
what was served (select, write, maintain), or what was served less its memories (act).
Paper: "the student never sees V, gold or the future".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from opd_evolver.errors import SetupError
from opd_evolver.records import CallRecord, Example, LedgerRow, Record
from opd_evolver.slow.views import MEMORY_SUFFIX

Ids = tuple[int, ...]
N_SHOWN = 3


class LeakageReport(Record):
    """What the audit saw.

    Attributes:
        n_examples: examples by ability.
        n_hindsight_tokens: hindsight tokens by ability.
        n_cut: act examples whose history was cut to fit; compared by their student/teacher form only.
    """

    n_examples: dict[str, int]
    n_hindsight_tokens: dict[str, int]
    n_cut: int


def without(teacher: Sequence[int], spans: Sequence[tuple[int, int]]) -> Ids:
    """The teacher's prompt with its hindsight taken out."""
    kept: list[int] = []
    at = 0
    for start, end in spans:
        kept += teacher[at:start]
        at = end
    return (*kept, *teacher[at:])


def form_fault(example: Example, *, needs_hindsight: bool = True) -> str | None:
    """What is wrong between student and teacher of one example, or None."""
    at = 0
    for start, end in example.hindsight_spans:
        if not at <= start < end <= len(example.teacher_ids):
            return f"hindsight span [{start}, {end}) does not lie in the teacher's prompt"
        at = end
    if needs_hindsight and not example.hindsight_spans:
        return "no hindsight in the teacher's prompt"
    if without(example.teacher_ids, example.hindsight_spans) != example.student_ids:
        return "student and teacher differ outside the hindsight"
    return None


def removed_run(served: Ids, student: Ids) -> bool:
    """Whether `student` is `served` less at most one run of tokens (the memories)."""
    if len(student) > len(served):
        return False
    head = 0
    while head < len(student) and served[head] == student[head]:
        head += 1
    tail = 0
    while tail < len(student) - head and served[-1 - tail] == student[-1 - tail]:
        tail += 1
    return head + tail >= len(student)


def contains(ids: Ids, part: Ids) -> bool:
    """Whether `part` stands in `ids`."""
    return any(ids[at : at + len(part)] == part for at in range(len(ids) - len(part) + 1)) if part else False


def _served_fault(example: Example, call: CallRecord, row: LedgerRow) -> str | None:
    served = call.prompt_token_ids
    if example.ability == "act" and row.injected and not example.with_memory:
        blind = removed_run(served, example.student_ids) and example.student_ids != served
        return None if blind else "the student's prompt is not the served one less its memories"
    return None if example.student_ids == served else "the student's prompt is not the served one"


def audit(
    examples: Sequence[Example],
    rows: Sequence[LedgerRow],
    *,
    cut: Collection[str] = (),
    forbidden: Sequence[Ids] = (),
) -> LeakageReport:
    """Check every example.

    Args:
        examples: as made by `views.build`.
        rows: the ledger they were made from.
        cut: ids of act examples whose history was cut to fit (`Views.cut`): without its memories a prompt
            is cut elsewhere, so these are compared in form only.
        forbidden: token sequences that may stand in no student's prompt (gold canaries).

    Raises:
        SetupError: a violation; names the first ones. The round stops before anything is trained.
    """
    calls = {f"{row.rollout_id}/{call.ability}/{call.turn}": (row, call) for row in rows for call in row.calls}
    faults: list[str] = []
    n_cut = 0
    n_examples: Counter[str] = Counter()
    n_tokens: Counter[str] = Counter()
    for example in examples:
        n_examples[example.ability] += 1
        n_tokens[example.ability] += sum(end - start for start, end in example.hindsight_spans)
        fault = form_fault(example)
        found = calls.get(example.example_id.removesuffix(MEMORY_SUFFIX) if example.with_memory else example.example_id)
        if fault is None and found is None:
            fault = "no such call in the ledger"
        if fault is None and found is not None:
            row, call = found
            was_cut = example.ability == "act" and example.example_id in cut
            n_cut += was_cut
            fault = None if was_cut else _served_fault(example, call, row)
        if fault is None and any(contains(example.student_ids, part) for part in forbidden):
            fault = "the student's prompt holds a forbidden text"
        if fault is not None:
            faults.append(f"{example.example_id}: {fault}")
    if faults:
        shown = "; ".join(faults[:N_SHOWN])
        raise SetupError(
            f"{len(faults)} of {len(examples)} examples leak or lack hindsight: {shown}",
            "students that see what was served, teachers that see hindsight besides",
            "report this as a bug; nothing was trained",
        )
    return LeakageReport(n_examples=dict(n_examples), n_hindsight_tokens=dict(n_tokens), n_cut=n_cut)
