"""The index on a Weaviate server: a collection per level, a tenant per memory and domain, hybrid search.

Vectors are ours (named vector `text`, self-provided), ids are uuid5, writes are batches whose failures are checked.
Each entry's whole record lies in its object, so that digests are those of the embedded index. Applied segments
are kept on the server too: a server that was wiped is filled again from the ledger at the next open.
Entry text is data: it is a property's value, never part of a query's syntax.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

from opd_evolver.errors import OutageError, SetupError
from opd_evolver.memory import weaviate_schema as schema
from opd_evolver.memory.embed import words_of
from opd_evolver.memory.levels import embed_text
from opd_evolver.memory.protocol import Embedder
from opd_evolver.memory.weaviate_server import Server
from opd_evolver.records import SCHEMA_VERSION, Entry, Level

BATCH = 500
PAGE = 500
SLACK = 32
"""Asked for beyond the limit, so that entries of equal score at the cut are chosen by id, not by chance."""


class WeaviateIndex:
    """`LedgerIndex` on a server, for one memory.

    Args:
        server: connected.
        memory: names the memory on the server; no two runs, rounds or projects share one.
        embedder: must be the one that the memory was indexed with.
        read_only: writes nothing, and does not create a missing memory.
        alpha: weight of the dense part when a search names none.

    Raises:
        SetupError: unknown memory (read-only) or another embedder.
        SchemaError: written by another version.
    """

    def __init__(
        self, server: Server, memory: str, embedder: Embedder, *, read_only: bool = False, alpha: float = 0.5
    ) -> None:
        self.embedder, self.alpha, self.memory, self.read_only = embedder, alpha, memory, read_only
        self._server = server
        self._found: set[schema.Place] = set()
        self._meta()

    # ── schema and notes ─────────────────────────────────────────────────────────────────────

    def _meta(self) -> None:
        self._server.call(schema.create_collections)
        stored = self._notes("meta")
        if not stored and self.read_only:
            raise SetupError(f"Weaviate knows no memory {self.memory}", "one filled by a writable open", "`opd resume`")
        mine = {
            "embedder": self.embedder.identity,
            "dimension": str(self.embedder.dimension),
            "schema_version": str(SCHEMA_VERSION),
        }
        # Written one by one, before anything else is: a killed open leaves some, and nothing was added by then.
        if stored.keys() >= mine.keys():
            schema.check(stored, self.embedder)
        elif self.read_only:
            raise SetupError(f"memory {self.memory} on Weaviate is half made", "a writable open", "`opd resume`")
        else:
            for name, value in mine.items():
                self._note("meta", name, value)
        self._look()

    def _look(self) -> None:
        """Which levels and domains have tenants."""
        self._found = {(cast(Level, name.partition("/")[0]), domain) for name, domain in self._notes("place").items()}

    def _note(self, kind: str, name: str, value: str) -> None:
        """One durable fact about this memory; again is a no-op."""
        properties = {"memory": self.memory, "kind": kind, "name": name, "value": value}
        self._insert(schema.NOTES, None, [(schema.uuid_of(self.memory, kind, name), properties, None)])

    def _notes(self, kind: str) -> dict[str, str]:
        from weaviate.classes.query import Filter

        mine = Filter.by_property("memory").equal(self.memory) & Filter.by_property("kind").equal(kind)
        found: dict[str, str] = {}
        while True:
            offset = len(found)
            page = self._server.call(
                lambda client, offset=offset: client.collections.get(schema.NOTES).query.fetch_objects(  # type: ignore[misc]
                    filters=mine, limit=PAGE, offset=offset
                )
            ).objects
            found |= {str(one.properties["name"]): str(one.properties["value"]) for one in page}
            if len(page) < PAGE:
                return dict(sorted(found.items()))

    def _insert(
        self, collection: str, tenant: str | None, rows: Sequence[tuple[str, dict[str, Any], list[float] | None]]
    ) -> None:
        """Puts objects by id; a batch in which any object failed raises, though Weaviate itself does not."""
        from weaviate.classes.data import DataObject
        from weaviate.exceptions import WeaviateInsertManyAllFailedError

        objects = [
            DataObject(uuid=key, properties=properties, vector={schema.VECTOR: vector} if vector is not None else None)
            for key, properties, vector in rows
        ]

        def work(client: Any) -> None:
            target = client.collections.get(collection)
            try:
                done = (target.with_tenant(tenant) if tenant else target).data.insert_many(objects)
                said = [one.message for one in done.errors.values()]
            except WeaviateInsertManyAllFailedError as error:
                said = [error.message] * len(objects)
            if said and any(word in said[0].lower() for word in ("unavailable", "connection", "shutdown", "leader")):
                raise ConnectionError(said[0])
            if said:
                raise OutageError(
                    f"Weaviate refused {len(said)} of {len(objects)} objects: {said[0][:200]}",
                    "every object stored",
                    "mend the server, then: opd resume",
                )

        self._server.call(work)

    # ── writing: the committer only ──────────────────────────────────────────────────────────

    def upsert(self, entries: Iterable[Entry]) -> None:
        """Puts entries in their given state, by id; durable when it returns."""
        self._writable()
        places: dict[schema.Place, list[Entry]] = {}
        for entry in sorted(entries, key=lambda one: one.entry_id):
            places.setdefault((entry.level, entry.domain), []).append(entry)
        for level, domain in sorted(places.keys() - self._found):
            self._open_place(level, domain)
        for (level, domain), rows in places.items():
            for start in range(0, len(rows), BATCH):
                part = rows[start : start + BATCH]
                texts = [schema.clean(embed_text(entry)) for entry in part]
                vectors = self.embedder.embed(texts)
                self._insert(
                    schema.COLLECTIONS[level],
                    self._tenant(domain),
                    [
                        (schema.uuid_of(entry.entry_id), schema.properties_of(entry, text), vector.tolist())
                        for entry, text, vector in zip(part, texts, vectors, strict=True)
                    ],
                )

    def _open_place(self, level: Level, domain: str) -> None:
        """The tenant first: a note of a place without one would break every search."""
        from weaviate.classes.tenants import Tenant

        def work(client: Any) -> None:
            tenants = client.collections.get(schema.COLLECTIONS[level]).tenants
            if not tenants.exists(self._tenant(domain)):
                tenants.create([Tenant(name=self._tenant(domain))])

        self._server.call(work)
        self._note("place", f"{level}/{schema.hash_of(domain)}", domain)
        self._found.add((level, domain))

    def mark_applied(self, segment: str, digest: str) -> None:
        """Notes that a ledger segment's effects are in."""
        self._writable()
        self._note("applied", segment, digest)

    def applied(self) -> Mapping[str, str]:
        """Ledger segments whose effects are in: name → digest."""
        return self._notes("applied")

    def clear(self) -> None:
        """Empties the index; the ledger can fill it again."""
        self._writable()
        schema.drop(self._server, self.memory)
        self._meta()

    def _writable(self) -> None:
        if self.read_only:
            raise SetupError(f"memory {self.memory} is open for reading", "a writable open", "commit in the committer")

    # ── reading ──────────────────────────────────────────────────────────────────────────────

    def get(self, entry_ids: Sequence[str]) -> list[Entry]:
        """Entries by id in the asked order, retired ones included; unknown ids are left out."""
        found: dict[str, Entry] = {}
        keys = [schema.uuid_of(one) for one in dict.fromkeys(entry_ids)]
        for start in range(0, len(keys), PAGE):
            part = keys[start : start + PAGE]
            for level, domain in self._places():
                page = self._server.call(
                    lambda client, level=level, domain=domain, part=part: self._at(  # type: ignore[misc]
                        client, level, domain
                    ).query.fetch_objects_by_ids(part, limit=PAGE, return_properties=["body"])
                )
                found |= {entry.entry_id: entry for entry in map(schema.entry_of, page.objects)}
        return [found[entry_id] for entry_id in entry_ids if entry_id in found]

    def entries(self, *, live_only: bool = True) -> list[Entry]:
        """All entries, sorted by entry_id."""
        found = [entry for level, domain in self._places() for entry in self._all(level, domain)]
        found.sort(key=lambda entry: entry.entry_id)
        return [entry for entry in found if not live_only or entry.status == "live"]

    def _all(self, level: Level, domain: str) -> Iterator[Entry]:
        after: Any = None
        while True:
            page = self._server.call(
                lambda client, after=after: self._at(client, level, domain).query.fetch_objects(  # type: ignore[misc]
                    limit=PAGE, after=after, return_properties=["body"]
                )
            ).objects
            yield from map(schema.entry_of, page)
            if len(page) < PAGE:
                return
            after = page[-1].uuid

    def search(
        self,
        query: str,
        *,
        level: Level,
        limit: int,
        domain: str | None = None,
        scope: str | None = None,
        alpha: float | None = None,
    ) -> list[tuple[Entry, float]]:
        """Hybrid (dense + BM25, relative scores fused) ranking of live entries, best first; ties by entry_id."""
        if limit <= 0:
            return []
        weight = self.alpha if alpha is None else alpha
        text = schema.clean(query)
        vector = self.embedder.embed([text])[0]
        words = " ".join(words_of(text))
        found: list[tuple[Entry, float]] = []
        for at_level, at_domain in self._places():
            if at_level == level and domain in (None, at_domain):
                found += self._hybrid(words, vector, (level, at_domain, scope), limit + SLACK, weight)
        found.sort(key=lambda hit: (-hit[1], hit[0].entry_id))
        return found[:limit]

    def _hybrid(
        self, words: str, vector: Any, place: tuple[Level, str, str | None], limit: int, alpha: float
    ) -> list[tuple[Entry, float]]:
        from weaviate.classes.query import Filter, HybridFusion, MetadataQuery

        level, domain, scope = place
        filters = Filter.by_property("live").equal(True)
        if scope is not None:
            filters = filters & Filter.by_property("scope_key").equal(schema.hash_of(scope))

        def work(client: Any) -> Any:
            at = self._at(client, level, domain)
            if not words or not vector.any():  # nothing to rank by
                return at.query.fetch_objects(filters=filters, limit=limit, return_properties=["body"])
            return at.query.hybrid(
                query=words,
                vector={schema.VECTOR: vector.tolist()},
                target_vector=schema.VECTOR,
                alpha=alpha,
                query_properties=["text"],
                fusion_type=HybridFusion.RELATIVE_SCORE,
                filters=filters,
                limit=limit,
                return_properties=["body"],
                return_metadata=MetadataQuery(score=True),
            )

        return [
            (schema.entry_of(one), round(float(one.metadata.score or 0.0), 6))
            for one in self._server.call(work).objects
        ]

    def _places(self) -> list[schema.Place]:
        """What has tenants; a reader looks again, since the committer may have added some."""
        if self.read_only:
            self._look()
        return sorted(self._found)

    def _tenant(self, domain: str) -> str:
        return f"{self.memory}-{schema.hash_of(domain)}"

    def _at(self, client: Any, level: Level, domain: str) -> Any:
        return client.collections.get(schema.COLLECTIONS[level]).with_tenant(self._tenant(domain))

    def close(self) -> None:
        self._server.close()
