"""Our batched generation against transformers' `model.generate`, same batch, same run, alternating.

    python benchmarks/generation.py [--policy FOLDER] [--threads 1] [--json]

Greedy rows must give the same tokens; sampled rows cannot (other random numbers). Without --policy a
random Lfm2 of the seed policy's shape is measured (width 96, conv conv attn conv attn, 0.5 M parameters).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from opd_evolver.policy.local import LocalPolicy
from opd_evolver.records import Sampling

N_REQUESTS = 64
N_NEW = 16
N_REPEATS = 9


def prompts_of(n_distinct: int, n_vocabulary: int) -> list[tuple[int, ...]]:
    """64 prompts of 90-110 tokens; `n_distinct` of them differ."""
    rng = np.random.Generator(np.random.Philox(key=0))
    distinct = [tuple(rng.integers(8, n_vocabulary - 2, rng.integers(90, 111)).tolist()) for _ in range(n_distinct)]
    return [one for one in distinct for _ in range(N_REQUESTS // n_distinct)]


def stock(policy: LocalPolicy, prompts: list[tuple[int, ...]], sampling: Sampling) -> list[tuple[int, ...]]:
    """The same batch by `model.generate`, log-probabilities computed as well."""
    width = max(map(len, prompts))
    pad = policy.tokenizer.pad_token_id or 0
    ids = torch.tensor([[pad] * (width - len(one)) + list(one) for one in prompts])
    mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in prompts])
    choice: dict[str, Any] = {"do_sample": False}
    if sampling.temperature > 0:
        choice = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    with torch.inference_mode():
        out = policy.model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=N_NEW,
            min_new_tokens=N_NEW,
            eos_token_id=None,
            pad_token_id=pad,
            return_dict_in_generate=True,
            output_logits=True,
            **choice,
        )
        replies = out.sequences[:, width:]
        for step, logits in enumerate(out.logits):
            logits.float().log_softmax(-1).gather(1, replies[:, step : step + 1])
    return [tuple(row) for row in replies.tolist()]


def medians(ours: Callable[[], Any], theirs: Callable[[], Any]) -> dict[str, float]:
    """Seconds of both, alternating, so that a busy machine slows both alike."""
    seconds: dict[str, list[float]] = {"ours": [], "stock": []}
    for repeat in range(N_REPEATS + 1):
        for name, run in (("ours", ours), ("stock", theirs)):
            start = time.perf_counter()
            run()
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    ratios = [b / a for a, b in zip(seconds["ours"], seconds["stock"], strict=True)]
    return {
        "ours_s": round(statistics.median(seconds["ours"]), 4),
        "stock_s": round(statistics.median(seconds["stock"]), 4),
        "times_faster": round(statistics.median(ratios), 2),
    }


def seed_shaped(folder: Path) -> Path:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    import checkpoints

    return checkpoints.tiny_lfm2(folder, width=96)


def measure(policy: LocalPolicy) -> list[dict[str, Any]]:
    """One row a case: greedy and sampled, every prompt different and each prompt four times."""
    rows = []
    seeds = list(range(N_REQUESTS))
    policy.encoder.end_ids = frozenset()
    torch.set_num_threads(policy.threads)
    for n_distinct in (N_REQUESTS, N_REQUESTS // 4):
        prompts = prompts_of(n_distinct, policy.model.config.vocab_size)
        for sampling in (Sampling(temperature=0.0, max_new_tokens=N_NEW), Sampling(max_new_tokens=N_NEW)):

            def ours(prompts: Any = prompts, sampling: Sampling = sampling) -> Any:
                return policy.generate_ids(prompts, sampling, seeds)

            def theirs(prompts: Any = prompts, sampling: Sampling = sampling) -> Any:
                return stock(policy, prompts, sampling)

            row: dict[str, Any] = {"distinct_prompts": n_distinct, "temperature": sampling.temperature}
            if sampling.temperature == 0:
                row["same_tokens"] = ours() == theirs()
            rows.append({**row, **medians(ours, theirs)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--policy", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as room:
        folder = options.policy or seed_shaped(Path(room) / "lfm2")
        rows = measure(LocalPolicy.load(folder, threads=options.threads))
    for row in rows:
        print(json.dumps(row) if options.json else "  ".join(f"{key} {value}" for key, value in row.items()))


if __name__ == "__main__":
    main()
