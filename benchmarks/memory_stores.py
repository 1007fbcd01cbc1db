"""Our own memory as the benchmark drives it: ledger and index, embedded or on a real Weaviate server."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal, Protocol

from benchmarks.memory_world import DOMAIN
from opd_evolver.errors import SetupError
from opd_evolver.memory import stores
from opd_evolver.memory.segment import LedgerSegment
from opd_evolver.memory.snapshot import restore, write_snapshot
from opd_evolver.memory.store import Memory, reindex
from opd_evolver.params import MemoryParams
from opd_evolver.records import Entry
from opd_evolver.stack import services, weaviate

LIMIT, WAVE = 50, 1000


class NotMeasured(Exception):
    """Why a figure is missing; printed in its place."""


class Store(Protocol):
    """What is measured of a store."""

    def fill(self, entries: Iterable[Entry]) -> None:
        """Many at once, as this store does it best."""

    def add(self, entries: Sequence[Entry]) -> None:
        """A few more, acknowledged when it returns."""

    def search(self, query: str, scope: str | None) -> list[str]:
        """Ids of the LIMIT best of the domain, hybrid."""
        ...

    def reindex(self) -> None:
        """Builds anew what searches rest on."""

    def snapshot(self, folder: Path) -> None:
        """A copy to keep."""

    def restore(self, folder: Path) -> int:
        """Another live store from that copy; how many entries it found."""
        ...

    def rss_bytes(self) -> int:
        """Memory of processes other than this one."""
        ...

    def disk_bytes(self) -> int: ...

    def close(self) -> None: ...


def size_of(folder: Path) -> int:
    """Bytes that the files below take on the disk."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


class Ours:
    """A `Memory` with the embedded index."""

    store: Literal["embedded", "weaviate"] = "embedded"

    def __init__(self, folder: Path) -> None:
        self.folder, self.live = folder, folder / "live"
        self.params = MemoryParams(store=self.store)
        self.memory = Memory.open(self.live, self.params)
        self._wave = 0

    def _commit(self, entries: Sequence[Entry]) -> None:
        self._wave += 1
        self.memory.commit(LedgerSegment(lineage="benchmark", round=1, wave=self._wave, entries=tuple(entries)))

    def fill(self, entries: Iterable[Entry]) -> None:
        """In waves of a thousand."""
        rest = iter(entries)
        while wave := list(islice(rest, WAVE)):
            self._commit(wave)

    def add(self, entries: Sequence[Entry]) -> None:
        """One commit: a durable ledger segment, then the index."""
        self._commit(entries)

    def search(self, query: str, scope: str | None) -> list[str]:
        """The index alone, as an episode calls it."""
        found = self.memory.index.search(query, level="tip", limit=LIMIT, domain=DOMAIN, scope=scope)
        return [entry.entry_id for entry, _ in found]

    def reindex(self) -> None:
        """From the ledger."""
        self.memory.close()
        reindex(self.live, self.params)
        self.memory = Memory.open(self.live, self.params)

    def snapshot(self, folder: Path) -> None:
        """Canonical files with digests."""
        write_snapshot(self.memory, folder, 1, "benchmark")

    def restore(self, folder: Path) -> int:
        """Verified before and after; the copy is dropped again, outside of any measurement by the caller."""
        return restore(folder, self.folder / "restored", self.params).n_entries

    def rss_bytes(self) -> int:
        return 0

    def disk_bytes(self) -> int:
        return size_of(self.live)

    def close(self) -> None:
        self.memory.close()


class OnWeaviate(Ours):
    """The same memory, its index on a server of its own that ends with it."""

    store: Literal["embedded", "weaviate"] = "weaviate"

    def __init__(self, folder: Path) -> None:
        try:
            weaviate.binary()
        except SetupError as error:
            raise NotMeasured(f"{error.seen}: {weaviate.INSTALL}") from None
        os.chdir(folder)  # where the memory looks for the address that `start` writes
        service, port = weaviate.start(folder, os.environ)
        self.server = service
        services.wait("weaviate", service, lambda: _ready(port))
        try:
            super().__init__(folder)
        except BaseException:
            self._stop()
            raise

    def _stop(self) -> None:
        stack = services.Stack(mark=f"benchmark-{os.getpid()}", prefect_port=0, services={"weaviate": self.server})
        services.stop(stack)

    def rss_bytes(self) -> int:
        """The server's."""
        import psutil

        return int(psutil.Process(self.server.pid).memory_info().rss)

    def disk_bytes(self) -> int:
        """Ledger and server."""
        return size_of(self.live) + size_of(self.folder / ".opd" / "weaviate" / "data")

    def restore(self, folder: Path) -> int:
        """As embedded; what the server holds for the copy goes again, so that later sizes stay what they are."""
        found = super().restore(folder)
        stores.remove(self.folder / "restored")
        return found

    def close(self) -> None:
        super().close()
        self._stop()
        shutil.rmtree(self.folder / ".opd", ignore_errors=True)


def _ready(port: int) -> bool:
    found = services.request(f"http://{weaviate.HOST}:{port}/v1/.well-known/ready")
    time.sleep(0.2)
    return found == {}
