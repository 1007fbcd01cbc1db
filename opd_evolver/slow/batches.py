"""What a training step works on: which examples, the student's replies to them, cut into micro-batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from opd_evolver.params import SlowParams
from opd_evolver.records import ABILITIES, Ability, Example, Sampling
from opd_evolver.slow.anchor import Anchor
from opd_evolver.slow.examples import Deck, seed_of
from opd_evolver.slow.forward import cut
from opd_evolver.slow.views import Outcome

Source = Literal["select", "act", "write", "maintain", "anchor"]
SOURCES: tuple[Source, ...] = (*ABILITIES, "anchor")
# What is drawn apart: act examples that keep their memories have a share of their own.
Pile = Literal["select", "act", "write", "maintain", "act with memory", "anchor"]
WITH_MEMORY: Pile = "act with memory"
PILES: tuple[Pile, ...] = (*ABILITIES, WITH_MEMORY, "anchor")
# Loss means are taken over each of these: anchors of a few select tokens count as much as those of many act tokens.
GROUPS: tuple[str, ...] = (*ABILITIES, WITH_MEMORY, *(f"anchor {ability}" for ability in ABILITIES))


@dataclass(frozen=True)
class Item:
    """One scored reply.

    Attributes:
        source: its ability, or `anchor`.
        example_id: which example.
        student_ids: the prompt the student sees.
        teacher_ids: the prompt the teacher sees (the same for an anchor).
        reply: token ids to score, at least one.
        trust: weight of its tokens.
        has_hindsight: whether the teacher's prompt holds any.
        rehearsed: of an anchor, the ability that it rehearses.
        with_memory: of an act example, whether its prompts hold the memories that were served.
    """

    source: Source
    example_id: str
    student_ids: tuple[int, ...]
    teacher_ids: tuple[int, ...]
    reply: tuple[int, ...]
    trust: float = 1.0
    has_hindsight: bool = False
    rehearsed: Ability = "act"
    with_memory: bool = False

    @property
    def group(self) -> str:
        """Whose mean its loss enters."""
        if self.with_memory:
            return WITH_MEMORY
        return f"anchor {self.rehearsed}" if self.source == "anchor" else self.source


class Sampler(Protocol):
    """Replies of the current student; `LocalPolicy.generate_ids`."""

    def __call__(
        self, prompt_ids: Sequence[Sequence[int]], sampling: Sequence[Sampling], seeds: Sequence[int]
    ) -> list[tuple[int, ...]]: ...


class Mixture:
    """Draws `slow.mixture` examples of each ability a step, and anchors, by counters alone.

    Args:
        examples: the round's example sets.
        anchors: rehearsal prompts; empty for none.
        params: mixture, sampling.
        seed, round: the counters' first parts.
    """

    def __init__(
        self, examples: Sequence[Example], anchors: Sequence[Anchor], params: SlowParams, seed: int, round: int
    ) -> None:
        self._params, self._counter = params, (seed, round)
        self._anchors = anchors
        self._examples: dict[Pile, list[Example]] = {pile: [] for pile in PILES if pile != "anchor"}
        for example in examples:
            self._examples[WITH_MEMORY if example.with_memory else example.ability].append(example)
        sizes = {pile: len(found) for pile, found in self._examples.items()} | {"anchor": len(anchors)}
        self._decks = {pile: Deck(sizes[pile], seed, round, pile) for pile in PILES}
        self._wanted = _wanted(params, sizes[WITH_MEMORY])

    def counts(self) -> dict[Pile, int]:
        """How many of each pile a step holds."""
        return {pile: min(self._wanted[pile], deck.size) for pile, deck in self._decks.items()}

    def examples_at(self, step: int) -> list[Example]:
        """The examples of a step, in a fixed order."""
        drawn: list[Example] = []
        for pile, found in self._examples.items():
            drawn += [found[place] for place in self._decks[pile].draw(step, self._wanted[pile])]
        return drawn

    def anchors_at(self, step: int) -> list[Item]:
        """The anchors of a step: the base policy's own replies, scored by base and student."""
        places = self._decks["anchor"].draw(step, self._wanted["anchor"])
        chosen = [self._anchors[place] for place in places]
        return [
            Item("anchor", one.anchor_id, one.prompt_ids, one.prompt_ids, one.reply_ids, rehearsed=one.ability)
            for one in chosen
        ]

    def sampled(self, step: int, examples: Sequence[Example], sampler: Sampler) -> list[Item]:
        """The current student's replies to its own prompts. Seeds depend on (seed, round, step, place) alone."""
        if not examples:
            return []
        # Neighbours of like length share a batch: less padding. The order is fixed by the examples.
        order = sorted(range(len(examples)), key=lambda place: (len(examples[place].student_ids), place))
        replies: dict[int, tuple[int, ...]] = {}
        for at in range(0, len(order), self._params.sample_batch):
            places = order[at : at + self._params.sample_batch]
            found = sampler(
                [examples[place].student_ids for place in places],
                [self._sampling(examples[place]) for place in places],
                [seed_of("reply", *self._counter, step, examples[place].example_id) for place in places],
            )
            replies |= dict(zip(places, found, strict=True))
        return [_item(one, replies[place]) for place, one in enumerate(examples) if replies[place]]

    def served(self, examples: Sequence[Example], outcomes: Mapping[str, Outcome]) -> list[Item]:
        """The replies that were served in these states, of rollouts that succeeded in full."""
        known = [(one, outcomes[one.example_id]) for one in examples if one.example_id in outcomes]
        return [
            _item(one, outcome.reply_token_ids)
            for one, outcome in known
            if outcome.episode_return >= 1.0 and outcome.reply_token_ids
        ]

    def _sampling(self, example: Example) -> Sampling:
        return Sampling(
            temperature=self._params.temperature, top_p=self._params.top_p, max_new_tokens=example.max_new_tokens
        )


def _wanted(params: SlowParams, n_with_memory: int) -> dict[Pile, int]:
    """Examples of each pile in a step: those with memory are taken from the number of act examples."""
    wanted: dict[Pile, int] = {source: params.mixture.get(source, 0) for source in SOURCES}
    wanted[WITH_MEMORY] = round(params.act_with_memory * wanted["act"]) if n_with_memory else 0
    wanted["act"] -= wanted[WITH_MEMORY]
    return wanted


def _item(one: Example, reply: tuple[int, ...]) -> Item:
    return Item(
        source=one.ability,
        example_id=one.example_id,
        student_ids=one.student_ids,
        teacher_ids=one.teacher_ids,
        reply=reply,
        trust=one.trust,
        has_hindsight=bool(one.hindsight_spans),
        with_memory=one.with_memory,
    )


def token_counts(items: Iterable[Item]) -> dict[str, int]:
    """Reply tokens of each group; the denominators of the loss means."""
    counts = dict.fromkeys(GROUPS, 0)
    for item in items:
        counts[item.group] += len(item.reply)
    return counts


def microbatches(items: Sequence[Item], size: int, overhead: int) -> list[list[Item]]:
    """Items of like length together, at most `size` each; anchors apart, since another teacher scores them.

    `overhead`: see `forward.cut`.
    """
    batches: list[list[Item]] = []
    for group in ([i for i in items if i.source != "anchor"], [i for i in items if i.source == "anchor"]):
        ordered = sorted(group, key=lambda item: len(item.student_ids) + len(item.reply))
        lengths = [len(item.student_ids) + len(item.reply) for item in ordered]
        batches += [ordered[run] for run in cut(lengths, size, overhead)]
    return batches


def scale_of(counts: Mapping[str, int], weights: Mapping[str, float]) -> dict[str, float]:
    """w_g / N_g: what one token of each group adds to the loss. Token counts of a group do not decide its weight.

    The weight of `anchor` is shared evenly by the abilities that are rehearsed. Acting with memory weighs as much as
    acting without: most of its tokens are right already, and in one mean with the others they would count for little.
    """
    names = {group: "act" if group == WITH_MEMORY else group.partition(" ")[0] for group in counts}
    rehearsed = sum(bool(count) for group, count in counts.items() if names[group] == "anchor")
    return {
        group: weights.get(names[group], 0.0) / (rehearsed if names[group] == "anchor" else 1) / count
        for group, count in counts.items()
        if count
    }
