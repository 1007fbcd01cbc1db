"""What only a server has: it is killed, wiped, down, refuses; vectors and tenants are looked at from outside."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx
import numpy as np
import pytest
from memory_cases import filled, tip, wave
from weaviate_server import TestServer

from opd_evolver.errors import OutageError, SetupError
from opd_evolver.memory import stores, weaviate_schema
from opd_evolver.memory.ledger import Ledger
from opd_evolver.memory.store import LEDGER_FOLDER, Memory
from opd_evolver.params import MemoryParams
from opd_evolver.settings import load_settings

pytestmark = pytest.mark.timeout(600)


def test_a_killed_server_loses_nothing_and_is_waited_for(
    tmp_path: Path, weaviate: TestServer, remote: MemoryParams
) -> None:
    import threading

    with Memory.open(tmp_path, remote) as memory:
        memory.commit(wave(0))
        weaviate.kill()
        starter = threading.Timer(1.5, weaviate.start)
        starter.start()
        memory.commit(wave(1))
        starter.join()
        assert len(memory.entries()) == 8 and len(memory.index.applied()) == 2
    with Memory.open(tmp_path, remote) as memory:
        found = memory.digest()
    filled(tmp_path / "other" / LEDGER_FOLDER, 2).close()
    with Memory.open(tmp_path / "other") as embedded:
        assert embedded.digest() == found


@pytest.mark.parametrize("behind_the_ledger", [False, True])
def test_a_server_that_stays_down_stops_the_commit_and_nothing_is_lost(
    tmp_path: Path,
    weaviate: TestServer,
    remote: MemoryParams,
    capsys: pytest.CaptureFixture[str],
    behind_the_ledger: bool,
) -> None:
    append = Ledger.append

    def killing(ledger: Ledger, *arguments: Any) -> Any:
        done = append(ledger, *arguments)
        weaviate.kill()
        return done

    with patch.dict(os.environ, {"OPD_WEAVIATE_PATIENCE_S": "1"}):
        load_settings.cache_clear()
        memory = Memory.open(tmp_path, remote)
        memory.commit(wave(0))
        if not behind_the_ledger:
            weaviate.kill()
        began = time.monotonic()
        try:
            with (
                patch.object(Ledger, "append", killing),
                pytest.raises(OutageError, match=r"has not answered.*nothing that was committed is lost.*opd resume"),
            ):
                memory.commit(wave(1))
        finally:
            seconds = time.monotonic() - began
            memory.close()
            weaviate.start()
        assert "does not answer: waiting (0 s of 1 s)" in capsys.readouterr().err
        assert seconds < 30, "the client's own minute of silent tries is not waited for"
    with Memory.open(tmp_path, remote) as memory:
        assert len(memory.index.applied()) == 1 + behind_the_ledger, "what the ledger had comes in at once"
        memory.commit(wave(1))
        found = memory.digest()
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


@pytest.mark.parametrize(
    "url",
    [
        "http://user:S3CRET@host",
        "http://:S3CRET@host:8080",
        "http://host?key=S3CRET",
        "http://127.0.0.1:99999",
        "http://127.0.0.1:abc",
        "https://:S3CRET@[::1",
        "127.0.0.1:8080",
    ],
)
def test_a_wrong_address_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("OPD_WEAVIATE_URL", url)
    load_settings.cache_clear()
    with pytest.raises(SetupError, match="OPD_WEAVIATE_URL is not valid") as error:
        Memory.open(tmp_path / "live", MemoryParams(store="weaviate"))
    assert "S3CRET" not in str(error.value)
    load_settings.cache_clear()


def test_a_wrong_key_is_said_at_once(tmp_path: Path, weaviate: TestServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**weaviate.settings, "OPD_WEAVIATE_API_KEY": "wrong"}.items():
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


@pytest.mark.parametrize("url", ["http://127.0.0.1:55401", "http://forbidden.example:403", "http://h/unauthorized"])
def test_an_address_is_no_refused_key(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """A free port ended in 401 once: the server was down, and its key was blamed."""
    from weaviate.exceptions import WeaviateConnectionError

    from opd_evolver.memory.weaviate_server import Address, Server

    monkeypatch.setattr(Server, "_connected", lambda self: object())
    for error in (ConnectionError(f"{url} is not ready"), httpx.ConnectError(url), WeaviateConnectionError("refused")):

        def down(client: object, error: Exception = error) -> None:
            raise error

        with pytest.raises(OutageError, match="has not answered"):
            Server(Address(url=url, grpc_port=9), 0.1).call(down)


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_is_no_outage(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    from weaviate.exceptions import UnexpectedStatusCodeError, WeaviateQueryError

    from opd_evolver.memory.weaviate_server import Address, Server

    monkeypatch.setattr(Server, "_connected", lambda self: object())
    answer = httpx.Response(status, json={"error": "no"}, request=httpx.Request("GET", "http://h"))
    for error in (
        UnexpectedStatusCodeError("Meta endpoint", answer),
        WeaviateQueryError("unauthenticated: invalid api key", "GRPC search"),
        WeaviateQueryError("<status = StatusCode.PERMISSION_DENIED>", "GRPC search"),
    ):

        def refused(client: object, error: Exception = error) -> None:
            raise error

        with pytest.raises(SetupError, match="refuses the key"):
            Server(Address(url="http://h", grpc_port=9), 0.1).call(refused)


def test_an_opening_within_a_run_waits_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from opd_evolver.memory import weaviate_server

    where = weaviate_server.Address(url="http://127.0.0.1:9", grpc_port=9)
    tries: list[int] = []

    def third_time(asked: object) -> object:
        tries.append(1)
        if len(tries) < 3:
            raise ConnectionError("refused")
        return object()

    monkeypatch.setattr(weaviate_server, "connect", third_time)
    with weaviate_server.under_way():
        weaviate_server.Server(where, 30.0)
    assert len(tries) == 3
    del tries[:]
    with pytest.raises(SetupError, match="no Weaviate answers"):  # and at the start it is said at once
        weaviate_server.Server(where, 30.0)
    assert len(tries) == 1


def test_vectors_are_ours(tmp_path: Path, remote: MemoryParams) -> None:
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


def test_the_data_port_of_the_cluster_asks_for_the_key(weaviate: TestServer) -> None:
    """It listens on every interface."""
    url = f"http://127.0.0.1:{weaviate.ports['data']}/nodes/status"
    with httpx.Client(trust_env=False) as client:
        assert client.get(url).status_code == 401
        assert client.get(url, auth=("opd", "wrong")).status_code == 401
        assert client.get(url, auth=("opd", weaviate.key)).status_code not in (401, 403)
