"""The largest batch and the largest training step that a preset allows, on one GPU, without a download.

    python -m benchmarks.gpu_budgets [--preset qwen3-4b-1gpu] [--size 4b] [--device cuda] [--parts serve,again,kept]

A model in the shape of Qwen3 with random weights, which end no reply early: prompts have up to
`policy.max_prompt_tokens` tokens, replies their whole budget. Each part is a process of its own:

serve   a batch of `fast.microbatch_rollouts` different act prompts is answered.
again   one step of distillation as the preset has it, with `slow.gradient_checkpointing=true`.
kept    the same with `false`.

What does not fit is told as that. Without a GPU `--device cpu --size 20m --set policy.max_prompt_tokens=256` tries the
script itself. Needs the development group (tests/).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from benchmarks.gpu_rounds import made
from benchmarks.real_models import ROOT
from opd_evolver.params import Params, load_preset, merge, parse_set
from opd_evolver.policy.local import LocalPolicy
from opd_evolver.records import ABILITIES, Ability, Example, Sampling
from opd_evolver.slow import trainer
from opd_evolver.slow.anchor import Anchor
from opd_evolver.slow.examples import write_lines, write_set
from opd_evolver.slow.train import Distillation, distil

PARTS = ("serve", "again", "kept")
# What hindsight adds to the teacher's prompts: a won trajectory or a few values.
HINDSIGHT = 512
# Which pieces they are made of does not matter; every vocabulary has these.
PIECES = (100, 300)


def prompts(params: Params, n: int, seed: int) -> list[tuple[int, ...]]:
    """Of seven eighths of the limit to all of it, none like another, the longest last."""
    rng, most = np.random.default_rng(seed), params.policy.max_prompt_tokens
    lengths = [*sorted(rng.integers(most * 7 // 8, most, n - 1)), most] if n else []
    return [tuple(int(one) for one in rng.integers(*PIECES, length)) for length in lengths]


def budget(params: Params, ability: Ability) -> int:
    """Most tokens of a reply."""
    fast = params.fast
    return {"act": fast.act_max_new_tokens, "select": fast.select_max_new_tokens}.get(
        ability, fast.write_max_new_tokens
    )


def serve(base: Path, params: Params, device: str) -> dict[str, Any]:
    """Seconds, tokens per second of the replies."""
    policy = LocalPolicy.load(
        base, device=device, dtype=params.policy.dtype, max_prompt_tokens=params.policy.max_prompt_tokens
    )
    asked = prompts(params, params.fast.microbatch_rollouts, seed=0)
    sampling = Sampling(
        temperature=params.fast.temperature, top_p=params.fast.top_p, max_new_tokens=budget(params, "act")
    )
    began = time.perf_counter()
    policy.generate_ids(asked, sampling.model_copy(update={"max_new_tokens": 1}), range(len(asked)))
    read = time.perf_counter() - began
    began = time.perf_counter()
    replies = policy.generate_ids(asked, sampling, range(len(asked)))
    seconds = time.perf_counter() - began
    n_prompt, n_reply = (sum(len(one) for one in found) for found in (asked, replies))
    return {
        "prompts": len(asked),
        "prompt tokens": n_prompt,
        "reply tokens": n_reply,
        "prompts read, s": read,
        "whole batch, s": seconds,
        "prompt tokens/s": n_prompt / read,
        "reply tokens/s": n_reply / max(seconds - read, 1e-9),
    }


def examples(params: Params) -> list[Example]:
    """What a step is drawn from: as many of each ability as it wants, prompts and replies as long as they can be."""
    hint = PIECES[:1] * HINDSIGHT
    return [
        Example(
            example_id=f"{ability}/{number}",
            ability=ability,
            rollout_id=f"{ability}{number}",
            group="g",
            student_ids=ids,
            teacher_ids=hint + ids,
            hindsight_spans=((0, HINDSIGHT),),
            max_new_tokens=budget(params, ability),
        )
        for place, ability in enumerate(ABILITIES)
        for number, ids in enumerate(prompts(params, params.slow.mixture.get(ability, 0), seed=1 + place))
    ]


def step(base: Path, params: Params, device: str, folder: Path) -> dict[str, Any]:
    """Seconds of one step of distillation, through `slow.train.distil`."""
    asked = examples(params)
    write_set(folder / "examples", asked, [])
    reply = PIECES[:1] * budget(params, "act")
    anchors = [
        Anchor(anchor_id=str(number), kind="read", ability="act", prompt_ids=ids, reply_ids=reply)
        for number, ids in enumerate(prompts(params, params.slow.mixture["anchor"], seed=9))
    ]
    write_lines(folder / "anchors.jsonl", anchors)
    seconds: list[float] = []
    plain = trainer.Trainer.step

    def timed(self: trainer.Trainer, number: int) -> Any:
        began = time.perf_counter()
        meter = plain(self, number)
        seconds.append(time.perf_counter() - began)
        return meter

    what = Distillation(
        policy_path=base,
        base_path=base,
        examples_folder=folder / "examples",
        target=folder / "policy",
        work=folder / "work",
        params=params,
        round=1,
        device=device,
        anchor_file=folder / "anchors.jsonl",
    )
    with patch.object(trainer.Trainer, "step", timed):
        report = distil(what)
    return {"examples": len(asked), "anchors": len(anchors), **report.metrics["tokens"], "step, s": seconds[-1]}


def part(name: str, base: Path, params: Params, device: str) -> dict[str, Any]:
    """One part, in this process; with its peaks of the device's memory."""
    with tempfile.TemporaryDirectory(prefix="opd-budget-") as folder:
        try:
            if name == "serve":
                found = serve(base, params, device)
            else:
                kept = {"slow.gradient_checkpointing": name == "again", "slow.steps": 1}
                found = step(base, merge(params, kept, "benchmark"), device, Path(folder))
        except torch.OutOfMemoryError as error:
            found = {"out of memory": str(error).partition(".")[0]}
    if device == "cuda":
        found["GPU peak, GiB"] = torch.cuda.max_memory_allocated() / 2**30
        found["GPU peak with what the allocator keeps, GiB"] = torch.cuda.max_memory_reserved() / 2**30
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="qwen3-4b-1gpu")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--size", default="4b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--base", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    params = merge(load_preset(asked.preset), parse_set(asked.set), "--set")
    if asked.base is not None:
        print(json.dumps(part(asked.parts, asked.base, params, asked.device)))
        return
    with tempfile.TemporaryDirectory(prefix="opd-budgets-") as folder:
        base = made(asked.size, Path(folder) / "base", asked.device)
        if asked.device == "cuda":
            torch.cuda.empty_cache()
            print(torch.cuda.get_device_name(), torch.__version__, flush=True)
        for name in asked.parts.split(","):
            words = [*sys.argv[1:], "--parts", name, "--base", str(base)]
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.gpu_budgets", *words],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            print(name, done.stdout.splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
