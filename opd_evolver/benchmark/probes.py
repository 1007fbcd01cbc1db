"""Probes: what a policy can do with memory on families it never met, measured through the real engines.

Act with the true entry among distractors, without memory, with distractors only, with a stale and a
new entry (override); select; write, without and with hindsight; maintain. The ability prompts and the episode
are the deployed ones, greedy. This is what `opd evaluate seed` prints and what retention means.
Differs: the paper reports no retention; a distillation that buys success with it is a regression.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from opd_evolver.benchmark.probe_cases import N_CANDIDATES, N_MANY_CANDIDATES, Placement
from opd_evolver.benchmark.prober import Prober
from opd_evolver.benchmark.statistics import Estimate, Unit, ratio_difference, ratio_interval, units_of
from opd_evolver.durable import read_json
from opd_evolver.environments import registry
from opd_evolver.errors import OpdError
from opd_evolver.params import Params
from opd_evolver.policy.protocol import Policy
from opd_evolver.records import LEVELS, SCHEMA_VERSION, Level, Record, Split
from opd_evolver.rollout.runner import EnvironmentPool

PLACEMENTS: tuple[Placement, ...] = (
    *("memory_use", "no_memory", "distractors_only"),
    *("wrong_scope", "permuted", "reworded", "override"),
)
ALL_PROBES = (*PLACEMENTS, "select_f1", "select_f1_of_20", "write_exact", "write_hindsight", "maintain_f1")
# Controls: a memory of other scopes must change nothing, permuted facts must be followed.
DIFFERENCES = {
    "use_minus_none": ("memory_use", "no_memory"),
    "wrong_scope_minus_none": ("wrong_scope", "no_memory"),
    "permuted_minus_use": ("permuted", "memory_use"),
}
# Shown for the families of each level apart, where there are several.
BY_LEVEL = ("memory_use", "no_memory", "reworded", "select_f1", "write_exact", "write_hindsight")
# What a round's report and its gate look at: the rest says how the floor lies and costs time.
RETENTION_PROBES = ("memory_use", "override", "select_f1", "write_exact")


class ProbeReport(Record):
    """Estimates by metric, and the units they are made of (for paired comparisons)."""

    schema_version: int = SCHEMA_VERSION
    split: Split
    policy_version: str
    n_tasks_per_domain: int
    metrics: dict[str, Estimate]
    units: dict[str, tuple[Unit, ...]]
    not_measured: tuple[str, ...] = ()


def evaluate_probes(
    policy: Policy,
    environments: EnvironmentPool,
    split: Split,
    n_tasks_per_domain: int,
    params: Params,
    *,
    probes: Sequence[str] = ALL_PROBES,
    drift_split: Split | None = None,
) -> ProbeReport:
    """Probe a policy; estimates per domain and over domains, each with its clustered interval.

    Args:
        policy: what is probed.
        environments: lends engines.
        split: `novel-val` to choose by, `novel-test` to report.
        n_tasks_per_domain: tasks of each domain.
        params: budgets, batch size, seed, bootstrap samples.
        probes: which of `ALL_PROBES`.
        drift_split: where given, also `drift`: deployed families of that split whose rule has changed.

    Raises:
        SetupError: no domain can be probed.
    """
    prober = Prober(policy, environments, split, n_tasks_per_domain, params)
    units: dict[str, tuple[Unit, ...]] = {}
    for placement in PLACEMENTS:
        if placement in probes:
            outcomes = prober.act(placement)
            units[placement] = units_of(outcomes)
            if placement == "memory_use":
                units["steps_per_success"] = units_of(outcomes, "steps_per_success")
    if drift_split is not None:
        units["drift"] = units_of(prober.act("drift", drift_split))
    for name, n_candidates in (("select_f1", N_CANDIDATES), ("select_f1_of_20", N_MANY_CANDIDATES)):
        if name in probes:
            units[name] = prober.select(n_candidates)
    for name in [one for one in ("write_exact", "write_hindsight") if one in probes]:
        units[name] = prober.write(hindsight=name == "write_hindsight")
    if "maintain_f1" in probes:
        units["maintain_f1"] = prober.maintain()
    samples = params.benchmark.bootstrap_samples
    metrics = {name: ratio_interval(found, samples=samples) for name, found in units.items()}
    for name, (a, b) in DIFFERENCES.items():
        if units.keys() >= {a, b}:
            metrics[name] = ratio_difference(units[a], units[b], samples=samples)
    for level in params.environments.levels if len(params.environments.levels) > 1 else ():
        of_level = {name: _at_home(units[name], prober, level) for name in BY_LEVEL if name in units}
        # Of very few tasks none may be at home in a level.
        metrics |= {
            f"{name}.{level}": ratio_interval(found, samples=samples) for name, found in of_level.items() if found
        }
    return ProbeReport(
        split=split,
        policy_version=policy.version,
        n_tasks_per_domain=n_tasks_per_domain,
        metrics=metrics,
        units=units,
        not_measured=tuple(name for name in params.environments.domains if name not in prober.domains),
    )


def _at_home(units: Sequence[Unit], prober: Prober, level: Level) -> tuple[Unit, ...]:
    """Those of families whose hidden rule asks for this level."""
    return tuple(unit for unit in units if prober.homes[unit.task_id] == level)


def report_json(report: ProbeReport) -> dict[str, Any]:
    """The report without its units: what `opd evaluate --json` prints."""
    return report.model_dump(mode="json", exclude={"units"})


def probe_table(tree: dict[str, Any]) -> str:
    """Plain text of `report_json`: a row per metric, a column per domain, then the mean with its interval."""
    domains = sorted({domain for one in tree["metrics"].values() for domain in one["per_domain"]})
    head = f"split {tree['split']} · {tree['n_tasks_per_domain']} tasks a domain · policy {tree['policy_version'][:12]}"
    lines = [head, f"{'':<27}" + "".join(f"{domain:>8}" for domain in domains) + f"{'mean':>8}   95 % interval"]
    for name, one in tree["metrics"].items():
        cells = "".join(f"{_number(one['per_domain'][domain]['mean']):>8}" for domain in domains)
        lines.append(f"{name:<27}{cells}{_number(one['mean']):>8}   [{_number(one['low'])}, {_number(one['high'])}]")
    if tree["not_measured"]:
        lines.append(f"not measured (facts unknown): {', '.join(tree['not_measured'])}")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def trained_on(policy_path: str | Path) -> tuple[str, ...]:
    """The domains of a policy that this project trained from scratch, by its training record; empty for others."""
    from opd_evolver.policy.weights import resolve

    record = resolve(policy_path) / "training.json"
    return tuple(read_json(record)["settings"]["domains"]) if record.exists() else ()


def evaluate_seed(
    policy_path: str | Path,
    *,
    domains: Sequence[str] = (),
    levels: Sequence[Level] = (),
    split: Split = "novel-test",
    n_tasks: int = 100,
    params: Params | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Probe the policy in a folder (or `seed`, the one in the package); see `report_json`.

    Args:
        policy_path: a folder in Hugging Face form, or `seed`.
        domains: which; those of `params` when empty.
        levels: of the families; those of `params` when empty.
        split: `novel-test` to report, `novel-val` to choose by.
        n_tasks: tasks of each domain.
        params: dialect, budgets and batch size; the defaults, which the seed policy speaks, when None.
        device: torch device.

    Raises:
        SetupError, CorruptionError: no such policy or domain, or damaged files.
    """
    from opd_evolver.policy.registry import open_policy

    chosen = params or Params()
    wanted = {"domains": tuple(domains), "levels": tuple(levels)}
    environments = chosen.environments.model_copy(update={name: some for name, some in wanted.items() if some})
    chosen = chosen.model_copy(update={"environments": environments})
    own = chosen.policy.model_copy(update={"path": str(policy_path), "backend": "local"})
    policy = open_policy(own, device=device)
    with EnvironmentPool(registry.loader(chosen.environments)) as pool:
        return report_json(evaluate_probes(policy, pool, split, n_tasks, chosen))


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m opd_evolver.benchmark.probes --policy PATH --split novel-test --tasks 100 [--levels …] [--json]`."""
    parser = argparse.ArgumentParser(prog="python -m opd_evolver.benchmark.probes", description=__doc__)
    parser.add_argument("--policy", default="seed")
    parser.add_argument("--split", default="novel-test", choices=("novel-val", "novel-test"))
    parser.add_argument("--tasks", type=int, default=100)
    parser.add_argument("--levels", nargs="+", choices=LEVELS, default=())
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(argv)
    try:
        tree = evaluate_seed(given.policy, levels=given.levels, split=given.split, n_tasks=given.tasks)
    except OpdError as error:
        parser.exit(error.exit_code, f"error: {error}\n")
    print(json.dumps(tree) if given.json else probe_table(tree))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
