"""What our memory is compared with: LanceDB, and a JSON file that is rewritten for each memory."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.memory_stores import LIMIT, WAVE, NotMeasured, size_of
from opd_evolver.memory.embed import open_embedder, words_of
from opd_evolver.memory.levels import embed_text
from opd_evolver.params import MemoryParams
from opd_evolver.records import Entry, canonical_json


class Lance:
    """LanceDB with a full-text index and no vector index: its dense part is exact, as ours is."""

    def __init__(self, folder: Path) -> None:
        os.environ.setdefault("LANCEDB_LOG", "error")  # it warns of its own deprecations at each search
        try:
            import lancedb
        except ImportError as error:
            raise NotMeasured(f"{error}: uv pip install -c constraints.txt --group bench") from None
        self._connect = lancedb.connect
        self.folder, self.live = folder, folder / "lance"
        self.embedder = open_embedder(MemoryParams().embedder)
        self.database: Any = lancedb.connect(self.live)
        self.table: Any = None

    def _rows(self, entries: Sequence[Entry]) -> list[dict[str, Any]]:
        texts = [embed_text(entry) for entry in entries]
        return [
            {
                "entry_id": entry.entry_id,
                "level": entry.level,
                "domain": entry.domain,
                "scope": entry.scope,
                "live": True,
                "text": text,
                "body": canonical_json(entry),
                "vector": vector,
            }
            for entry, text, vector in zip(entries, texts, self.embedder.embed(texts), strict=True)
        ]

    def fill(self, entries: Iterable[Entry]) -> None:
        """In thousands; then its full-text index."""
        rest = iter(entries)
        while wave := list(islice(rest, WAVE)):
            self.add(wave)
        self.reindex()

    def add(self, entries: Sequence[Entry]) -> None:
        """One more version of the table. Its text is found by a scan until the next `reindex`."""
        if self.table is None:
            self.table = self.database.create_table("entries", data=self._rows(entries))
        else:
            self.table.add(self._rows(entries))

    def search(self, query: str, scope: str | None) -> list[str]:
        """Filter first, then both parts, fused by rank: its default."""
        where = "live AND level = 'tip' AND domain = 'sql'" + (f" AND scope = '{scope}'" if scope else "")
        vector = self.embedder.embed([query])[0]
        asked = self.table.search(query_type="hybrid", vector_column_name="vector", fts_columns="text")
        asked = asked.vector(vector).text(query).where(where, prefilter=True).limit(LIMIT)
        found = asked.select(["entry_id", "body"]).to_list()
        return [Entry.model_validate_json(one["body"]).entry_id for one in found]

    def reindex(self) -> None:
        """The full-text index, with what was added since; old versions go."""
        self.table.create_fts_index("text", replace=True)
        self.table.optimize()

    def snapshot(self, folder: Path) -> None:
        """Its folder: LanceDB has no export of its own."""
        shutil.copytree(self.live, folder)

    def restore(self, folder: Path) -> int:
        """The folder back, opened."""
        shutil.copytree(folder, self.folder / "restored")
        return int(self._connect(self.folder / "restored").open_table("entries").count_rows())

    def rss_bytes(self) -> int:
        return 0

    def disk_bytes(self) -> int:
        return size_of(self.live)

    def close(self) -> None:
        self.table = None


class JsonFile:
    """A list in one JSON file: written whole for each memory, not synced, scanned in Python.

    Kinder than most that are released: `json.dumps` without indent (the encoder in C), one write, the list and
    arrays of its vectors kept in the process, so that no search reads the file.
    """

    with_vectors = True
    most = 10_000

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "memory.json"
        self.embedder = open_embedder(MemoryParams().embedder)
        self.rows: list[dict[str, Any]] = []
        self.vectors: list[Any] = []
        self.words: list[frozenset[str]] = []

    def _keep(self, entries: Sequence[Entry]) -> None:
        texts = [embed_text(entry) for entry in entries]
        for entry, text, vector in zip(entries, texts, self.embedder.embed(texts), strict=True):
            row = {**json.loads(canonical_json(entry)), "text": text}
            self.rows.append({**row, "embedding": vector.tolist()} if self.with_vectors else row)
            self.vectors.append(vector)
            self.words.append(frozenset(words_of(text)))

    def fill(self, entries: Iterable[Entry]) -> None:
        """Written once at the end: one write for each would take hours."""
        for wave in _parts(entries):
            self._keep(wave)
        self._write()

    def _write(self) -> None:
        self.path.write_text(json.dumps(self.rows), encoding="utf-8")

    def add(self, entries: Sequence[Entry]) -> None:
        """The whole file, once for each."""
        for entry in entries:
            self._keep([entry])
            self._write()

    def search(self, query: str, scope: str | None) -> list[str]:
        """Cosine and shared words of one memory after the other."""
        vector, words = self.embedder.embed([query])[0], frozenset(words_of(query))
        found = []
        for row, its, known in zip(self.rows, self.vectors, self.words, strict=True):
            if scope is None or row["scope"] == scope:
                score = 0.5 * float(np.dot(its, vector)) + 0.5 * len(words & known) / (len(words) or 1)
                found.append((-score, row["entry_id"]))
        found.sort()
        return [entry_id for _, entry_id in found[:LIMIT]]

    def reindex(self) -> None:
        """The file read again."""
        self.rows, self.vectors, self.words = [], [], []
        rows = json.loads(self.path.read_text(encoding="utf-8"))
        for start in range(0, len(rows), WAVE):
            part = rows[start : start + WAVE]
            self.rows += part
            self.words += [frozenset(words_of(row["text"])) for row in part]
            if self.with_vectors:
                self.vectors += [np.array(row["embedding"], dtype=np.float32) for row in part]
            else:
                self.vectors += list(self.embedder.embed([row["text"] for row in part]))

    def snapshot(self, folder: Path) -> None:
        """The file."""
        folder.mkdir()
        shutil.copy(self.path, folder)

    def restore(self, folder: Path) -> int:
        """The file back, read."""
        shutil.copy(folder / self.path.name, self.path)
        self.reindex()
        return len(self.rows)

    def rss_bytes(self) -> int:
        return 0

    def disk_bytes(self) -> int:
        return size_of(self.folder)

    def close(self) -> None:
        pass


class JsonTextFile(JsonFile):
    """The same without vectors in the file: the smallest that this pattern can write."""

    with_vectors = False


def _parts(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    rest = iter(entries)
    while part := list(islice(rest, WAVE)):
        yield part
