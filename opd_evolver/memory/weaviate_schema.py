"""What the memory looks like on a Weaviate server: collections, objects, tenants, and the way off it again."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping
from typing import Any

from opd_evolver.errors import CorruptionError, SchemaError
from opd_evolver.memory.embed import check_made_by
from opd_evolver.memory.protocol import Embedder
from opd_evolver.memory.weaviate_server import Server
from opd_evolver.records import LEVELS, NAMESPACE, SCHEMA_VERSION, Entry, Level, canonical_json

COLLECTIONS: dict[Level, str] = {level: f"OpdMemory{level.capitalize()}" for level in LEVELS}
NOTES = "OpdMemoryNotes"
Place = tuple[Level, str]
VECTOR = "text"


def hash_of(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=12).hexdigest()


def clean(text: str) -> str:
    """Lone surrogates have no UTF-8 form, and Weaviate's protocol carries no NUL."""
    return text.encode("utf-8", "replace").decode().replace("\x00", " ")


def uuid_of(*parts: str) -> str:
    return str(uuid.uuid5(NAMESPACE, "\x1f".join(parts)))


def properties_of(entry: Entry, text: str) -> dict[str, Any]:
    return {
        "entry_id": entry.entry_id,
        "live": entry.status == "live",
        "scope_key": hash_of(entry.scope),
        "text": text,
        "body": canonical_json(entry).encode("utf-8", "replace").decode(),
    }


def entry_of(found: Any) -> Entry:
    try:
        return Entry.model_validate_json(found.properties["body"])
    except (ValueError, TypeError, KeyError) as error:
        raise CorruptionError(
            f"Weaviate object {found.uuid} holds no entry: {str(error).splitlines()[0]}",
            "an entry's record",
            "`opd memory reindex`",
        ) from None


def check(stored: Mapping[str, str], embedder: Embedder) -> None:
    if stored["schema_version"] != str(SCHEMA_VERSION):
        raise SchemaError(
            f"the memory on Weaviate has schema {stored['schema_version']}",
            f"schema {SCHEMA_VERSION}",
            "upgrade: pip install -U opd-evolver, or `opd memory reindex`",
        )
    check_made_by(embedder, stored["embedder"], stored["dimension"], "the memory on Weaviate")


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
        # Notes first: those of segments would say of tenants that are gone that nothing need be applied.
        if client.collections.exists(NOTES):
            notes = client.collections.get(NOTES)
            notes.data.delete_many(where=Filter.by_property("memory").equal(memory))
        for name in COLLECTIONS.values():
            if client.collections.exists(name):
                collection = client.collections.get(name)
                mine = [one for one in collection.tenants.get() if one.startswith(f"{memory}-")]
                if mine:
                    collection.tenants.remove(mine)

    server.call(work)
