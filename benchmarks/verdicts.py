"""How often V calls the right tips helpful and the wrong ones harmful, in a finished run, by what counts as evidence.

    python -m benchmarks.verdicts RUN [--round N]

A tip about a key that deploy-test asks is right when it says the value that holds there outside of any context (a
misleading key has another one in some tasks), else wrong: stale, learnt from an exception, or a wrong guess. The gold
is read here alone: nothing of it reaches V. A second table has the tips by the round that wrote them, with
the median V of the right and of the wrong ones as the run's own parameters attribute it. No training, seconds.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import median

from opd_evolver import lineage
from opd_evolver.environments import registry
from opd_evolver.environments.conventions import CONTEXTS
from opd_evolver.memory.attribution import attribute, sure
from opd_evolver.memory.snapshot import read_entries, read_rows
from opd_evolver.params import Params
from opd_evolver.records import Attribution, Entry, TipContent
from opd_evolver.rollout.runner import EnvironmentPool
from opd_evolver.steps import prepare, snapshots

KINDS = ("right", "wrong")
MARKS = ("up", "none", "down")
EVIDENCE = [
    {"variant": variant, "asked_only": asked_only, "rounds": rounds, "sure": only_sure}
    for variant in ("paper", "causal")
    for asked_only, only_sure in product((False, True), repeat=2)
    for rounds in (0, 1, 2)
]


def labels(entries: Sequence[Entry], params: Params) -> dict[str, str]:
    """`right` or `wrong` for each tip that deploy-test can judge."""
    truth: dict[tuple[str, str], dict[str, str]] = {}
    with EnvironmentPool(registry.loader(params.environments)) as pool:
        for domain in params.environments.domains:
            with pool.lend(domain) as env:
                for task in env.tasks("deploy-test", params.benchmark.test_tasks_per_domain):
                    if task.text.split()[-1] not in CONTEXTS:
                        truth.setdefault((domain, task.scope), {}).update(task.gold["facts"])
    found = {}
    for entry in entries:
        known = truth.get((entry.domain, entry.scope), {})
        if isinstance(entry.content, TipContent) and entry.content.trigger in known:
            right = known[entry.content.trigger] in entry.content.text.split()
            found[entry.entry_id] = "right" if right else "wrong"
    return found


def marks(found: Mapping[str, Attribution], known: Mapping[str, str], threshold: float) -> Counter[tuple[str, str]]:
    """How many of each label have each mark."""
    counted: Counter[tuple[str, str]] = Counter()
    for entry_id, label in known.items():
        value = found[entry_id].value if entry_id in found else None
        clear = value if value is not None and abs(value) >= threshold else 0.0
        counted[label, "up" if clear > 0 else "down" if clear < 0 else "none"] += 1
    return counted


def by_round(entries: Sequence[Entry], found: Mapping[str, Attribution], known: Mapping[str, str]) -> list[str]:
    """A line a round: of the judged tips written in it how many are right, and the median V of each kind."""
    lines = ["| written in round | right | of | median V of right | of wrong |", "|---|---|---|---|---|"]
    for round_ in sorted({entry.created_round for entry in entries if entry.entry_id in known}):
        mine = [entry.entry_id for entry in entries if entry.created_round == round_ and entry.entry_id in known]
        values = {
            kind: [
                found[m].value or 0.0 for m in mine if known[m] == kind and m in found and found[m].value is not None
            ]
            for kind in KINDS
        }
        medians = [f"{median(values[kind]):+.3f} ({len(values[kind])})" if values[kind] else "-" for kind in KINDS]
        n_right = sum(known[m] == "right" for m in mine)
        lines.append(f"| {round_} | {n_right} | {len(mine)} | {' | '.join(medians)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--round", type=int, help="default: the last finished one")
    asked = parser.parse_args()
    run = lineage.open_run(prepare.artifact_root(), asked.run)
    folder: Path = snapshots.sound(run, asked.round or snapshots.last_finished(run)) / "memory"
    entries, rows = read_entries(folder), read_rows(folder)
    known = labels(entries, run.params)
    print(
        "| variant | asked_only | rounds | sure | "
        + " | ".join(f"{kind}: {mark}" for kind in KINDS for mark in MARKS)
        + " |"
    )
    print("|---" * (4 + len(KINDS) * len(MARKS)) + "|")
    for change in EVIDENCE:
        settings = run.params.attribution.model_copy(update=change)
        valued = attribute(rows, entries, settings)
        counted = marks(sure(valued) if settings.sure else valued, known, settings.threshold)
        named = " | ".join(str(value) for value in change.values())
        print(f"| {named} | " + " | ".join(str(counted[kind, mark]) for kind in KINDS for mark in MARKS) + " |")
    print("\n".join(["", *by_round(entries, attribute(rows, entries, run.params.attribution), known)]))


if __name__ == "__main__":
    main()
