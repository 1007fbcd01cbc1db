"""The embeddings endpoint against a server on loopback that misbehaves in every way we could think of."""

from __future__ import annotations

import email.utils
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from embedding_server import KEY, Answer, EmbeddingServer, embedding_server, vector_of, well
from pydantic import SecretStr

from opd_evolver.errors import OpdError, OutageError, SetupError
from opd_evolver.memory import embed_endpoint
from opd_evolver.memory.embed import open_embedder
from opd_evolver.memory.embed_endpoint import EndpointEmbedder
from opd_evolver.memory.vectors import CHUNK, CachedEmbedder

TEXTS = ["zora late 4", "zora paid 7", "milo late 9"]


@pytest.fixture
def server() -> Iterator[EmbeddingServer]:
    with embedding_server() as started:
        yield started


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed_endpoint, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(embed_endpoint, "LONGEST_WAIT_S", 0.05)


def opened(
    server: EmbeddingServer, *, key: str = KEY, batch: int = 2, timeout_s: float = 5.0, patience_s: float = 20.0
) -> EndpointEmbedder:
    return EndpointEmbedder("m", server.url, SecretStr(key), batch=batch, timeout_s=timeout_s, patience_s=patience_s)


def raw(status: int, body: str, **headers: str) -> Callable[[list[str]], Answer]:
    return lambda texts: (status, body.encode(), {name.replace("_", "-"): value for name, value in headers.items()})


def slow(texts: list[str]) -> Answer:
    time.sleep(1.0)
    return well(texts)


def with_rows(change: Callable[[list[dict]], object]) -> Callable[[list[str]], Answer]:  # type: ignore[type-arg]
    def answer(texts: list[str]) -> Answer:
        data = json.loads(well(texts)[1])["data"]
        return 200, json.dumps({"data": change(data)}).encode(), {}

    return answer


FAULTS = {
    "429": raw(429, "slow down", Retry_After="0"),
    "500": raw(500, "oh"),
    "503": raw(503, ""),
    "no JSON": raw(200, "<html>gateway</html>"),
    "no object": raw(200, "[1, 2]"),
    "no data": raw(200, '{"error": "x"}'),
    "one vector less": with_rows(lambda data: data[1:]),
    "one vector twice": with_rows(lambda data: [data[0], *data[:-1]]),
    "ragged": with_rows(lambda data: [{**data[0], "embedding": data[0]["embedding"][1:]}, *data[1:]]),
    "not finite": with_rows(lambda data: [{**one, "embedding": [float("nan")] * 8} for one in data]),
    "zeros": with_rows(lambda data: [{**one, "embedding": [0.0] * 8} for one in data]),
    "base64": with_rows(lambda data: [{**one, "embedding": "AAAA"} for one in data]),
    "cut off": lambda texts: (200, b"{", {"Content-Length": "99", "Connection": "close"}),
    "bad compression": raw(200, "x", Content_Encoding="gzip"),
}


def test_vectors_are_units_in_the_order_of_the_texts_and_blank_is_not_sent(server: EmbeddingServer) -> None:
    embedder = opened(server)
    found = embedder.embed([TEXTS[0], "", TEXTS[1], " \n", TEXTS[2], "\ud800"])
    assert found.dtype == np.float32 and found.shape == (6, 8) and embedder.dimension == 8
    assert np.allclose(np.linalg.norm(found, axis=1), [1, 0, 1, 0, 1, 1], atol=1e-6)
    for row, text in zip(found[[0, 2, 4]], TEXTS, strict=True):
        told = np.array(vector_of(text))
        assert np.allclose(row, told / np.linalg.norm(told), atol=1e-6)
    assert [len(texts) for texts in server.asked] == [2, 2], "in batches"
    assert embedder.identity == "endpoint:m-v1"
    assert embedder.embed([]).shape == (0, 8)


@pytest.mark.parametrize("name", FAULTS)
def test_what_may_mend_itself_is_tried_again(
    name: str, server: EmbeddingServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.faults = [FAULTS[name]] * 3
    assert opened(server, batch=8).embed(TEXTS).shape == (3, 8)
    assert len(server.asked) == 4
    assert "trying again" in capsys.readouterr().err


@pytest.mark.parametrize("name", FAULTS)
def test_patience_ends_with_an_outage(name: str, server: EmbeddingServer) -> None:
    server.answer = FAULTS[name]
    with pytest.raises(OutageError, match=r"embeddings endpoint http.* has failed for .*mend: .*opd resume") as error:
        opened(server, batch=8, patience_s=0.1).embed(TEXTS)
    assert error.value.exit_code == 3 and len(server.asked) > 1


@pytest.mark.parametrize("dripping", [False, True])
def test_a_slow_endpoint(dripping: bool, server: EmbeddingServer) -> None:
    if dripping:
        server.dripping_s = 0.05  # each byte in time, the whole never
    else:
        server.faults = [slow] * 50
    began = time.monotonic()
    with pytest.raises(OutageError, match=r"no (whole )?answer within"):
        opened(server, timeout_s=0.2, patience_s=0.3).embed(TEXTS[:1])
    assert time.monotonic() - began < 10


def test_nobody_listens(server: EmbeddingServer) -> None:
    server.stop()
    with pytest.raises(OutageError, match="ConnectError"):
        opened(server, patience_s=0.1).embed(TEXTS)


@pytest.mark.parametrize("date", [False, True])
def test_retry_after_is_obeyed(server: EmbeddingServer, date: bool) -> None:
    # A date has whole seconds.
    told = email.utils.formatdate(time.time() + 2, usegmt=True) if date else "1"
    server.faults = [raw(429, "", Retry_After=told)]
    began = time.monotonic()
    opened(server).embed(TEXTS[:1])
    assert time.monotonic() - began >= 1.0


@pytest.mark.parametrize("status", [301, 400, 404, 413, 422])
def test_what_will_not_mend_itself_is_said_at_once(status: int, server: EmbeddingServer) -> None:
    server.answer = raw(status, f"no such model, dear {KEY}", Location="http://127.0.0.1:9/elsewhere")
    with pytest.raises(SetupError, match=f"status {status}: no such model.*memory.embedder") as error:
        opened(server).embed(TEXTS[:1])
    assert len(server.asked) == 1 and KEY not in str(error.value)


def test_a_refused_key_is_never_shown(server: EmbeddingServer, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SetupError, match=r"refuses the key.*OPD_EMBEDDINGS_API_KEY") as error:
        opened(server, key="sk-wrong").ready()
    assert "sk-wrong" not in str(error.value) + repr(opened(server, key="sk-wrong").__dict__)
    server.faults = [raw(500, f"who is {KEY}?")]
    opened(server).ready()
    assert KEY not in capsys.readouterr().err


def test_another_dimension_names_reembed(server: EmbeddingServer) -> None:
    embedder = opened(server)
    embedder.expect(8)
    server.answer = lambda texts: well(texts, 12)
    with pytest.raises(SetupError, match=r"gives 8 dimensions.*12.*opd memory reembed"):
        embedder.embed(TEXTS)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://x/v1",
        "nonsense",
        "http://me:pass@host/v1",
        "http://:pass@127.0.0.1:9/v1",
        "http://h/v1?key=pass",
        "http://h/v1#pass",
        "http://h:99999",
    ],
)
def test_a_wrong_address_is_not_repeated(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPD_EMBEDDINGS_URL", url)
    with pytest.raises(SetupError, match="OPD_EMBEDDINGS_URL is not valid") as error:
        open_embedder("endpoint:m")
    assert "pass" not in str(error.value)


def test_settings_name_it_and_nothing_is_asked_before_a_vector_is_wanted(
    server: EmbeddingServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from opd_evolver.settings import load_settings

    monkeypatch.chdir(tmp_path)
    for name in ("endpoint:", "endpoint:m"):
        with pytest.raises(SetupError, match=r"OPD_EMBEDDINGS_URL|names no model"):
            open_embedder(name)
    for name, value in server.settings.items():
        monkeypatch.setenv(name, value)
    load_settings.cache_clear()
    embedder = open_embedder("endpoint:org/model:latest")
    embedder.expect(8)
    assert embedder.identity == "endpoint:org/model:latest-v1" and embedder.dimension == 8 and not server.asked
    embedder.embed(TEXTS)
    assert open_embedder("endpoint:org/model:latest") is embedder and len(server.asked) == 1
    assert KEY not in repr(load_settings())


def test_a_crash_in_the_middle_of_many_loses_one_batch_at_most(server: EmbeddingServer, tmp_path: Path) -> None:
    texts = [f"text {n}" for n in range(10_000)]
    n_before = 40

    def fails_later(asked: list[str]) -> Answer:
        return well(asked) if len(server.asked) <= n_before else (400, b"down", {})

    server.answer = fails_later
    with pytest.raises(OpdError):
        CachedEmbedder(opened(server, batch=CHUNK), tmp_path).embed(texts)
    server.answer = well
    server.asked.clear()
    again = CachedEmbedder(opened(server, batch=CHUNK), tmp_path)
    assert again.dimension == 8 and not server.asked, "known from the vectors that were kept"
    found = again.embed(texts)
    assert server.n_texts == 10_000 - n_before * CHUNK
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    server.asked.clear()
    assert np.array_equal(CachedEmbedder(opened(server), tmp_path).embed(texts), found) and not server.asked
