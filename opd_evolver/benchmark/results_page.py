"""Pooled results as a page, and their curves as SVG. The same results give the same bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from opd_evolver.benchmark.report import interval_text, made_by, measured_lines
from opd_evolver.benchmark.results import COLUMNS, DEPLOYED, RETAINED, Results, SeedResult, Verdict
from opd_evolver.benchmark.rows import SIDES, Written
from opd_evolver.benchmark.statistics import Estimate


def page(
    found: Results,
    *,
    title: str,
    command: str,
    measured: Sequence[tuple[int, Mapping[str, str]]],
    curves: str,
    sizes: Mapping[str, Any] | None = None,
    champion: Results | None = None,
    measure: str | None = None,
) -> str:
    """The whole page in Markdown.

    Args:
        found: pooled, of the last round.
        title: heading.
        command: what reproduces it.
        measured: of each seed, when and on what, by name.
        curves: file name of the picture.
        sizes: what `benchmarks.gpu_rounds --out` wrote, where it was run.
        champion: the same of the rounds that the gate left to use, where they are not the last ones.
        measure: where the command pools what was measured before, what measures it.
    """
    first = found.means["base_alone"]
    lines = [
        f"# {title}",
        "",
        *made_by(command, measure),
        f"{len(found.seeds)} seed(s), {first.n_tasks} tasks in {len(first.per_domain)} domains and {first.n_families} "
        "families. Success, mean over domains; 95 % intervals by resampling families and seeds "
        "(`opd_evolver/benchmark/pooled.py`).",
        "",
        *measured_lines(measured),
        "",
        "## What was asked",
        "",
        *_asked(found),
        "## Columns",
        "",
        *_columns(found),
        *(_champion(champion) if champion else ()),
        *_kinds(found),
        f"![success by round]({curves})",
        "",
        "## Runs",
        "",
        "| seed | lineage | minutes by round | base | weights | memory | ledger |",
        "|---|---|---|---|---|---|---|",
        *(_run(one) for one in found.seeds),
        "",
        *(_sizes(sizes) if sizes else ()),
    ]
    return "\n".join(lines)


def _asked(found: Results) -> list[str]:
    head = ["| | difference | least lower bound | every seed | by domain | |", "|---|---|---|---|---|---|"]
    return [*head, *(_verdict(one) for one in found.verdicts), *_retained(found), ""]


def _columns(found: Results) -> list[str]:
    domains = found.means["base_alone"].per_domain
    return [
        _row(["column", "success", *(f"seed {one.seed}" for one in found.seeds), *domains]),
        _row(["---"] * (2 + len(found.seeds) + len(domains))),
        *(_column(found, name) for name in COLUMNS),
        "",
    ]


def _champion(found: Results) -> list[str]:
    """What is left to use where the gate refused a last round."""
    rounds = ", ".join(str(one.round) for one in found.seeds)
    return [
        "## The champion",
        "",
        f"What the gate left to use, seed by seed: round {rounds}. A refused round's policy and memory are both put "
        "away, so *last* is here that round and the memory it had.",
        "",
        *_asked(found),
        *_columns(found),
    ]


def _sizes(told: Mapping[str, Any]) -> list[str]:
    """Speed and memory of models of real sizes: columns of figures by name."""
    return [
        "## Real sizes on a GPU",
        "",
        f"    {told['command']}",
        "",
        f"Random weights in the shapes of real models: speed and memory, nothing about success. {told['date']}, "
        f"{told['machine']}.",
        "",
        *side_by_side(told["figures"]),
        "",
    ]


def side_by_side(figures: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A Markdown table of columns of named figures; a column may lack some."""
    names = dict.fromkeys(name for each in figures.values() for name in each)
    return [
        _row(["", *figures]),
        _row(["---"] * (1 + len(figures))),
        *(_row([name, *(_figure(each.get(name, "")) for each in figures.values())]) for name in names),
    ]


def _figure(value: Any) -> str:
    return f"{value:,.2f}" if isinstance(value, float) else str(value)


def curves(seeds: Sequence[SeedResult], path: Path) -> None:
    """Success by round, each seed thin and the mean thick, as SVG."""
    import matplotlib

    matplotlib.use("svg")
    with matplotlib.rc_context({"svg.hashsalt": "opd-evolver", "svg.fonttype": "none"}):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        axes = figure.subplots()
        for at, (name, colour) in enumerate((("alone", "#1f77b4"), ("with memory", "#d62728"))):
            lines = [[pair[at] for pair in one.curve] for one in seeds]
            for line in lines:
                axes.plot(*_known(line), color=colour, linewidth=0.8, alpha=0.5)
            means = [_average(values) for values in zip(*lines, strict=True)]
            axes.plot(*_known(means), color=colour, linewidth=2.5, marker="o", label=name)
        axes.set(xlabel="round", ylabel="success on deploy-test", ylim=(0.0, 1.0))
        axes.set_xticks(range(len(seeds[0].curve)))
        axes.legend()
        figure.savefig(path, format="svg", metadata={"Date": None})


def _known(values: Sequence[float | None]) -> tuple[list[int], list[float]]:
    pairs = [(round_, value) for round_, value in enumerate(values) if value is not None]
    return [round_ for round_, _ in pairs], [value for _, value in pairs]


def _average(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _verdict(one: Verdict) -> str:
    floor = one.claim.per_domain
    least = f"{one.claim.least:+.2f}" + (f", no domain below {floor:+.2f}" if floor is not None else "")
    domains = ", ".join(
        f"{name} {each.mean:+.2f}" for name, each in one.found.per_domain.items() if each.mean is not None
    )
    values = ", ".join(_value(value, "+.3f") for value in one.values)
    return _row(
        [
            one.claim.name,
            interval_text(one.found, signed=True),
            least,
            values,
            domains,
            one.said if one.found.mean is None else _reached(one.reached),
        ]
    )


def _value(value: float | None, form: str = ".3f") -> str:
    return "–" if value is None else format(value, form)


def _reached(reached: bool) -> str:
    return "reached" if reached else "**not reached**"


def _retained(found: Results) -> list[str]:
    return [
        _row(
            [
                f"retention: {one.metric}, share of the base's",
                f"{min(one.shares):.3f} at least",
                f"{RETAINED:.2f}",
                ", ".join(f"{share:.3f}" for share in one.shares),
                "",
                _reached(one.reached),
            ]
        )
        for one in found.retained
    ]


def _column(found: Results, name: str) -> str:
    estimate = found.means[name]
    by_domain = {domain: one.mean for domain, one in estimate.per_domain.items()}
    return _row(
        [
            COLUMNS[name],
            interval_text(estimate),
            *(_value(value) for value in found.values[name]),
            *(_value(by_domain.get(domain)) for domain in found.means["base_alone"].per_domain),
        ]
    )


def _kinds(found: Results) -> list[str]:
    """What each kind of headroom came to, and what was written in each round."""
    if not found.kinds:
        return []
    head = ["kind of task", "tasks", *(COLUMNS[name] for name in DEPLOYED), "with memory: last - base"]
    marks = ("selection F1 against V > 0", "selection F1 against V > 0 of what is asked")
    lines = [
        "## Headroom",
        "",
        _row([*head, *(cell for mark in marks for cell in (f"{mark}: base", "last", "last - base"))]),
    ]
    lines.append(_row(["---"] * (len(head) + 6)))
    for kind, one in found.kinds.items():
        lines.append(
            _row(
                [
                    kind,
                    ", ".join(str(n) for n in one.n_tasks),
                    *(interval_text(one.success[name]) for name in DEPLOYED),
                    interval_text(one.gain, signed=True),
                    *_marks(one.select, one.select_gain),
                    *_marks(one.needed, one.needed_gain),
                ]
            )
        )
    lines += ["", _row(["written in round", *(f"seed {one.seed}" for one in found.seeds)])]
    lines.append(_row(["---"] * (1 + len(found.seeds))))
    for round_ in sorted({round_ for one in found.seeds for round_ in one.written}):
        lines.append(_row([str(round_), *(_written(one.written.get(round_)) for one in found.seeds)]))
    return [*lines, "", "Entries; of those with evidence the share that helps, and median V.", ""]


def _marks(by_side: Mapping[str, Estimate], gain: Estimate) -> list[str]:
    cells = [interval_text(by_side[side]) for side in SIDES]
    return [*cells, interval_text(gain, signed=True)]


def _written(one: Written | None) -> str:
    if one is None or one.median_value is None:
        return f"{one.n_entries if one else 0}"
    return f"{one.n_entries}; {one.n_helpful} of {one.n_with_evidence}, {one.median_value:+.3f}"


def _run(one: SeedResult) -> str:
    minutes = ", ".join(f"{seconds / 60:.1f}" for seconds in one.seconds)
    digests = [f"`{one.digests[name][:12]}`" for name in ("base", "weights", "entries", "ledger")]
    return _row([str(one.seed), f"`{one.lineage}`", minutes, *digests])
