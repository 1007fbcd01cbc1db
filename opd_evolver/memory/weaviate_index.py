"""The index on a Weaviate server: a collection per level, a tenant per memory and domain, hybrid search.

Vectors are ours (named vector `text`, self-provided), ids are uuid5, writes are batches whose failures are checked.
Each entry's whole record lies in its object, so that digests are those of the embedded index. Applied segments
are kept on the server too: a server that was wiped is filled again from the ledger at the next open.
Entry text is data: it is a property's value, never part of a query's syntax.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

from opd_evolver.errors import CorruptionError, OutageError, SchemaError, SetupError
from opd_evolver.memory.embed import words_of
from opd_evolver.memory.levels import embed_text
from opd_evolver.memory.protocol import Embedder
from opd_evolver.memory.weaviate_server import Server
from opd_evolver.records import LEVELS, NAMESPACE, SCHEMA_VERSION, Entry, Level, canonical_json

COLLECTIONS: dict[Level, str] = {level: f"OpdMemory{level.capitalize()}" for level in LEVELS}
NOTES = "OpdMemoryNotes"
Place = tuple[Level, str]
VECTOR = "text"
BATCH = 500
PAGE = 500
SLACK = 32
"""Asked for beyond the limit, so that entries of equal score at the cut are chosen by id, not by chance."""


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=12).hexdigest()


def _clean(text: str) -> str:
    """Lone surrogates have no UTF-8 form, and Weaviate's protocol carries no NUL."""
    return text.encode("utf-8", "replace").decode().replace("\x00", " ")


def _uuid(*parts: str) -> str:
    return str(uuid.uuid5(NAMESPACE, "\x1f".join(parts)))


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
        self._found: set[Place] = set()
        self._meta()

    # ── schema and notes ─────────────────────────────────────────────────────────────────────

    def _meta(self) -> None:
        mine = {
            "schema_version": str(SCHEMA_VERSION),
            "embedder": self.embedder.identity,
            "dimension": str(self.embedder.dimension),
        }
        self._server.call(create_collections)
        stored = self._notes("meta")
        if not stored and self.read_only:
            raise SetupError(f"Weaviate knows no memory {self.memory}", "one filled by a writable open", "`opd resume`")
        if stored:
            _check(stored, mine)
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
        self._insert(NOTES, None, [(_uuid(self.memory, kind, name), properties, None)])

    def _notes(self, kind: str) -> dict[str, str]:
        from weaviate.classes.query import Filter

        mine = Filter.by_property("memory").equal(self.memory) & Filter.by_property("kind").equal(kind)
        found: dict[str, str] = {}
        while True:
            offset = len(found)
            page = self._server.call(
                lambda client, offset=offset: client.collections.get(NOTES).query.fetch_objects(  # type: ignore[misc]
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
            DataObject(uuid=key, properties=properties, vector={VECTOR: vector} if vector is not None else None)
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
        places: dict[Place, list[Entry]] = {}
        for entry in sorted(entries, key=lambda one: one.entry_id):
            places.setdefault((entry.level, entry.domain), []).append(entry)
        for level, domain in sorted(places.keys() - self._found):
            self._open_place(level, domain)
        for (level, domain), rows in places.items():
            for start in range(0, len(rows), BATCH):
                part = rows[start : start + BATCH]
                texts = [_clean(embed_text(entry)) for entry in part]
                vectors = self.embedder.embed(texts)
                self._insert(
                    COLLECTIONS[level],
                    self._tenant(domain),
                    [
                        (_uuid(entry.entry_id), _properties(entry, text), vector.tolist())
                        for entry, text, vector in zip(part, texts, vectors, strict=True)
                    ],
                )

    def _open_place(self, level: Level, domain: str) -> None:
        """The tenant first: a note of a place without one would break every search."""
        from weaviate.classes.tenants import Tenant

        def work(client: Any) -> None:
            tenants = client.collections.get(COLLECTIONS[level]).tenants
            if not tenants.exists(self._tenant(domain)):
                tenants.create([Tenant(name=self._tenant(domain))])

        self._server.call(work)
        self._note("place", f"{level}/{_hash(domain)}", domain)
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
        drop(self._server, self.memory)
        self._meta()

    def _writable(self) -> None:
        if self.read_only:
            raise SetupError(f"memory {self.memory} is open for reading", "a writable open", "commit in the committer")

    # ── reading ──────────────────────────────────────────────────────────────────────────────

    def get(self, entry_ids: Sequence[str]) -> list[Entry]:
        """Entries by id in the asked order, retired ones included; unknown ids are left out."""
        found: dict[str, Entry] = {}
        keys = [_uuid(one) for one in dict.fromkeys(entry_ids)]
        for start in range(0, len(keys), PAGE):
            part = keys[start : start + PAGE]
            for level, domain in self._places():
                page = self._server.call(
                    lambda client, level=level, domain=domain, part=part: self._at(  # type: ignore[misc]
                        client, level, domain
                    ).query.fetch_objects_by_ids(part, limit=PAGE, return_properties=["body"])
                )
                found |= {entry.entry_id: entry for entry in map(_entry, page.objects)}
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
            yield from map(_entry, page)
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
        text = _clean(query)
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
            filters = filters & Filter.by_property("scope_key").equal(_hash(scope))

        def work(client: Any) -> Any:
            at = self._at(client, level, domain)
            if not words or not vector.any():  # nothing to rank by
                return at.query.fetch_objects(filters=filters, limit=limit, return_properties=["body"])
            return at.query.hybrid(
                query=words,
                vector={VECTOR: vector.tolist()},
                target_vector=VECTOR,
                alpha=alpha,
                query_properties=["text"],
                fusion_type=HybridFusion.RELATIVE_SCORE,
                filters=filters,
                limit=limit,
                return_properties=["body"],
                return_metadata=MetadataQuery(score=True),
            )

        return [(_entry(one), round(float(one.metadata.score or 0.0), 6)) for one in self._server.call(work).objects]

    def _places(self) -> list[Place]:
        """What has tenants; a reader looks again, since the committer may have added some."""
        if self.read_only:
            self._look()
        return sorted(self._found)

    def _tenant(self, domain: str) -> str:
        return f"{self.memory}-{_hash(domain)}"

    def _at(self, client: Any, level: Level, domain: str) -> Any:
        return client.collections.get(COLLECTIONS[level]).with_tenant(self._tenant(domain))

    def close(self) -> None:
        self._server.close()


def _properties(entry: Entry, text: str) -> dict[str, Any]:
    return {
        "entry_id": entry.entry_id,
        "live": entry.status == "live",
        "scope_key": _hash(entry.scope),
        "text": text,
        "body": canonical_json(entry).encode("utf-8", "replace").decode(),
    }


def _entry(found: Any) -> Entry:
    try:
        return Entry.model_validate_json(found.properties["body"])
    except (ValueError, TypeError, KeyError) as error:
        raise CorruptionError(
            f"Weaviate object {found.uuid} holds no entry: {str(error).splitlines()[0]}",
            "an entry's record",
            "`opd memory reindex`",
        ) from None


def _check(stored: Mapping[str, str], mine: Mapping[str, str]) -> None:
    if stored["schema_version"] != mine["schema_version"]:
        raise SchemaError(
            f"the memory on Weaviate has schema {stored['schema_version']}",
            f"schema {mine['schema_version']}",
            "upgrade: pip install -U opd-evolver, or `opd memory reindex`",
        )
    seen, wanted = ((of["embedder"], of["dimension"]) for of in (stored, mine))
    if seen != wanted:
        raise SetupError(
            f"the memory on Weaviate was made by embedder {seen[0]} ({seen[1]} dimensions)",
            f"{wanted[0]} ({wanted[1]})",
            "set memory.embedder back, or `opd memory reindex`",
        )


def create_collections(client: Any) -> None:
    """The collections, where they are missing; two processes may try at once."""
    from weaviate.classes.config import Configure, DataType, Property, Tokenization
    from weaviate.exceptions import UnexpectedStatusCodeError

    def word(name: str) -> Any:
        return Property(name=name, data_type=DataType.TEXT, tokenization=Tokenization.FIELD, index_searchable=False)

    silent = Property(name="body", data_type=DataType.TEXT, index_filterable=False, index_searchable=False)
    told = Property(name="text", data_type=DataType.TEXT, tokenization=Tokenization.WORD, index_filterable=False)
    live = Property(name="live", data_type=DataType.BOOL)
    for name in (*COLLECTIONS.values(), NOTES):
        if client.collections.exists(name):
            continue
        try:
            if name == NOTES:
                client.collections.create(
                    name,
                    properties=[word("memory"), word("kind"), word("name"), word("value")],
                    vector_config=Configure.Vectors.self_provided(name=VECTOR),
                )
            else:
                client.collections.create(
                    name,
                    properties=[word("entry_id"), live, word("scope_key"), told, silent],
                    vector_config=Configure.Vectors.self_provided(name=VECTOR),
                    multi_tenancy_config=Configure.multi_tenancy(
                        enabled=True, auto_tenant_creation=True, auto_tenant_activation=True
                    ),
                )
        except UnexpectedStatusCodeError:
            if not client.collections.exists(name):
                raise


def drop(server: Server, memory: str) -> None:
    """Removes everything of one memory from the server; again is a no-op."""
    from weaviate.classes.query import Filter

    def work(client: Any) -> None:
        for name in COLLECTIONS.values():
            if client.collections.exists(name):
                collection = client.collections.get(name)
                mine = [one for one in collection.tenants.get() if one.startswith(f"{memory}-")]
                if mine:
                    collection.tenants.remove(mine)
        if client.collections.exists(NOTES):
            notes = client.collections.get(NOTES)
            notes.data.delete_many(where=Filter.by_property("memory").equal(memory))

    server.call(work)
