"""Which index a memory has: the embedded one in its own folder, or a server's, named by a file in that folder."""

from __future__ import annotations

import json
import shutil
import uuid
from pathlib import Path

from opd_evolver import durable
from opd_evolver.errors import CorruptionError, SetupError
from opd_evolver.memory.embed import open_embedder
from opd_evolver.memory.embedded import EmbeddedIndex
from opd_evolver.memory.replay import LedgerIndex
from opd_evolver.params import MemoryParams
from opd_evolver.records import SCHEMA_VERSION

INDEX_FILE, SERVER_FILE = "index.sqlite", "weaviate.json"


def open_index(folder: Path, params: MemoryParams, *, read_only: bool) -> LedgerIndex:
    """The index of the live memory in `folder`, made when it is missing and `read_only` is not asked.

    Raises:
        SetupError: missing, another embedder, or no server.
    """
    embedder = open_embedder(params.embedder)
    if params.store == "embedded":
        return EmbeddedIndex(folder / INDEX_FILE, embedder, read_only=read_only, alpha=params.alpha)
    from opd_evolver.memory.weaviate_index import WeaviateIndex
    from opd_evolver.memory.weaviate_server import open_server

    memory = name_of(folder)
    if memory is None:
        if read_only:
            raise SetupError(f"no memory index at {folder}", "one built by a writable open", "`opd resume`")
        memory = uuid.uuid4().hex[:16]
        durable.write_text(
            folder / SERVER_FILE, json.dumps({"memory": memory, "schema_version": SCHEMA_VERSION}) + "\n"
        )
    server = open_server()
    try:
        return WeaviateIndex(server, memory, embedder, read_only=read_only, alpha=params.alpha)
    except BaseException:
        server.close()
        raise


def name_of(folder: Path) -> str | None:
    """What the server knows the memory of a live folder by; None when it has none there."""
    path = folder / SERVER_FILE
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["memory"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError) as error:
        raise CorruptionError(f"{path} cannot be read: {error}", "the memory's name", "`opd memory reindex`") from None


def clear(folder: Path) -> None:
    """Removes the index of a live memory, whatever state it is in; the ledger can fill another one."""
    for suffix in ("", "-wal", "-shm"):
        (folder / f"{INDEX_FILE}{suffix}").unlink(missing_ok=True)
    discard(folder)


def discard(folder: Path) -> None:
    """Takes what a server holds for a live folder off it; the folder itself stays.

    Raises:
        SetupError: the server does not answer; nothing was removed.
    """
    memory = name_of(folder)
    if memory is not None:
        drop_memory(memory)
        (folder / SERVER_FILE).unlink()


def drop_memory(memory: str) -> None:
    """Takes a memory off the server, by the name that `name_of` gave; again is a no-op."""
    from opd_evolver.memory import weaviate_schema
    from opd_evolver.memory.weaviate_server import open_server

    server = open_server()
    try:
        weaviate_schema.drop(server, memory)
    finally:
        server.close()


def remove(folder: Path) -> None:
    """Removes a live folder and what a server holds for it.

    Raises:
        SetupError: the server does not answer; the folder is still there.
    """
    discard(folder)
    shutil.rmtree(folder)
