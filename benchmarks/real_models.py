"""Checkpoints of the size of a small real model through the whole path, without a download.

    python -m benchmarks.real_models [--kinds qwen3,llama] [--millions 20] [--folder FOLDER]

A stock Qwen3 and a stock Llama of about so many random parameters, with the chat templates of their kind, go through
`opd try`, one round with LoRA (a script plays the fast loop in their tokens, since random weights win nothing),
`opd export` as merged weights and as adapter, and `Agent.load`. Needs the development group (tests/).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import checkpoints  # noqa: E402
import driver  # noqa: E402

OPD = [sys.executable, "-c", "from opd_evolver.cli import main; raise SystemExit(main())"]
ROUND: dict[str, Any] = {
    **driver.SMALL,
    "environments.domains": ["sql"],
    "fast.tasks_per_domain": 6,
    "fast.act_max_new_tokens": 16,
    "fast.select_max_new_tokens": 8,
    "fast.write_max_new_tokens": 8,
    "fast.withhold_probability": 0.4,
    "policy.dialect": "instruct",
    "policy.max_prompt_tokens": 8000,
    "policy.threads": 2,
    "slow.threads": 2,
    "slow.adapter": "lora",
    "slow.microbatch": 2,
}


def opd(*words: str, folder: Path) -> str:
    """Standard output of a command; its one-line error ends the benchmark."""
    done = subprocess.run([*OPD, *words], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"opd {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def measure(kind: str, millions: float, folder: Path) -> dict[str, Any]:
    """Every figure of one kind."""
    base = checkpoints.sized(kind, folder / "base", millions)
    shown = ("--env", "sql", "--policy", str(base), "--tasks", "3", "--set", "policy.max_prompt_tokens=8000", "--json")
    tried = json.loads(opd("try", *shown, "--set", "fast.act_max_new_tokens=64", folder=folder))
    began = time.perf_counter()
    with driver.Children() as children:
        code = children.run(folder, "real", {**ROUND, "policy.path": str(base)}, puppet="instruct")
    if code:
        raise SystemExit(driver.said(folder)[-2000:])
    seconds = time.perf_counter() - began
    summary = json.loads((folder / "runs/real/rounds/round-001.json").read_text(encoding="utf-8"))
    for form in ("merged", "adapter"):
        opd("export", "real", "--round", "1", "--form", form, "--to", form, folder=folder)
    said = [_acted(folder / form) for form in ("merged", "adapter")]
    return {
        "kind": kind,
        "parameters": _parameters(base),
        "try tokens/s": (tried["n_prompt_tokens"] + tried["n_reply_tokens"]) / tried["seconds"],
        "try peak, MiB": tried["peak_bytes"] / 2**20,
        "round, s": seconds,
        "LoRA steps": summary["distil"]["steps"],
        "weights of the round": summary["digests"]["weights"][:12],
        "round peak, MiB": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**10,
        "adapter, MiB": _mib(folder / "adapter" / "adapter"),
        "merged, MiB": _mib(folder / "merged" / "policy"),
        "merged and adapter act alike": said[0] == said[1],
    }


def _acted(folder: Path) -> str:
    from opd_evolver.agent import Agent

    with Agent.load(folder) as agent:
        return agent.act("boru count late", domain="sql", scope="boru")


def _parameters(folder: Path) -> int:
    from opd_evolver.policy.weights import tensors_of, weight_files

    return sum(math.prod(one.shape) for file in weight_files(folder) for one in tensors_of(file).values())


def _mib(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", default="qwen3,llama")
    parser.add_argument("--millions", type=float, default=20.0)
    parser.add_argument("--folder", type=Path, help="kept; default: a temporary one")
    asked = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="opd-real-") as temporary:
        found = []
        for kind in asked.kinds.split(","):
            folder = (asked.folder or Path(temporary)) / kind
            folder.mkdir(parents=True)
            found.append(measure(kind, asked.millions, folder))
    for name in found[0]:
        print(f"| {name} | " + " | ".join(_cell(one[name]) for one in found) + " |")


def _cell(value: Any) -> str:
    return f"{value:,.1f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
