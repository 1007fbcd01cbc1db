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

from opd_evolver import lineage
from opd_evolver.benchmark import rows
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


def by_round(entries: Sequence[Entry], values: rows.Values, known: Mapping[str, str], threshold: float) -> list[str]:
    """A line a round: of the judged tips written in it how many are right, and the median V of each kind."""
    written = {
        kind: rows.written([one for one in entries if known.get(one.entry_id) == kind], values, threshold)
        for kind in KINDS
    }
    lines = ["| written in round | right | of | median V of right | of wrong |", "|---|---|---|---|---|"]
    for round_ in sorted({*written["right"], *written["wrong"]}):
        found = [written[kind].get(round_) for kind in KINDS]
        counts = [one.n_entries if one else 0 for one in found]
        medians = [
            f"{one.median_value:+.3f} ({one.n_with_evidence})" if one and one.median_value is not None else "-"
            for one in found
        ]
        lines.append(f"| {round_} | {counts[0]} | {sum(counts)} | {' | '.join(medians)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--round", type=int, help="default: the last finished one")
    asked = parser.parse_args()
    run = lineage.open_run(prepare.artifact_root(), asked.run)
    folder: Path = snapshots.sound(run, asked.round or snapshots.last_finished(run)) / "memory"
    entries, played = read_entries(folder), read_rows(folder)
    known = labels(entries, run.params)
    print(
        "| variant | asked_only | rounds | sure | "
        + " | ".join(f"{kind}: {mark}" for kind in KINDS for mark in MARKS)
        + " |"
    )
    print("|---" * (4 + len(KINDS) * len(MARKS)) + "|")
    for change in EVIDENCE:
        settings = run.params.attribution.model_copy(update=change)
        valued = attribute(played, entries, settings)
        counted = marks(sure(valued) if settings.sure else valued, known, settings.threshold)
        named = " | ".join(str(value) for value in change.values())
        print(f"| {named} | " + " | ".join(str(counted[kind, mark]) for kind in KINDS for mark in MARKS) + " |")
    values = {m: one.value for m, one in attribute(played, entries, run.params.attribution).items()}
    print("\n".join(["", *by_round(entries, values, known, run.params.attribution.threshold)]))


if __name__ == "__main__":
    main()
