"""Example sets on disk, control arms, and the order in which training draws them.

`examples.jsonl` and `outcomes.jsonl` are canonical lines: their digest is one of the named digests.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from pydantic import ValidationError

from opd_evolver.durable import write_bytes
from opd_evolver.errors import CorruptionError, SchemaError
from opd_evolver.records import SCHEMA_VERSION, Example, Record, canonical_json, digest_of
from opd_evolver.slow.views import Outcome

EXAMPLES, OUTCOMES = "examples.jsonl", "outcomes.jsonl"
Arm = Literal["full", "empty", "shuffled"]
T = TypeVar("T", bound=Record)


def write_lines(path: Path, records: Iterable[Record]) -> str:
    """One canonical line per record, durably; returns the digest of the lines."""
    lines = [canonical_json(record) for record in records]
    write_bytes(path, "".join(f"{line}\n" for line in lines).encode())
    return digest_of(lines)


def read_lines(path: Path, kind: type[T], expected_digest: str | None = None) -> list[T]:
    """Records of a file that `write_lines` wrote.

    Raises:
        CorruptionError: missing, cut short, or other bytes than `expected_digest`.
        SchemaError: written by a newer version.
    """
    try:
        raw = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CorruptionError(f"cannot read {path}: {error}", "lines of JSON", "opd resume makes it again") from None
    lines = raw.splitlines()
    if (raw and not raw.endswith("\n")) or (expected_digest is not None and digest_of(lines) != expected_digest):
        raise CorruptionError(f"{path} is not what was written", "its digest", f"rm {path}, then: opd resume")
    try:
        records = [kind.model_validate_json(line) for line in lines]
    except ValidationError as error:
        raise CorruptionError(
            f"{path} holds no {kind.__name__}: {error.errors()[0]['msg']}",
            "its own lines",
            f"rm {path}, then: opd resume",
        ) from None
    newest = max((getattr(record, "schema_version", 0) for record in records), default=0)
    if newest > SCHEMA_VERSION:
        raise SchemaError(f"{path} has schema {newest}", f"at most {SCHEMA_VERSION}", "upgrade opd-evolver")
    return records


def write_set(folder: Path, examples: Sequence[Example], outcomes: Sequence[Outcome]) -> str:
    """Both files of a round's example sets; returns the digest of the examples."""
    write_lines(folder / OUTCOMES, outcomes)
    return write_lines(folder / EXAMPLES, examples)


def generator(*counter: str | int) -> np.random.Generator:
    """Counter-based: a generator of its own for each tuple."""
    key = int.from_bytes(bytes.fromhex(digest_of([str(part) for part in counter]))[:16], "big")
    return np.random.Generator(np.random.Philox(key=key))


def seed_of(*counter: str | int) -> int:
    """A 63-bit seed for each tuple."""
    return int(digest_of([str(part) for part in counter])[:16], 16) >> 1


def arm(examples: Sequence[Example], which: Arm, seed: int) -> list[Example]:
    """The examples under a control arm: `empty` gives the teacher no hindsight, `shuffled` another example's.

    Shuffled hindsight comes from an example of the same ability and another rollout, where there is one.
    """
    if which == "full":
        return list(examples)
    if which == "empty":
        return [e.model_copy(update={"teacher_ids": e.student_ids, "hindsight_spans": ()}) for e in examples]
    return [_with_hindsight_of(one, donor) for one, donor in zip(examples, _donors(examples, seed), strict=True)]


def _donors(examples: Sequence[Example], seed: int) -> Iterator[Example]:
    alike: dict[str, list[Example]] = {}
    own: dict[tuple[str, str], list[int]] = {}
    for example in examples:
        pile = alike.setdefault(example.ability, [])
        own.setdefault((example.ability, example.rollout_id), []).append(len(pile))
        pile.append(example)
    for example in examples:
        pile, mine = alike[example.ability], own[example.ability, example.rollout_id]
        if len(pile) == len(mine):
            yield example
            continue
        place = int(generator("shuffled", seed, example.example_id).integers(len(pile) - len(mine)))
        # Among the others: each place of its own rollout up to there is stepped over.
        for one in mine:
            place += one <= place
        yield pile[place]


def _with_hindsight_of(example: Example, donor: Example) -> Example:
    start = example.hindsight_spans[0][0]
    hint = [token for a, b in donor.hindsight_spans for token in donor.teacher_ids[a:b]]
    ids = (*example.student_ids[:start], *hint, *example.student_ids[start:])
    return example.model_copy(update={"teacher_ids": ids, "hindsight_spans": ((start, start + len(hint)),)})


class Deck:
    """Draws of one pile: passes over all its examples, each pass in a fixed random order of its own.

    Draw number n is a function of (seed, round, pile, n) alone, so a resumed training draws as an
    uninterrupted one.
    """

    def __init__(self, size: int, seed: int, round: int, pile: str) -> None:
        self.size = size
        self._counter = (seed, round, pile)
        self._orders: dict[int, np.ndarray] = {}

    def draw(self, step: int, n: int) -> list[int]:
        """Places of the `n` examples of a step; fewer when there are fewer in all."""
        n = min(n, self.size)
        return [self._at(step * n + offset) for offset in range(n)]

    def _at(self, number: int) -> int:
        epoch, place = divmod(number, self.size)
        if epoch not in self._orders:
            self._orders = {epoch: generator("deck", *self._counter, epoch).permutation(self.size)}
        return int(self._orders[epoch][place])
