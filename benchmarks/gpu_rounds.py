"""Whole rounds with models of the size of Qwen3-0.6B and Qwen3-4B on one GPU, without a download.

    python -m benchmarks.gpu_rounds [--sizes 0.6b,4b] [--device cuda] [--folder FOLDER] [--kinds try,own,scripted]

Weights are random, shapes, chat template, dialect (`instruct`) and code paths are the real ones. Three parts a size:

try       `opd try`: two tasks, one after the other, as a single agent works.
own       `opd run --local` with `flows.placement=subprocess`: the model plays the fast loop itself. Random weights win
          nothing, so nothing is distilled.
scripted  the same round with a script in the place of the agent, so that there is something to distil with LoRA
          (the paper's rank and modules).

All parts run at once unless `--one-by-one` is given: then speeds are what one job has for itself.

Without a GPU `--device cpu --sizes 20m` tries the script itself. Needs the development group (tests/).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.real_models import ROOT, checkpoints, driver, opd
from opd_evolver.benchmark.results_page import side_by_side
from opd_evolver.durable import write_text

PROJECT = ("flows", "params.yaml", "prefect.yaml")
SMALL: dict[str, Any] = {
    **driver.SMALL,
    "environments.domains": ["sql"],
    "memory.candidates": 8,
    "memory.max_selected": 4,
    "fast.tasks_per_domain": 6,
    "fast.rollouts_per_task": 4,
    "fast.wave_tasks": 6,
    "fast.maintain_every_tasks": 6,
    "fast.microbatch_rollouts": 24,
    "fast.act_max_new_tokens": 48,
    "fast.select_max_new_tokens": 16,
    "fast.write_max_new_tokens": 32,
    "fast.withhold_probability": 0.4,
    "benchmark.test_tasks_per_domain": 1,
    "benchmark.val_tasks_per_domain": 1,
    "benchmark.probe_tasks_per_domain": 1,
    "policy.dtype": "bfloat16",
    "policy.dialect": "instruct",
    "policy.max_prompt_tokens": 8192,
    "slow.adapter": "lora",
    "slow.steps": 12,
    "slow.microbatch": 4,
    "slow.anchor_examples": 8,
    "flows.placement": "subprocess",
}


def tried(base: Path, folder: Path, overrides: dict[str, Any]) -> dict[str, Any]:
    """Figures of `opd try`."""
    folder.mkdir()
    asked = ("--env", "sql", "--policy", str(base), "--tasks", "2", "--json")
    names = ("policy.dtype", *(f"fast.{one}_max_new_tokens" for one in ("act", "select", "write")))
    caps = [word for name in names for word in ("--set", f"{name}={overrides[name]}")]
    found = json.loads(opd("try", *asked, *caps, folder=folder))
    return {
        "try: prompt tokens": found["n_prompt_tokens"],
        "try: reply tokens": found["n_reply_tokens"],
        "try: tokens/s": (found["n_prompt_tokens"] + found["n_reply_tokens"]) / found["seconds"],
        "try: reply tokens/s": found["n_reply_tokens"] / found["seconds"],
        "try: peak, GiB": found["peak_bytes"] / 2**30,
    }


def own(base: Path, folder: Path, overrides: dict[str, Any]) -> dict[str, Any]:
    """A round through the real flows, played by the model itself."""
    folder.mkdir()
    for name in PROJECT:
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)
    given = {**overrides, "policy.path": str(base)}
    pairs = [word for key, value in given.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    began = time.perf_counter()
    opd("run", "--local", "--preset", "micro", "--name", "m", *pairs, folder=folder)
    return _of_steps("own", folder, time.perf_counter() - began)


def scripted(base: Path, folder: Path, overrides: dict[str, Any]) -> dict[str, Any]:
    """A round whose fast loop a script plays; every other step is a child process on the device."""
    began = time.perf_counter()
    with driver.Children() as children:
        code = children.run(folder, "m", {**overrides, "policy.path": str(base)}, puppet="instruct")
    if code:
        raise SystemExit(driver.said(folder)[-3000:])
    return _of_steps("scripted", folder, time.perf_counter() - began)


def _of_steps(kind: str, folder: Path, seconds: float) -> dict[str, Any]:
    """Time and memory of each step on the device, and tokens per second where a model worked."""
    steps = folder / "runs/m/steps"
    results = {
        str(path.parent.relative_to(steps)): json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(steps.glob("round-*/**/result.json"))
    }
    found: dict[str, Any] = {f"{kind}: the run, s": seconds}
    for name, one in results.items():
        if one["peak_device_bytes"]:
            found[f"{kind}: {name}, s"] = one["seconds"]
            found[f"{kind}: {name}, GPU peak, GiB"] = one["peak_device_bytes"] / 2**30
    played = sum(one["seconds"] for one in results.values() if one["step"] in ("fast_shard", "barrier"))
    if kind == "own":
        found["own: fast loop, tokens/s"] = results["round-001/snapshot"]["metrics"]["tokens"] / played
    distilled = results["round-001/distil"]["metrics"]
    found[f"{kind}: distillation"] = distilled.get("note") or f"{distilled['steps']} steps"
    if "tokens_per_s" in distilled:
        found[f"{kind}: distillation, tokens/s"] = distilled["tokens_per_s"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="0.6b,4b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--folder", type=Path, help="kept; default: a temporary one")
    parser.add_argument("--kinds", default="try,own,scripted")
    parser.add_argument("--one-by-one", action="store_true")
    parser.add_argument("--out", type=Path, help="also write the figures here: `opd bench rounds` shows docs/gpu.json")
    asked = parser.parse_args()
    os.environ["OPD_DEVICE"] = asked.device
    kinds = asked.kinds.split(",")
    with tempfile.TemporaryDirectory(prefix="opd-gpu-") as temporary:
        folder = (asked.folder or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        overrides = {**SMALL, "policy.dtype": "bfloat16" if asked.device != "cpu" else "float32"}
        bases = {size: made(size, folder / f"base-{size}", asked.device) for size in asked.sizes.split(",")}
        found: dict[str, dict[str, Any]] = {size: {} for size in bases}
        parts = [(kind, size) for kind in kinds for size in bases]
        with ThreadPoolExecutor(1 if asked.one_by_one else len(parts)) as pool:
            begun = {
                pool.submit(KINDS[kind], bases[size], folder / f"{kind}-{size}", overrides): size
                for kind, size in parts
            }
            for one in as_completed(begun):
                _tell(begun[one], found[begun[one]], one.result())
    where = _table(found, asked.device)
    if asked.out is not None:
        command = f"python -m benchmarks.gpu_rounds {shlex.join(sys.argv[1:])}"
        tree = {"schema_version": 1, "command": command, "date": date.today().isoformat(), "machine": where}
        write_text(asked.out, json.dumps({**tree, "figures": found}, indent=1) + "\n")


KINDS: dict[str, Callable[..., dict[str, Any]]] = {"try": tried, "own": own, "scripted": scripted}


def made(size: str, folder: Path, device: str) -> Path:
    began = time.perf_counter()
    base = (
        checkpoints.stock_qwen3(size, folder, device)
        if size in checkpoints.STOCK_QWEN3
        else checkpoints.sized("qwen3", folder, float(size.rstrip("m")))
    )
    print(f"{size}: made in {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    return base


def _tell(size: str, known: dict[str, Any], more: dict[str, Any]) -> None:
    known |= more
    print(size, json.dumps(more), file=sys.stderr, flush=True)


def _table(found: dict[str, dict[str, Any]], device: str) -> str:
    """Print the figures; returns what they were measured on."""
    import torch

    where = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or "cpu"
    where = f"{where}, {os.cpu_count()} cores, torch {torch.__version__}, Python {platform.python_version()}"
    print(f"{where}\n")
    print("\n".join(side_by_side(found)))
    return where


if __name__ == "__main__":
    main()
