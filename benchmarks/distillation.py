"""Scoring of one distillation step: batches cut by cost against batches of equal number, same items, same run.

    python -m benchmarks.distillation [--repeats 9]

The reference is what was done before: items sorted by the student's length, in as few batches as `slow.microbatch`
allows, the teacher's prompts padded in the same batches. Lengths are drawn as a round of the preset `laptop` has them:
students of 40 (act) to 80 tokens (act with memory, write), teachers of 120 to 160 with a long tail.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from opd_evolver.policy.local import LocalPolicy
from opd_evolver.policy.weights import resolve
from opd_evolver.slow.batches import Item, microbatches
from opd_evolver.slow.forward import ReplyLogits, lay_out, logits_in_runs, overhead
from opd_evolver.slow.objectives.forward_kl import forward_kl
from opd_evolver.slow.teacher import frozen_copy

# (examples in a process's half of a step, mean and least tokens of the student's prompt, mean of the hindsight)
KINDS = ((14, 40, 12, 78), (8, 78, 25, 85), (5, 60, 15, 8), (3, 85, 30, 9))
REPLY = 13
CPU = torch.device("cpu")


def items(rng: np.random.Generator) -> list[Item]:
    """One process's share of a step."""
    made = []
    for n, mean, least, hint in KINDS:
        for _ in range(n):
            student = least + int(rng.gamma(2.0, (mean - least) / 2.0))
            told = 4 + int(rng.gamma(2.0, hint / 2.0))
            ids = tuple(int(one) for one in rng.integers(10, 400, student))
            more = tuple(int(one) for one in rng.integers(10, 400, told))
            made.append(Item("act", str(len(made)), ids, (*more, *ids), tuple([11] * REPLY)))
    return made


def equal(found: Sequence[Item], size: int) -> list[list[Item]]:
    """As few batches as possible, all of like number."""
    ordered = sorted(found, key=lambda item: len(item.student_ids) + len(item.reply))
    n = -(-len(ordered) // size)
    return [ordered[at * len(ordered) // n : (at + 1) * len(ordered) // n] for at in range(n)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    policy = LocalPolicy.load(resolve("seed"), max_prompt_tokens=768, threads=1)
    score, teacher = ReplyLogits(policy.model), frozen_copy(policy.model)
    found = items(np.random.default_rng(0))

    def step(batches: Sequence[Sequence[Item]], in_runs: bool) -> float:
        began = time.perf_counter()
        policy.model.train()
        for batch in batches:
            replies, told = [one.reply for one in batch], [one.teacher_ids for one in batch]
            target = (
                logits_in_runs(teacher.logits, told, replies, CPU)[0]
                if in_runs
                else teacher.logits(lay_out(told, replies, CPU))
            )
            layout = lay_out([one.student_ids for one in batch], replies, CPU)
            forward_kl(score(layout), target, layout.targets).sum().backward()
        policy.model.zero_grad(set_to_none=True)
        return time.perf_counter() - began

    ways: dict[str, Callable[[], float]] = {
        "equal batches (reference)": lambda: step(equal(found, 16), False),
        "student's cut": lambda: step(microbatches(found, 16, overhead(CPU)), False),
        "both cut": lambda: step(microbatches(found, 16, overhead(CPU)), True),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(asked.repeats + 1):
        for name, way in ways.items():
            times[name].append(way())
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}", file=sys.stderr)
    reference = statistics.median(next(iter(times.values()))[1:])
    for name, each in times.items():
        median = statistics.median(each[1:])
        print(f"{name:28} {median * 1e3:7.0f} ms  {reference / median:5.2f} times as fast")


if __name__ == "__main__":
    main()
