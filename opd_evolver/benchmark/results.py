"""Several seeds of one experiment as evidence: every column and difference pooled, each against what was asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import Field

from opd_evolver.benchmark import rows
from opd_evolver.benchmark.pooled import pooled, pooled_difference
from opd_evolver.benchmark.statistics import (
    SAMPLES,
    Estimate,
    Unit,
    clusters_of,
    mean_of,
    ratio_of,
)
from opd_evolver.errors import SetupError
from opd_evolver.records import SCHEMA_VERSION, Record

COLUMNS: dict[str, str] = {
    "base_alone": "base policy alone",
    "base_memory": "base policy with the last memory",
    "last_alone": "last policy alone",
    "last_memory": "last policy with its memory",
    "novel_alone": "last policy alone, families never deployed",
    "novel_base_fresh": "base policy with a memory it filled itself, families never deployed",
    "novel_fresh": "last policy with a memory it filled itself, families never deployed",
}


class Claim(Record):
    """One difference, and the least its lower bound must be; `per_domain`: no domain's mean below."""

    name: str
    of: str
    against: str
    least: float
    per_domain: float | None = 0.05


CLAIMS: tuple[Claim, ...] = (
    Claim(name="memory alone gives", of="base_memory", against="base_alone", least=0.15),
    Claim(name="distillation alone gives", of="last_alone", against="base_alone", least=0.25),
    Claim(name="distillation adds to memory", of="last_memory", against="base_memory", least=0.05),
    Claim(name="memory adds to distillation", of="last_memory", against="last_alone", least=-0.03, per_domain=None),
    Claim(name="a fresh memory on novel families", of="novel_fresh", against="novel_alone", least=0.20),
)
RETAINED = 0.9
DEPLOYED = ("base_alone", "base_memory", "last_alone", "last_memory")
Units = tuple[Unit, ...]


class SeedResult(Record):
    """One seed's run.

    Attributes:
        columns: success by the names of COLUMNS, always of the same tasks; empty: not measured.
        retention: metric → (base, last); curve: for each round from 0 (alone, with memory).
        round: whose policy and memory the columns call last.
        digests: of that round; `base` is the policy it began with.
        seconds: of each round.
        kinds: by kind of task (`benchmark/rows.py`), the ids of those on deploy-test.
        selection: from `rows.selections`, task by task.
        written: by round, what its entries have come to.
    """

    schema_version: int = SCHEMA_VERSION
    seed: int
    lineage: str
    round: int = 0
    columns: dict[str, Units]
    retention: dict[str, tuple[float, float]] = Field(default_factory=dict)
    curve: tuple[tuple[float | None, float | None], ...] = ()
    digests: dict[str, str] = Field(default_factory=dict)
    seconds: tuple[float, ...] = ()
    kinds: dict[str, frozenset[str]] = Field(default_factory=dict)
    selection: dict[str, tuple[Unit, ...]] = Field(default_factory=dict)
    written: dict[int, rows.Written] = Field(default_factory=dict)


class Verdict(Record):
    """A claim as measured; `values` has every seed's difference. A column that was not measured gives none."""

    claim: Claim
    found: Estimate
    values: tuple[float | None, ...]
    reached: bool

    @property
    def said(self) -> str:
        """The verdict in words."""
        if self.found.mean is None:
            return "not measured"
        return "reached" if self.reached else "not reached"


class Retained(Record):
    """A metric of retention: the last policy's share of the base's, each seed's and the least."""

    metric: str
    shares: tuple[float, ...]
    reached: bool


class Results(Record):
    """All of it, in the order of the seeds; None: not measured."""

    schema_version: int = SCHEMA_VERSION
    seeds: tuple[SeedResult, ...]
    means: dict[str, Estimate]
    values: dict[str, tuple[float | None, ...]]
    verdicts: tuple[Verdict, ...]
    retained: tuple[Retained, ...]
    kinds: dict[str, rows.Row] = Field(default_factory=dict)


def results(seeds: Sequence[SeedResult], *, samples: int = SAMPLES, champions: bool = False) -> Results:
    """Pool what was measured.

    Args:
        seeds: all of the same tasks and round.
        samples: bootstrap resamples.
        champions: of each seed the round that its gate left, whichever that is.

    Raises:
        SetupError: no seeds, or of other tasks or rounds.
    """
    if not champions and len({one.round for one in seeds}) > 1:
        said = ", ".join(f"{one.round} of {one.lineage}" for one in seeds)
        raise SetupError(f"rounds {said}", "the same round of every seed", "measure all with the same `rounds`")
    units = {name: [one.columns[name] for one in seeds] for name in COLUMNS}
    means = {name: pooled(by_seed, samples=samples) for name, by_seed in units.items()}
    values = {name: tuple(mean_of_units(one) if one else None for one in by_seed) for name, by_seed in units.items()}
    verdicts = []
    for claim in CLAIMS:
        of, against = units[claim.of], units[claim.against]
        if all(of) and all(against):
            found = pooled_difference(of, against, samples=samples)
        else:
            found = pooled([()] * len(seeds))
        each = tuple(
            None if a is None or b is None else a - b
            for a, b in zip(values[claim.of], values[claim.against], strict=True)
        )
        verdicts.append(Verdict(claim=claim, found=found, values=each, reached=_reached(claim, found)))
    metrics = seeds[0].retention
    return Results(
        seeds=tuple(seeds),
        means=means,
        values=values,
        verdicts=tuple(verdicts),
        retained=tuple(_retained(metric, [one.retention for one in seeds]) for metric in metrics),
        kinds=_kinds(seeds, units, samples),
    )


def _kinds(seeds: Sequence[SeedResult], units: Mapping[str, list[Units]], samples: int) -> dict[str, rows.Row]:
    found = {}
    for kind in sorted({kind for one in seeds for kind in one.kinds}):
        ids = [one.kinds.get(kind, frozenset()) for one in seeds]
        parts = {name: rows.of_kind(units[name], ids) for name in DEPLOYED}
        picks = {side: rows.of_kind([one.selection[side] for one in seeds], ids) for side in seeds[0].selection}
        found[kind] = rows.row(
            tuple(len(one) for one in ids),
            parts,
            picks,
            lambda part: pooled(part, samples=samples),
            lambda a, b: pooled_difference(a, b, samples=samples),
        )
    return found


def mean_of_units(units: Sequence[Unit]) -> float:
    """As `statistics.ratio_interval`, without the interval; success always has a denominator."""
    mean = mean_of([ratio_of(one) for one in clusters_of(units).values()])
    assert mean is not None
    return mean


def _reached(claim: Claim, found: Estimate) -> bool:
    if found.low is None or found.low < claim.least:
        return False
    floor = claim.per_domain
    return floor is None or all(one.mean is not None and one.mean >= floor for one in found.per_domain.values())


def shares(metric: str, pairs: Sequence[Mapping[str, tuple[float, float]]]) -> tuple[float, ...]:
    """What is left of the base's, seed by seed."""
    return tuple(last / base if base > 0 else 0.0 for base, last in (one[metric] for one in pairs))


def _retained(metric: str, pairs: Sequence[Mapping[str, tuple[float, float]]]) -> Retained:
    found = shares(metric, pairs)
    return Retained(metric=metric, shares=found, reached=min(found) >= RETAINED)
