"""Ablations: the same run with one part taken out, from the same seeds and on the same budget, against the whole.

An arm is a few parameters. What counts is paired: the same tasks, the same seeds, the whole minus the arm, so that a
positive difference is what the part gives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from pydantic import Field

from opd_evolver.benchmark import rows
from opd_evolver.benchmark.pooled import pooled, pooled_difference
from opd_evolver.benchmark.report import interval_text, made_by, measured_lines
from opd_evolver.benchmark.results import DEPLOYED, RETAINED, SeedResult, Units, mean_of_units, shares
from opd_evolver.benchmark.statistics import SAMPLES, Estimate
from opd_evolver.errors import SetupError
from opd_evolver.records import LEVELS, Level, Record

WHOLE = "whole"


class Arm(Record):
    """One part taken out.

    Attributes:
        what: in words.
        overrides: parameters by dotted key.
        level: where the arm leaves out a level, that one: its own family types are judged apart.
    """

    what: str
    overrides: dict[str, Any]
    level: Level | None = None


def _without(level: Level) -> Arm:
    kept = [one for one in LEVELS if one != level]
    return Arm(what=f"no entries of the level {level}", overrides={"memory.levels": kept}, level=level)


ARMS: dict[str, Arm] = {
    WHOLE: Arm(what="nothing is left out", overrides={}),
    "no-select": Arm(what="the top of the ranking is injected", overrides={"memory.selector": "ranking"}),
    "no-attribution": Arm(
        what="all entries that were shown count alike",
        overrides={"attribution.variant": "uniform", "attribution.sure": False},
    ),
    "every-verdict": Arm(what="the teacher hears of every V, sure or not", overrides={"attribution.sure": False}),
    "no-prefix-weights": Arm(what="every token of a sampled reply counts", overrides={"slow.prefix_weights": False}),
    "no-write": Arm(what="nothing is written", overrides={"fast.write_limit": 0}),
    "no-maintain": Arm(what="the repository is never maintained", overrides={"fast.maintain_max_steps": 0}),
    "no-anchor": Arm(what="no rehearsal", overrides={"slow.anchor_examples": 0}),
    "empty-hindsight": Arm(what="the teacher sees what the student sees", overrides={"slow.hindsight": "empty"}),
    "shuffled-hindsight": Arm(what="the teacher sees another's hindsight", overrides={"slow.hindsight": "shuffled"}),
    "no-training": Arm(what="memory in the context, no distillation", overrides={"slow.steps": 0}),
    "sft": Arm(what="fine-tuning on won replies, not on-policy", overrides={"slow.objective": "sft"}),
    **{f"no-{level}": _without(level) for level in LEVELS},
}
LEAST_LEVEL = 0.10
COMPARED = ("last_alone", "last_memory")


class ArmRun(Record):
    """What an arm came to from one seed.

    Attributes:
        lineage: the run's name.
        round: which one the columns call last; None: not known.
        weights: digest of its policy.
        columns: success by the names of DEPLOYED, always of the same tasks.
        homes: of each task the level that its family's hidden rule asks for.
        retention: metric → (base, last).
        measured: when and on what, by name; empty: not known.
    """

    seed: int
    lineage: str
    round: int | None = None
    weights: str
    columns: dict[str, Units]
    homes: dict[str, Level]
    retention: dict[str, tuple[float, float]]
    measured: dict[str, str] = Field(default_factory=dict)


def arm_run(found: SeedResult, measured: Mapping[str, str]) -> ArmRun:
    """Of all that a finished run's columns came to, what arms are compared by.

    Args:
        found: the run's columns.
        measured: when and on what, by name.
    """
    return ArmRun(
        seed=found.seed,
        lineage=found.lineage,
        round=found.round,
        weights=found.digests.get("weights", ""),
        columns={column: found.columns[column] for column in DEPLOYED},
        homes={task: level for level in LEVELS for task in sorted(found.kinds.get(rows.home(level), frozenset()))},
        retention=found.retention,
        measured=dict(measured),
    )


class Comparison(Record):
    """One arm against the whole, over all seeds.

    Attributes:
        success: the arm's columns.
        alone, with_memory: the last policy's success, the whole minus the arm.
        own: of a level that is left out, the same with memory on its own family types; else None.
        values: each seed's whole minus arm, by column.
        retained: metric of retention → what the arm keeps of the base's, seed by seed.
        said: statements in words, by the intervals, and of retention by what was asked of every seed.
    """

    arm: str
    what: str
    success: dict[str, Estimate]
    alone: Estimate
    with_memory: Estimate
    own: Estimate | None
    values: dict[str, tuple[float, ...]]
    retained: dict[str, tuple[float, ...]]
    said: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """All statements on one line."""
        return "; ".join(self.said)


def compare(whole: Sequence[ArmRun], arm: Sequence[ArmRun], name: str, *, samples: int = SAMPLES) -> Comparison:
    """What the part that `name` leaves out gives.

    Args:
        whole: the runs with everything, seed by seed.
        arm: the runs without it, of the same seeds.
        name: one of ARMS.
        samples: bootstrap resamples.

    Raises:
        SetupError: other seeds, rounds or tasks.
    """
    if [one.seed for one in whole] != [one.seed for one in arm]:
        raise SetupError(
            f"{name}: seeds {[one.seed for one in arm]}", f"{[one.seed for one in whole]}", "measure the missing ones"
        )
    if len(rounds := sorted({one.round for one in (*whole, *arm) if one.round is not None})) > 1:
        said = " and ".join(str(one) for one in rounds)
        raise SetupError(f"{name}: rounds {said}", "the same round of every run", "measure all with the same `rounds`")
    units = {
        side: {column: [one.columns[column] for one in found] for column in DEPLOYED}
        for side, found in (("whole", whole), ("arm", arm))
    }

    def given(column: str) -> Estimate:
        return pooled_difference(units["whole"][column], units["arm"][column], samples=samples)

    level, own = ARMS[name].level, None
    if level is not None:
        ids = [{task for task, home in one.homes.items() if home == level} for one in whole]
        mine, theirs = (rows.of_kind(units[side]["last_memory"], ids) for side in ("whole", "arm"))
        own = pooled_difference(mine, theirs, samples=samples)
    alone, with_memory = given("last_alone"), given("last_memory")
    kept = {side: _retained(found) for side, found in (("whole", whole), ("arm", arm))}
    return Comparison(
        arm=name,
        what=ARMS[name].what,
        success={column: pooled(part, samples=samples) for column, part in units["arm"].items()},
        alone=alone,
        with_memory=with_memory,
        own=own,
        values={
            column: tuple(
                mean_of_units(a) - mean_of_units(b)
                for a, b in zip(units["whole"][column], units["arm"][column], strict=True)
            )
            for column in COMPARED
        },
        retained=kept["arm"],
        said=_said(alone, with_memory, own, _lost(kept["whole"], kept["arm"])),
    )


def _retained(found: Sequence[ArmRun]) -> dict[str, tuple[float, ...]]:
    return {metric: shares(metric, [one.retention for one in found]) for metric in found[0].retention}


def _lost(whole: Mapping[str, Sequence[float]], arm: Mapping[str, Sequence[float]]) -> list[str]:
    """Metrics that the whole retains on every seed and the arm does not."""
    return [name for name, kept in arm.items() if min(kept) < RETAINED <= min(whole[name])]


def _said(alone: Estimate, with_memory: Estimate, own: Estimate | None, lost: Sequence[str]) -> tuple[str, ...]:
    said = []
    for where, one in (("alone", alone), ("with memory", with_memory)):
        if one.low is not None and one.low > 0:
            said.append(f"earns its place {where}")
        elif one.high is not None and one.high < 0:
            said.append(f"costs {where}")
    if own is not None:
        said.append(_needed(own))
    if lost:
        said.append(f"keeps {', '.join(lost)} at {RETAINED:.2f} of the base's")
    return tuple(said) or ("no difference seen",)


def _needed(own: Estimate) -> str:
    if own.mean is None:
        return "nothing is known of its own family types: none was measured"
    if own.mean < LEAST_LEVEL:
        return f"its own family types do not fall by {LEAST_LEVEL:.2f} without it"
    sure = own.low is not None and own.low >= LEAST_LEVEL
    where = "at the lower bound" if sure else "in the mean, not at the lower bound"
    return f"its own family types fall by {LEAST_LEVEL:.2f} without it {where}"


def page(found: Sequence[Comparison], *, command: str, runs: Sequence[ArmRun], measure: str | None = None) -> str:
    """All arms as Markdown.

    Args:
        found: the whole, then each arm against it.
        command: what makes the page again.
        runs: the whole's, one of each seed.
        measure: where that pools what was measured before, what measures it.
    """
    lines = [
        "# Ablations",
        "",
        *made_by(command, measure),
        f"Seeds {_listed(runs)}. Success on deploy-test; differences are the whole minus the arm, "
        "paired by task and seed, with 95 % intervals by resampling families and seeds "
        "(`opd_evolver/benchmark/intervals.py`): positive is what the part gives.",
        "",
        *measured_lines([(one.seed, one.measured) for one in runs]),
        "",
        "| arm | | alone | with memory | whole - arm, alone | with memory | own family types | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in found:
        cells = [
            one.arm,
            one.what,
            *(interval_text(one.success[column]) for column in COMPARED),
        ]
        if one.arm == WHOLE:
            cells += ["", "", "", ""]
        else:
            differences = (one.alone, one.with_memory, one.own)
            cells += [*(interval_text(each, signed=True) for each in differences), one.verdict]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *_in_words(found), "", *_details(found), ""])


def _listed(runs: Sequence[ArmRun]) -> str:
    return ", ".join(str(one.seed) for one in runs)


def _in_words(found: Sequence[Comparison]) -> list[str]:
    """What the table says of each part, plainly: every statement with the arms it is made of."""
    said: dict[str, list[str]] = {}
    for one in found:
        for statement in one.said if one.arm != WHOLE else ():
            said.setdefault(statement, []).append(f"`{one.arm}` ({one.what})")
    lines = [f"- {statement}: {', '.join(arms)}" for statement, arms in sorted(said.items())]
    return ["## What the parts earn", "", "The part that each arm leaves out:", "", *lines]


def _details(found: Sequence[Comparison]) -> list[str]:
    """Every seed's difference, and retention."""
    metrics = list(found[0].retained)
    lines = [
        "## Seed by seed",
        "",
        "Whole minus arm of each seed; what the arm keeps of the base's abilities on novel-test, the mean of the seeds "
        "and in brackets the least.",
        "",
        "| arm | alone | with memory | " + " | ".join(metrics) + " |",
        "|" + "---|" * (3 + len(metrics)),
    ]
    for one in found:
        cells = [one.arm]
        cells += ["" if one.arm == WHOLE else ", ".join(f"{x:+.3f}" for x in one.values[column]) for column in COMPARED]
        cells += [f"{fmean(one.retained[name]):.3f} ({min(one.retained[name]):.3f})" for name in metrics]
        lines.append("| " + " | ".join(cells) + " |")
    return lines
