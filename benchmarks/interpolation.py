"""Between the base policy and a run's last one: what distillation gave and what it cost, as weights are mixed.

    python -m benchmarks.interpolation RUN... [--alphas 1 0.9 0.8 0.6] [--split deploy-val] [--tasks 100] [--fresh]

Weights are base + alpha (last - base), after Wortsman et al. 2022 (Robust fine-tuning of zero-shot models); nothing
is trained. Each mix acts alone and with the run's last memory, beside the base with the same memory, on the same
tasks; *lost* and *gained* count tasks that the one of both solves and the other does not. Retention is measured on
novel-test. Over several runs intervals are clustered by family and seed. *at most* is what the base with memory or the
last policy alone solves: what distillation could add to memory if it cost nothing. With --fresh each mix also fills a
memory of its own on families that were never deployed, and is measured with it. Some three minutes a mix and run on
two cores, with --fresh some six; what was measured is kept.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from opd_evolver import lineage
from opd_evolver.benchmark.columns import ResultStore
from opd_evolver.benchmark.gate import RETENTION_METRICS
from opd_evolver.benchmark.measure import Benchmark, Contestant
from opd_evolver.benchmark.pooled import pooled, pooled_difference
from opd_evolver.benchmark.report import interval_text
from opd_evolver.benchmark.statistics import Estimate, Outcome, Unit, units_of
from opd_evolver.environments import registry
from opd_evolver.lineage import Run
from opd_evolver.policy.weights import weight_files, weights_digest
from opd_evolver.records import Split
from opd_evolver.rollout.runner import EnvironmentPool
from opd_evolver.steps import plan, prepare, snapshots
from opd_evolver.steps.evidence import memory_of, source

KEPT = Path(".opd/interpolation")
Outcomes = dict[str, tuple[Outcome, ...]]


def mix(base: Path, last: Path, alpha: float, target: Path) -> Path:
    """A copy of `last` with weights base + alpha (last - base), in the bytes' own type."""
    if len(files := weight_files(last)) != 1:
        raise SystemExit(f"{last} has {len(files)} weight files; expected one")
    shutil.copytree(last, target)
    tensors = [{k: v for file in weight_files(folder) for k, v in load_file(file).items()} for folder in (base, last)]
    mixed: dict[str, torch.Tensor] = {}
    for name, new in tensors[1].items():
        old = tensors[0][name].float()
        mixed[name] = (old + alpha * (new.float() - old)).to(new.dtype)
    save_file(mixed, target / files[0].name, metadata={"format": "pt"})
    return target


class Mixes:
    """What the mixes of one run come to."""

    def __init__(
        self, run: Run, split: Split, n_tasks: int, scratch: Path, pool: EnvironmentPool, *, fresh: bool = False
    ) -> None:
        last = snapshots.last_finished(run)
        self._run, self._scratch = run, scratch
        self._base, self._last = Path(plan.base_policy(run)[0]), snapshots.sound(run, last) / "policy"
        self._memory = memory_of(run, last)
        self._bench = Benchmark(run.params, pool, ResultStore(KEPT))
        self._tasks = self._bench.tasks(split, n_tasks)
        self._strange = self._bench.tasks("novel-test", n_tasks) if fresh else None

    def measure(self, alpha: float) -> tuple[Outcomes, dict[str, Estimate]]:
        """Outcomes alone and with memory, and the estimates of retention."""
        with tempfile.TemporaryDirectory(dir=self._scratch) as place:
            folder = mix(self._base, self._last, alpha, Path(place) / "policy")
            policy = source(self._run, folder, weights_digest(folder))
            contestant = Contestant(policy, self._memory)
            found = {
                name: self._bench.column(contestant, self._tasks, with_memory=name == "memory").measured.outcomes
                for name in ("alone", "memory")
            }
            if self._strange is not None:
                found["fresh"] = self._bench.fresh(policy, self._strange).measured.outcomes
            kept = self._bench.retention(policy, "novel-test", "deploy-test")
        return found, dict(kept.metrics) if kept else {}


def counts(one: Outcomes, other: Outcomes) -> tuple[int, int, float]:
    """Tasks that `other` loses and gains with memory, and the share that `one` with memory or `other` alone solves."""
    before, after, alone = (
        {out.task_id: bool(out.success) for out in outcomes}
        for outcomes in (one["memory"], other["memory"], other["alone"])
    )
    lost = sum(before[task] and not after[task] for task in before)
    gained = sum(after[task] and not before[task] for task in before)
    return lost, gained, sum(before[task] or alone[task] for task in before) / len(before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--alphas", nargs="+", type=float, default=[1.0, 0.9, 0.8, 0.6])
    parser.add_argument("--split", choices=("deploy-val", "deploy-test"), default="deploy-val")
    parser.add_argument("--tasks", type=int, default=100, help="a domain (default 100)")
    parser.add_argument("--fresh", action="store_true", help="a memory of its own on families never deployed, too")
    asked = parser.parse_args()
    root = prepare.artifact_root()
    found: dict[float, list[tuple[Outcomes, dict[str, Estimate]]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in asked.runs:
            run = lineage.open_run(root, name)
            with EnvironmentPool(registry.loader(run.params.environments)) as pool:
                mixes = Mixes(run, asked.split, asked.tasks, Path(scratch), pool, fresh=asked.fresh)
                for alpha in (0.0, *asked.alphas):
                    found.setdefault(alpha, []).append(mixes.measure(alpha))
    print("\n".join(table(found)))


def table(found: dict[float, list[tuple[Outcomes, dict[str, Estimate]]]]) -> list[str]:
    """A line for each alpha; the first is the base's."""

    def units(alpha: float, column: str) -> Sequence[Sequence[Unit]]:
        return [units_of(outcomes[column]) for outcomes, _ in found[alpha]]

    fresh = ["fresh memory, novel"] if "fresh" in found[0.0][0][0] else []
    head = ["alpha", "alone", "with memory", "minus base with memory", "lost/gained", "at most", *fresh]
    head += RETENTION_METRICS
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for alpha, runs in found.items():
        told = [counts(base, mixed) for (base, _), (mixed, _) in zip(found[0.0], runs, strict=True)]
        cells = [
            f"{alpha:g}",
            interval_text(pooled(units(alpha, "alone"))),
            interval_text(pooled(units(alpha, "memory"))),
            interval_text(pooled_difference(units(alpha, "memory"), units(0.0, "memory")), signed=True),
            " ".join(f"{lost}/{gained}" for lost, gained, _ in told),
            " ".join(f"{share:.3f}" for *_, share in told),
            *(interval_text(pooled(units(alpha, "fresh"))) for _ in fresh),
        ]
        for name in RETENTION_METRICS:
            means = [kept[name].mean if name in kept else None for _, kept in runs]
            cells.append(" ".join("-" if mean is None else f"{mean:.3f}" for mean in means))
        lines.append("| " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    main()
