"""What only a server has: it is killed, wiped, down, refuses; vectors and tenants are looked at from outside."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from memory_cases import filled, tip, wave
from weaviate_server import TestServer, serving

from opd_evolver.errors import OutageError, SetupError
from opd_evolver.memory import stores, weaviate_schema
from opd_evolver.memory.snapshot import verify
from opd_evolver.memory.store import LEDGER_FOLDER, Memory
from opd_evolver.params import MemoryParams
from opd_evolver.settings import load_settings

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestServer]:
    with serving(tmp_path_factory.mktemp("weaviate")) as started:
        yield started


@pytest.fixture
def remote(server: TestServer) -> Iterator[MemoryParams]:
    with patch.dict(os.environ, server.settings):
        load_settings.cache_clear()
        yield MemoryParams(store="weaviate")
    load_settings.cache_clear()


def test_a_killed_server_loses_nothing_and_is_waited_for(
    tmp_path: Path, server: TestServer, remote: MemoryParams
) -> None:
    import threading

    with Memory.open(tmp_path, remote) as memory:
        memory.commit(wave(0))
        server.kill()
        starter = threading.Timer(1.5, server.start)
        starter.start()
        memory.commit(wave(1))
        starter.join()
        assert len(memory.entries()) == 8 and len(memory.index.applied()) == 2
    with Memory.open(tmp_path, remote) as memory:
        found = memory.digest()
    filled(tmp_path / "other" / LEDGER_FOLDER, 2).close()
    with Memory.open(tmp_path / "other") as embedded:
        assert embedded.digest() == found


def test_a_server_that_stays_down_stops_the_commit_and_nothing_is_lost(
    tmp_path: Path, server: TestServer, remote: MemoryParams, capsys: pytest.CaptureFixture[str]
) -> None:
    with patch.dict(os.environ, {"OPD_WEAVIATE_PATIENCE_S": "1"}):
        load_settings.cache_clear()
        memory = Memory.open(tmp_path, remote)
        memory.commit(wave(0))
        server.kill()
        try:
            with pytest.raises(OutageError, match=r"has not answered.*nothing that was committed is lost.*opd resume"):
                memory.commit(wave(1))
        finally:
            memory.close()
            server.start()
        assert "does not answer: waiting" in capsys.readouterr().err
    with Memory.open(tmp_path, remote) as memory:
        found = memory.digest()
        assert len(memory.index.applied()) == 2, "the ledger had it"
    filled(tmp_path / "other" / LEDGER_FOLDER, 2).close()
    with Memory.open(tmp_path / "other") as embedded:
        assert embedded.digest() == found


def test_a_wiped_server_is_filled_again_from_the_ledger(tmp_path: Path, remote: MemoryParams) -> None:
    with Memory.open(tmp_path, remote) as memory:
        memory.commit(wave(0))
        before = memory.digest()
        memory.index.clear()
    with Memory.open(tmp_path, remote) as memory:
        assert memory.digest() == before


def test_a_batch_that_fails_is_an_error(tmp_path: Path, remote: MemoryParams) -> None:
    from opd_evolver.memory import weaviate_schema

    with Memory.open(tmp_path, remote) as memory:
        real = weaviate_schema.properties_of
        with (
            patch.object(
                weaviate_schema, "properties_of", lambda entry, text: {**real(entry, text), "live": "perhaps"}
            ),
            pytest.raises(OutageError, match="refused 4 of 4"),
        ):
            memory.commit(wave(0))
    with Memory.open(tmp_path, remote) as memory:
        assert len(memory.entries()) == 4, "the ledger had it; the next open brings it in"


def test_another_embedder_is_refused(tmp_path: Path, remote: MemoryParams) -> None:
    from opd_evolver.memory.embed import HashEmbedder

    with Memory.open(tmp_path, remote) as memory:
        memory.commit(wave(0))
    with (
        patch.object(stores, "open_embedder", lambda name: HashEmbedder(64)),
        pytest.raises(SetupError, match="hash-64"),
    ):
        Memory.open(tmp_path, remote)


def test_discard_takes_everything_off_the_server(tmp_path: Path, remote: MemoryParams) -> None:
    from opd_evolver.memory import weaviate_schema
    from opd_evolver.memory.weaviate_server import open_server

    with Memory.open(tmp_path, remote) as memory:
        memory.commit(wave(0))
    name = stores.name_of(tmp_path)
    stores.discard(tmp_path)
    stores.discard(tmp_path)
    opened = open_server()
    try:
        collection = opened.call(lambda client: client.collections.get(weaviate_schema.COLLECTIONS["tip"]))
        assert not [tenant for tenant in collection.tenants.get() if tenant.startswith(str(name))]
    finally:
        opened.close()


def test_no_server_is_one_line_with_its_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("OPD_WEAVIATE_URL", "OPD_WEAVIATE_API_KEY", "OPD_WEAVIATE_GRPC_PORT"):
        monkeypatch.delenv(name, raising=False)
    params = MemoryParams(store="weaviate")
    load_settings.cache_clear()
    with pytest.raises(SetupError, match="opd up --store weaviate"):
        Memory.open(tmp_path / "live", params)
    monkeypatch.setenv("OPD_WEAVIATE_URL", "http://127.0.0.1:9")
    load_settings.cache_clear()
    with pytest.raises(SetupError, match=r"no Weaviate answers at http://127.0.0.1:9.*opd up"):
        Memory.open(tmp_path / "live", params)
    load_settings.cache_clear()


def test_a_wrong_key_is_said_at_once(tmp_path: Path, server: TestServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**server.settings, "OPD_WEAVIATE_API_KEY": "wrong"}.items():
        monkeypatch.setenv(name, value)
    load_settings.cache_clear()
    with pytest.raises(SetupError, match="refuses the key"):
        Memory.open(tmp_path / "live", MemoryParams(store="weaviate"))
    load_settings.cache_clear()


def test_patience_ends(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from opd_evolver.memory.weaviate_server import Address, Server

    monkeypatch.setattr(Server, "_connected", lambda self: object())
    server = Server(Address(url="http://127.0.0.1:9", grpc_port=9), 0.3)

    def down(client: object) -> None:
        raise ConnectionError("refused")

    with pytest.raises(OutageError, match="opd resume"):
        server.call(down)
    assert "does not answer: waiting (0 s of 0 s)" in capsys.readouterr().err
    with pytest.raises(ZeroDivisionError):
        server.call(lambda client: 1 // 0)


def test_vectors_are_ours(tmp_path: Path, remote: MemoryParams) -> None:
    from opd_evolver.memory import weaviate_schema
    from opd_evolver.memory.embed import HashEmbedder
    from opd_evolver.memory.levels import embed_text
    from opd_evolver.memory.weaviate_server import open_server

    late = tip("late", "4")
    with Memory.open(tmp_path, remote) as memory:
        memory.index.upsert([late])
        tenant = memory.index._tenant("sql")  # type: ignore[attr-defined]
    opened = open_server()
    try:
        at = opened.call(lambda client: client.collections.get(weaviate_schema.COLLECTIONS["tip"]).with_tenant(tenant))
        [found] = at.query.fetch_objects(include_vector=True).objects
        assert np.allclose(found.vector["text"], HashEmbedder().embed([embed_text(late)])[0], atol=1e-6)
        assert json.loads(found.properties["body"])["entry_id"] == late.entry_id
    finally:
        opened.close()


def test_copy_hosts_a_finished_round_and_counts_and_digests_are_equal(
    tmp_path: Path, remote: MemoryParams, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import finished_run

    from opd_evolver import cli

    run = finished_run.build(tmp_path, finished_run.policy_folder(tmp_path))
    monkeypatch.chdir(tmp_path)
    info = verify(run.paths.version(1) / "memory")
    names = []
    for _ in range(2):  # again replaces it
        assert cli.main(["memory", "copy", "--to", "weaviate", "--name", finished_run.NAME, "--json"]) == 0
        tree = json.loads(capsys.readouterr().out)
        assert (tree["entries"], tree["digest_entries"]) == (info.n_entries, info.digest_entries)
        assert tree["by_level"] == info.n_by_level
        names.append(tree["memory"])
    from opd_evolver.memory.weaviate_server import open_server

    opened = open_server()
    try:
        notes = opened.call(
            lambda client: client.collections.get(weaviate_schema.NOTES).query.fetch_objects(limit=1000)
        )
        known = {one.properties["memory"] for one in notes.objects}
        assert names[1] in known and names[0] not in known
    finally:
        opened.close()


def stored_texts(names: set[str]) -> list[str]:
    """Everything that the server holds of these memories, as text."""
    from opd_evolver.memory.weaviate_server import open_server

    opened = open_server()
    try:
        found = []
        for name in weaviate_schema.COLLECTIONS.values():
            collection = opened.call(lambda client, name=name: client.collections.get(name))  # type: ignore[misc]
            for tenant in collection.tenants.get():
                if tenant.rpartition("-")[0] in names:
                    page = collection.with_tenant(tenant).query.fetch_objects(limit=1000).objects
                    found += [json.dumps(one.properties, ensure_ascii=False) for one in page]
        return found
    finally:
        opened.close()


def test_erase_reaches_what_the_server_hosts_and_rollback_restores_from_it(
    tmp_path: Path, remote: MemoryParams, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run whose memory lies on the server: reindex, erase and rollback, each with equal counts and digests."""
    import finished_run

    from opd_evolver import cli, lineage, step
    from opd_evolver.memory.snapshot import read_entries
    from opd_evolver.steps import plan

    def told(*arguments: str) -> dict:  # type: ignore[type-arg]
        capsys.readouterr()
        assert cli.main(["memory", *arguments, "--name", finished_run.NAME, "--json"]) == 0
        return dict(json.loads(capsys.readouterr().out))

    with patch.dict(finished_run.SMALL, {"memory.store": "weaviate"}):
        run = finished_run.build(tmp_path, finished_run.policy_folder(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert run.params.memory.store == "weaviate"
    folder = run.paths.version(1) / "memory"
    info = verify(folder)
    again = told("reindex")
    assert (again["entries"], again["digest_entries"]) == (info.n_entries, info.digest_entries)
    hosted = told("copy", "--to", "weaviate")["memory"]
    entry = next(one for one in read_entries(folder) if one.status == "live")
    words = json.dumps(entry.content.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))[1:-1]
    assert any(words in text.replace('\\"', '"') for text in stored_texts({hosted})), "the control"

    assert told("rollback", "1")["lineage"].endswith("~2")
    branched = lineage.open_run(tmp_path, finished_run.NAME)
    with finished_run.scripted():
        step.run(plan.begin_job(branched, 2))
    live = branched.paths.live(2)
    with Memory.open(live, branched.params.memory, read_only=True) as memory:
        assert memory.digest() == info.digest_entries, "rolled back onto the server"
    done = told("erase", entry.entry_id, "--reason", "asked")
    assert done["live"] == 2
    names = {str(stores.name_of(one)) for one in (live, run.paths.run / "hosted" / "weaviate")}
    texts = stored_texts(names)
    assert texts and not any(words in text.replace('\\"', '"') for text in texts)
    assert not stored_texts({hosted}), "the old copy is off the server"
    now = verify(folder)
    assert now.digest_entries != info.digest_entries
    with Memory.open(live, branched.params.memory, read_only=True) as memory:
        assert memory.digest() == now.digest_entries
        assert memory.get([entry.entry_id])[0].status == "erased"
    assert told("undo")["lineage"] == finished_run.NAME
