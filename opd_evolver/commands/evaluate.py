"""`opd evaluate` and `opd check-env`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from opd_evolver.errors import SetupError


def evaluate(given: argparse.Namespace) -> int:
    """Measure a policy's memory use, override, selection and writing on families it has never seen."""
    from opd_evolver.benchmark.probes import evaluate_seed, probe_table, trained_on
    from opd_evolver.params import Params, load_preset, merge, parse_set
    from opd_evolver.settings import load_settings
    from opd_evolver.steps import prepare

    if given.tasks < 1:
        raise SetupError(f"--tasks {given.tasks}", "at least 1", "for example --tasks 100")
    domains = tuple(word for word in given.domains.split(",") if word) or trained_on(given.policy)
    params = merge(load_preset(given.preset) if given.preset else Params(), parse_set(given.pairs), "--set")
    prepare.check_budgets(params)
    tree = evaluate_seed(
        given.policy,
        domains=domains,
        split=given.split,
        n_tasks=given.tasks,
        params=params,
        device=load_settings().device,
    )
    print(json.dumps(tree, ensure_ascii=False, indent=2) if given.json else probe_table(tree))
    return 0


def check_env(given: argparse.Namespace) -> int:
    """Prove determinism, disjoint splits and limits; exit 1 when a promise is broken.

    Worlds are what the parameters deploy: their levels and headroom. Of several environments, those whose
    engine is not installed are named with the command that installs it.
    """
    from opd_evolver.environments.check import check_env as check
    from opd_evolver.environments.check import table
    from opd_evolver.environments.extras import MissingExtra
    from opd_evolver.environments.registry import names
    from opd_evolver.params import Params, load, merge, parse_set

    if given.tasks < 1:
        raise SetupError(f"--tasks {given.tasks}", "at least 1", "for example --tasks 100")
    if given.all and given.name:
        raise SetupError(f"--all and the name {given.name}", "one of the two", f"opd check-env {given.name}")
    known = given.preset or Path("params.yaml").exists()
    params = load(preset=given.preset) if known else Params()
    worlds = merge(params, parse_set(given.pairs), "--set").environments
    reports, absent = [], {}
    for name in [given.name] if given.name else names():
        try:
            reports.append(check(name, given.tasks, worlds.levels, worlds.headroom))
        except MissingExtra as error:
            if given.name:
                raise
            absent[name] = error.mend
    if given.json:
        found = [report.model_dump(mode="json") for report in reports]
        found += [{"name": name, "not_installed": mend} for name, mend in absent.items()]
        print(json.dumps(found, ensure_ascii=False, indent=2))
    else:
        print("\n".join(report.text() for report in reports))
        if not given.name:
            print(table(reports, absent))
    return 0 if all(report.passed for report in reports) else 1
