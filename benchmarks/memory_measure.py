"""One store at one size, in a process of its own: `python -m benchmarks.memory_measure --store json --size 1000`.

Prints one line of JSON. The process is its own so that memory is what this store takes, and nothing is warm.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.memory_others import JsonFile, JsonTextFile, Lance
from benchmarks.memory_stores import NotMeasured, OnWeaviate, Ours, Store
from benchmarks.memory_world import World

STORES: dict[str, type] = {
    "embedded": Ours,
    "weaviate": OnWeaviate,
    "lancedb": Lance,
    "json": JsonFile,
    "json-text": JsonTextFile,
}
N_WAVE, N_WAVES = 100, 3


@dataclass
class Times:
    """Seconds on the clock, and of this process's cores; other processes on the machine inflate only the first."""

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.wall_s.append(time.perf_counter() - wall)
        self.cpu_s.append(time.process_time() - cpu)

    def told(self) -> dict[str, float]:
        """Milliseconds."""
        return {
            "p50": 1e3 * statistics.median(self.wall_s),
            "p95": 1e3 * float(np.percentile(self.wall_s, 95)),
            "cpu_p50": 1e3 * statistics.median(self.cpu_s),
            "n": len(self.wall_s),
        }


def measure(name: str, size: int, world: World) -> dict[str, object]:
    """Every figure of one store at one size.

    Raises:
        NotMeasured: the store is not there, or this size is not feasible.
    """
    made = STORES[name]
    slow = issubclass(made, JsonFile)
    if slow and size > JsonFile.most:
        raise NotMeasured(f"each add would rewrite the file of {size} memories")
    found: dict[str, object] = {}
    with tempfile.TemporaryDirectory(prefix="opd-benchmark-") as temporary:
        folder = Path(temporary)
        before = _rss()
        store: Store = made(folder)
        try:
            found["fill_s"] = _seconds(lambda: store.fill(world.entries(0, size)))
            found |= _searches(store, world, 10 if slow else 60)
            found["rss_mib"] = (_rss() - before + store.rss_bytes()) / 2**20
            found["disk_mib"] = store.disk_bytes() / 2**20
            found |= _copies(store, folder, size)
            found |= _adds(store, world, size, 5 if slow else 20)
        finally:
            store.close()
    return found


def _searches(store: Store, world: World, n: int) -> dict[str, object]:
    queries = world.queries(n + 1)
    first, (text, scope) = Times(), queries[0]
    with first.one():
        store.search(text, None)
    store.search(text, scope)
    open_, within = Times(), Times()
    for text, _ in queries[1:]:
        with open_.one():
            hits = store.search(text, None)
        if not hits:
            raise RuntimeError(f"`{text}` was not found among all entries: the store is not what it should be")
    for text, scope in queries[1:]:
        with within.one():
            store.search(text, scope)
    return {"first_search_s": first.wall_s[0], "search": open_.told(), "search_in_scope": within.told()}


def _copies(store: Store, folder: Path, size: int) -> dict[str, object]:
    found: dict[str, object] = {"reindex_s": _seconds(store.reindex)}
    found["snapshot_s"] = _seconds(lambda: store.snapshot(folder / "snapshot"))
    began = time.perf_counter()
    n_restored = store.restore(folder / "snapshot")
    found["restore_s"] = time.perf_counter() - began
    if n_restored != size:
        raise RuntimeError(f"{n_restored} entries were restored, expected {size}: the copy is not whole")
    return found


def _adds(store: Store, world: World, size: int, n: int) -> dict[str, object]:
    """One at a time, a search behind each, then in waves; the last so that they leave the size as it was."""
    one, behind, waves = Times(), Times(), Times()
    queries = world.queries(n + 1)
    store.search(queries[0][0], None)
    for number, entry in enumerate(world.entries(size, n)):
        with one.one():
            store.add([entry])
        with behind.one():
            store.search(queries[number + 1][0], None)
    found: dict[str, object] = {"add": one.told(), "search_after_add": behind.told()}
    if n > N_WAVES * 2:
        for number in range(N_WAVES):
            wave = list(world.entries(size + n + number * N_WAVE, N_WAVE))
            with waves.one():
                store.add(wave)
        found["add_in_wave"] = {key: value / N_WAVE for key, value in waves.told().items() if key != "n"}
    else:
        found["add_in_wave"] = one.told()
    return found


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _rss() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", choices=STORES, required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scopes", type=int, default=200)
    asked = parser.parse_args()
    told: dict[str, object] = {"store": asked.store, "size": asked.size}
    with contextlib.redirect_stdout(sys.stderr):
        try:
            told |= measure(asked.store, asked.size, World(asked.seed, asked.scopes))
        except NotMeasured as error:
            told["not_measured"] = str(error)
    print(json.dumps(told))


if __name__ == "__main__":
    main()
