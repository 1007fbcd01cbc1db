"""Memory stores side by side: our embedded index, Weaviate, LanceDB, and a JSON file rewritten for each memory.

    python -m benchmarks.memory [--sizes 1000,10000,100000] [--stores embedded,weaviate] [--seed 0] [--json]

Each store and size runs in a process of its own, one after the other. LanceDB: `uv pip install -c constraints.txt
--group bench`; Weaviate: `bash infra/weaviate/install.sh`. What is missing is said in the table. All get the same
entries, queries and vectors (the default embedder's), embed what they are given, and return the 50 best.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import attribution
from benchmarks.memory_measure import STORES

Found = dict[str, Any]
Speed = dict[str, dict[str, attribution.Seconds]]
SIZES = (1_000, 10_000, 100_000)
GOAL_ADDS, GOAL_SEARCH_MS, GOAL_IN_SCOPE_MS, GOAL_ATTRIBUTION_S = 100.0, 40.0, 5.0, 1.0


def _ms(key: str, *names: str) -> Callable[[Found], str]:
    return lambda found: " / ".join(_round(found[key][name]) for name in names)


def _one(key: str) -> Callable[[Found], str]:
    return lambda found: _round(found[key])


def _round(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


COLUMNS: dict[str, Callable[[Found], str]] = {
    "add, ms (CPU)": _ms("add", "p50", "cpu_p50"),
    "in a wave of 100, ms each (CPU)": _ms("add_in_wave", "p50", "cpu_p50"),
    "search p50 / p95, ms (CPU)": _ms("search", "p50", "p95", "cpu_p50"),
    "in a scope p50 / p95, ms (CPU)": _ms("search_in_scope", "p50", "p95", "cpu_p50"),
    "after an add, ms": _ms("search_after_add", "p50"),
    "first search, s": _one("first_search_s"),
    "fill, s": _one("fill_s"),
    "reindex, s": _one("reindex_s"),
    "snapshot, s": _one("snapshot_s"),
    "restore, s": _one("restore_s"),
    "RSS, MiB": _one("rss_mib"),
    "disk, MiB": _one("disk_mib"),
}


def run(store: str, size: int, seed: int, scopes: int) -> Found:
    """One measurement in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.memory_measure", "--store", store, "--size", str(size)]
    command += ["--seed", str(seed), "--scopes", str(scopes)]
    began = os.getloadavg()[0]
    print(f"{store} at {size} …", file=sys.stderr, flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout, end="", file=sys.stderr, flush=True)
    if done.returncode:
        return {"store": store, "size": size, "not_measured": f"its process ended with {done.returncode}, see above"}
    return {**json.loads(done.stdout.splitlines()[-1]), "load": [began, os.getloadavg()[0]]}


def show(found: Sequence[Found]) -> None:
    """A table for each size."""
    for size in dict.fromkeys(one["size"] for one in found):
        print(f"\n### {size:,} memories\n".replace(",", " "))
        rows = [one for one in found if one["size"] == size]
        names = [name.replace(" (CPU)", " / CPU") for name in COLUMNS]
        print(f"| store | {' | '.join(names)} |\n|---{'|---' * len(names)}|")
        for one in rows:
            if "not_measured" in one:
                print(f"| {one['store']} | **not measured: {one['not_measured']}** {'| ' * len(names)}|")
            else:
                print(f"| {one['store']} | {' | '.join(cell(one) for cell in COLUMNS.values())} |")


def goals(found: Sequence[Found], speed: Speed) -> list[tuple[str, str, bool | None]]:
    """What was asked for, what was found (wall clock), and whether it holds; None: not measured."""
    known = {(one["store"], one["size"]): one for one in found if "not_measured" not in one}
    told: list[tuple[str, str, bool | None]] = []
    ours = known.get(("embedded", 10_000))
    for name in ("json", "json-text"):
        other = known.get((name, 10_000))
        for key in ("add", "add_in_wave"):
            asked = f"{key} at 10 000 at least {GOAL_ADDS:.0f} times as fast as {name}"
            if ours and other:
                wall, cpu = (other[key][what] / ours[key][what] for what in ("p50", "cpu_p50"))
                told.append((asked, f"{wall:.0f} times (CPU {cpu:.0f})", wall >= GOAL_ADDS))
            else:
                told.append((asked, "not measured", None))
    ours = known.get(("embedded", 100_000))
    for key, most in (("search", GOAL_SEARCH_MS), ("search_in_scope", GOAL_IN_SCOPE_MS)):
        asked = f"{key} p50 at 100 000 at most {most:.0f} ms"
        if ours:
            wall, cpu = ours[key]["p50"], ours[key]["cpu_p50"]
            told.append((asked, f"{wall:.1f} ms (CPU {cpu:.1f})", wall <= most))
        else:
            told.append((asked, "not measured", None))
    slowest = max(one for cells in speed.values() for name, one in cells.items() if "attribute" in name)
    asked = f"attribution, slowest variant, at most {GOAL_ATTRIBUTION_S:.0f} s"
    return [*told, (asked, f"{slowest.wall:.2f} s (CPU {slowest.cpu:.2f})", slowest.wall <= GOAL_ATTRIBUTION_S)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="comma-separated")
    parser.add_argument("--stores", default=",".join(STORES), help=f"of {', '.join(STORES)}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scopes", type=int, default=200, help="entries are spread evenly over so many")
    parser.add_argument("--json", action="store_true", help="the figures instead of tables")
    asked = parser.parse_args()
    stores, sizes = asked.stores.split(","), [int(one) for one in asked.sizes.split(",")]
    unknown = [one for one in stores if one not in STORES]
    if unknown:
        parser.error(f"unknown store `{unknown[0]}`; known: {', '.join(STORES)}")
    found = []
    for size in sizes:
        for store in stores:
            found.append(run(store, size, asked.seed, asked.scopes))
    print("attribution …", file=sys.stderr, flush=True)
    speed = attribution.speed()
    checked = goals(found, speed)
    if asked.json:
        machine = {"cores": os.cpu_count(), "load": os.getloadavg()}
        print(json.dumps({"machine": machine, "stores": found, "attribution": speed, "goals": checked}))
        return
    loads = [load for one in found for load in one.get("load", ())]
    busy = f"load average {min(loads):.1f} to {max(loads):.1f}" if loads else "load average unknown"
    print(
        f"{os.cpu_count()} cores, {busy}; seed {asked.seed}, {asked.scopes} scopes; `CPU`: of the store's own process"
    )
    show(found)
    attribution.show_speed(speed)
    print("\n### Goals\n\n| goal | found | holds |\n|---|---|---|")
    for goal, seen, holds in checked:
        print(f"| {goal} | {seen} | {'not measured' if holds is None else 'yes' if holds else '**no**'} |")


if __name__ == "__main__":
    main()
