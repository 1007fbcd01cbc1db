"""Attribution: bias and coverage of every variant where the truth is known, and speed.

    python -m benchmarks.attribution [--seeds 300] [--first 0] [--only truth | intervals | speed]

Tables are Markdown. Bias and coverage are of A-hat, the part in which the variants differ: alpha and gamma
scale it and its interval alike.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.attribution_world import ESSENTIAL, World, draw, truth
from opd_evolver.memory.attribution import VARIANTS, Estimate, Pairs, attribute, evidence
from opd_evolver.memory.attribution.causal import causal
from opd_evolver.memory.attribution.estimate import Z_95
from opd_evolver.params import AttributionParams
from opd_evolver.records import Candidate, Entry, LedgerRow, TipContent, uuid5_of

Floats = npt.NDArray[np.float64]
WORLDS = {
    "withheld 10 %": World(),
    "withheld 30 %": World(epsilon=0.3),
    "few rollouts (a fifth)": World(n_tasks=6),
    "essential memories": World(kinds=ESSENTIAL, base=0.1, slope=0.05),
}
N_REPEATS = 5

# `uniform` estimates nothing.
MEASURED = {name: VARIANTS[name] for name in ("paper", "released", "causal")}


class Score(NamedTuple):
    """Bias with half a 95 % interval over seeds, and share of intervals that hold the target."""

    bias: float
    within: float
    coverage: float


class Line(NamedTuple):
    """What was found for one variant and kind of memory."""

    variant: str
    kind: str
    target_own: float
    target_causal: float
    own: Score
    causal: Score
    half: float
    wrong: float
    none: float


def measure(world: World, seeds: range) -> list[Line]:
    """Every variant on every kind, over ledgers of these seeds."""
    pairs = draw(world, seeds).pairs
    shape = (len(seeds), len(world.kinds), world.per_kind)
    lines = []
    for name, variant in MEASURED.items():
        found = variant(pairs, len(seeds) * world.n_entries)
        advantage = np.where(found.n_plus > 0, found.advantage, np.nan).reshape(shape)
        half = (found.quantile * found.error).reshape(shape)
        targets = truth(world, name)
        for k, kind in enumerate(world.kinds):
            a, h = advantage[:, k], half[:, k]
            known = ~np.isnan(a) & ~np.isnan(h)
            sign = np.sign(targets.causal[k])
            wrong = ((a - h > 0) & (sign <= 0)) | ((a + h < 0) & (sign >= 0))
            lines.append(
                Line(
                    name,
                    kind,
                    float(targets.own[k]),
                    float(targets.causal[k]),
                    _score(a, h, float(targets.own[k])),
                    _score(a, h, float(targets.causal[k])),
                    float(np.median(h[known])),
                    float(wrong[known].mean()),
                    float(1.0 - known.mean()),
                )
            )
    return lines


def _score(advantage: Floats, half: Floats, target: float) -> Score:
    """Errors are averaged per seed first: memories of one ledger are not independent."""
    some = ~np.isnan(advantage).all(axis=1)
    errors = np.nanmean(advantage[some], axis=1) - target
    known = ~np.isnan(advantage) & ~np.isnan(half)
    held = np.abs(advantage - target)[known] <= half[known]
    return Score(float(errors.mean()), float(Z_95 * errors.std(ddof=1) / np.sqrt(len(errors))), float(held.mean()))


def show(name: str, lines: Sequence[Line], seeds: range) -> None:
    print(f"\n### {name}: seeds {seeds.start} to {seeds.stop - 1}\n")
    print(
        "| variant | memories | own target | bias | coverage | true effect | bias | coverage "
        "| half width | wrong verdict | no interval |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for one in lines:
        own, true = one.own, one.causal
        print(
            f"| {one.variant} | {one.kind} | {one.target_own:+.3f} | {own.bias:+.4f} ± {own.within:.4f} "
            f"| {own.coverage:.3f} | {one.target_causal:+.3f} | {true.bias:+.4f} ± {true.within:.4f} "
            f"| {true.coverage:.3f} | {one.half:.3f} | {one.wrong:.3f} | {one.none:.3f} |"
        )


# ── which interval is right for `causal` ──────────────────────────────────────────────────────


def bootstrap(pairs: Pairs, task: npt.NDArray[np.int64], n_entries: int, n_draws: int, seed: int) -> Floats:
    """[draws, entries] A-hat of `causal` with tasks drawn again with replacement within their groups; nan: none."""
    rng = np.random.Generator(np.random.Philox(key=seed))
    tasks, at = np.unique(task, return_inverse=True)
    group = np.zeros(len(tasks), dtype=np.int64)
    group[at] = pairs.group
    times = np.zeros((n_draws, len(tasks)), dtype=np.int64)
    for g in np.unique(group):
        (members,) = np.nonzero(group == g)
        picks = members[rng.integers(0, len(members), (n_draws, len(members)))]
        np.add.at(times, (np.arange(n_draws)[:, None], picks), 1)
    copies = times[:, at].ravel()
    which = np.repeat(np.tile(np.arange(len(at)), n_draws), copies)
    of = np.repeat(np.repeat(np.arange(n_draws), len(at)), copies)
    again = Pairs(
        entry=pairs.entry[which] + of * n_entries,
        group=pairs.group[which],
        chosen=pairs.chosen[which],
        outcome=pairs.outcome[which],
        groups=pairs.groups,
        withheld=pairs.withheld[which],
        propensity=pairs.propensity[which],
    )
    found = causal(again, n_draws * n_entries)
    return np.where(found.n_plus > 0, found.advantage, np.nan).reshape(n_draws, n_entries)


class Intervals(NamedTuple):
    """Coverage of the true effect and median half width of three intervals around the same A-hat."""

    student: tuple[float, float]
    normal: tuple[float, float]
    bootstrap: tuple[float, float]


def compare(world: World, seeds: range, n_draws: int) -> Intervals:
    """Student's t (the built one), the normal quantile with the same error, the percentile bootstrap by task."""
    target = np.repeat(truth(world, "causal").causal, world.per_kind)
    inside: dict[str, list[Floats]] = {"student": [], "normal": [], "bootstrap": []}
    widths: dict[str, list[Floats]] = {"student": [], "normal": [], "bootstrap": []}
    for seed in seeds:
        drawn = draw(world, range(seed, seed + 1))
        found: Estimate = causal(drawn.pairs, world.n_entries)
        again = bootstrap(drawn.pairs, drawn.task, world.n_entries, n_draws, seed)
        known = ~np.isnan(found.error)
        low, high = np.nanquantile(again[:, known], (0.025, 0.975), axis=0)
        for name, quantile in (("student", found.quantile), ("normal", np.full(world.n_entries, Z_95))):
            half = quantile * found.error
            inside[name].append((np.abs(found.advantage - target) <= half)[known])
            widths[name].append(half[known])
        inside["bootstrap"].append((low <= target[known]) & (target[known] <= high))
        widths["bootstrap"].append((high - low) / 2)
    return Intervals(
        **{
            name: (float(np.concatenate(inside[name]).mean()), float(np.median(np.concatenate(widths[name]))))
            for name in inside
        }
    )


def show_intervals(seeds: range, n_draws: int) -> None:
    print(f"\n### Intervals of `causal`: coverage (median half width), seeds {seeds.start} to {seeds.stop - 1}\n")
    print(f"| world | Student | normal | bootstrap by task, {n_draws} draws |\n|---|---|---|---|")
    for name, world in WORLDS.items():
        found = compare(world, seeds, n_draws)
        print(f"| {name} | " + " | ".join(f"{cover:.3f} ({width:.3f})" for cover, width in found) + " |")


# ── speed ─────────────────────────────────────────────────────────────────────────────────────


def ledger(
    n_entries: int, n_rows: int, n_candidates: int, n_groups: int, scoped: bool
) -> tuple[list[LedgerRow], list[Entry]]:
    """A ledger of that size; `scoped`: an entry is a candidate in one group only, else anywhere."""
    rng = np.random.Generator(np.random.Philox(key=0))
    content = [TipContent(text="4", trigger=str(k)) for k in range(n_entries)]
    ids = [uuid5_of(str(k)) for k in range(n_entries)]
    entries = [
        Entry(entry_id=one, domain="d", scope="s", content=text, created_round=1)
        for one, text in zip(ids, content, strict=True)
    ]
    block = n_entries // n_groups
    rows = []
    for n in range(n_rows):
        group = n % n_groups
        start, size = (group * block, block) if scoped else (0, n_entries)
        names = [ids[start + k] for k in rng.choice(size, n_candidates, replace=False)]
        selected = tuple(names[:20])
        withheld = tuple(one for one, dropped in zip(selected, rng.random(20) < 0.1, strict=False) if dropped)
        rows.append(
            LedgerRow.model_construct(
                rollout_id=f"r{n:06d}",
                round=1,
                wave=n // 160,
                group=f"g{group}",
                candidates=tuple(
                    Candidate.model_construct(handle=k, entry_id=one, score=1.0) for k, one in enumerate(names, 1)
                ),
                selected=selected,
                withheld=withheld,
                injected=tuple(one for one in selected if one not in withheld),
                propensities=dict.fromkeys(selected, 0.9),
                select_fallback=False,
                created=(),
                episode_return=float(rng.random() < 0.5),
            )
        )
    return rows, entries


class Seconds(NamedTuple):
    """Medians over repeats: on the clock, and of this process's cores, which other processes do not inflate."""

    wall: float
    cpu: float


def seconds(call: Callable[[], object]) -> Seconds:
    found = []
    for _ in range(N_REPEATS):
        began, cpu = time.perf_counter(), time.process_time()
        call()
        found.append((time.perf_counter() - began, time.process_time() - cpu))
    walls, cpus = zip(*found, strict=True)
    return Seconds(statistics.median(walls), statistics.median(cpus))


def speed(n_entries: int = 10_000, n_rows: int = 10_000, n_candidates: int = 50) -> dict[str, dict[str, Seconds]]:
    """Seconds of each step, by how far candidates spread: rows to arrays, variants on arrays, the whole."""
    found = {}
    for name, scoped in (("one of 60 groups (scopes)", True), ("all of 60 groups", False)):
        rows, entries = ledger(n_entries, n_rows, n_candidates, 60, scoped)
        pairs = evidence(rows, entries)
        cells = {"rows to arrays": seconds(partial(evidence, rows, entries))}
        for variant, one in MEASURED.items():
            cells[f"`{variant}`, on arrays"] = seconds(partial(one, pairs, len(entries)))
        for variant in MEASURED:
            params = AttributionParams.model_validate({"variant": variant})
            cells[f"`attribute`, {variant}"] = seconds(partial(attribute, rows, entries, params))
        found[name] = cells
    return found


def show_speed(found: dict[str, dict[str, Seconds]]) -> None:
    print(f"\n### Speed: 10 000 memories, 10 000 rollouts, 50 candidates each; seconds (CPU), median of {N_REPEATS}\n")
    heads = ["an entry is a candidate in", *next(iter(found.values()))]
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for name, cells in found.items():
        print(f"| {name} | " + " | ".join(f"{cell.wall:.3f} ({cell.cpu:.3f})" for cell in cells.values()) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=300)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--only", choices=("truth", "intervals", "speed"))
    asked = parser.parse_args()
    seeds = range(asked.first, asked.first + asked.seeds)
    if asked.only in (None, "truth"):
        for name, world in WORLDS.items():
            show(name, measure(world, seeds), seeds)
    if asked.only in (None, "intervals"):
        show_intervals(seeds[:100], 200)
    if asked.only in (None, "speed"):
        show_speed(speed())


if __name__ == "__main__":
    main()
