"""An OpenAI-compatible embeddings endpoint: `memory.embedder: endpoint:MODEL`.

Its address and key are site settings (OPD_EMBEDDINGS_URL, OPD_EMBEDDINGS_API_KEY). What may mend itself (time-outs,
429, 5xx, answers that are no embeddings) is tried again with back-off until the site's patience ends; what will not
(a refused key, an unknown model, another dimension) is said at once. The key appears in no message.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
from pydantic import SecretStr

from opd_evolver.console import say
from opd_evolver.errors import OutageError, SetupError
from opd_evolver.memory.address import is_address
from opd_evolver.memory.unit_vectors import embed_told, other_dimension, unit
from opd_evolver.retries import may_pass, retry_after_s
from opd_evolver.settings import Settings

FIRST_WAIT_S, LONGEST_WAIT_S, HEARTBEAT_S = 0.5, 30.0, 5.0
MOST_BYTES = 256_000_000
MEND = "mend it or set OPD_EMBEDDINGS_URL, then: opd resume"


class _Again(Exception):
    """A failure that may mend itself.

    Args:
        why: for the user.
        after_s: what the server asked to wait.
    """

    def __init__(self, why: str, after_s: float = 0.0) -> None:
        super().__init__(why)
        self.why, self.after_s = why, after_s


def of_settings(model: str, settings: Settings) -> EndpointEmbedder:
    """The endpoint that the site's settings name.

    Raises:
        SetupError: no model or address, or the address is not one.
    """
    url = settings.embeddings_url
    mend = "set OPD_EMBEDDINGS_URL, for example http://127.0.0.1:8000/v1 (and OPD_EMBEDDINGS_API_KEY)"
    if not model:
        raise SetupError("memory.embedder: endpoint: names no model", "endpoint:MODEL", "name the model")
    if url is None:
        raise SetupError(f"memory.embedder is endpoint:{model} and no endpoint is named", "its address", mend)
    if not is_address(url):
        raise SetupError("OPD_EMBEDDINGS_URL is not valid", "http(s)://host[:port]/v1, without user or key", mend)
    return EndpointEmbedder(
        model,
        url,
        settings.embeddings_api_key,
        batch=settings.embeddings_batch,
        timeout_s=settings.embeddings_timeout_s,
        patience_s=settings.embeddings_patience_s,
    )


class EndpointEmbedder:
    """Vectors by `POST {url}/embeddings`.

    Args:
        model: its id at the endpoint; the identity, since the weights cannot be seen.
        url: base of the API.
        key: sent as a bearer token.
        batch: most texts of one request.
        timeout_s: how long one request may take.
        patience_s: how long an endpoint that fails is tried again.
    """

    def __init__(
        self, model: str, url: str, key: SecretStr | None = None, *, batch: int, timeout_s: float, patience_s: float
    ) -> None:
        self.identity = f"endpoint:{model}-v1"
        self.model, self.url, self.batch = model, url.rstrip("/"), batch
        self._key, self._timeout_s, self._patience_s = key, timeout_s, patience_s
        self._dimension: int | None = None
        self._client: Any = None

    @property
    def dimension(self) -> int:
        """Columns of the vectors; asks once when nothing has told them yet."""
        if self._dimension is None:
            self._batches(["dimension"])
        return self._dimension or 0

    def expect(self, dimension: int) -> None:
        """As `Embedder.expect`."""
        if self._dimension not in (None, dimension):
            raise other_dimension(self.identity, self._dimension or 0, dimension)
        self._dimension = dimension

    def ready(self) -> None:
        """Asks for one vector, so that a wrong key or model is known before a run is begun."""
        self._batches(["ready"])

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """[N, dimension] float32, rows of unit length, zero where a text is blank.

        Raises:
            OutageError: it failed for longer than OPD_EMBEDDINGS_PATIENCE_S.
            SetupError: it refuses key, model or texts, or gives another dimension than before.
        """
        return embed_told(texts, lambda: self.dimension, self._batches)

    def _batches(self, texts: list[str]) -> npt.NDArray[np.float32]:
        parts = [self._patiently(texts[at : at + self.batch]) for at in range(0, len(texts), self.batch)]
        return np.concatenate(parts)

    def _patiently(self, texts: list[str]) -> npt.NDArray[np.float32]:
        began = told = None  # of the failing
        wait_s = FIRST_WAIT_S
        while True:
            try:
                return self._once(texts)
            except _Again as error:
                now = time.monotonic()
                began = now if began is None else began
                left_s = self._patience_s - (now - began)
                if left_s <= 0:
                    raise OutageError(
                        f"the embeddings endpoint {self.url} has failed for {now - began:.0f} s: {error.why}",
                        "vectors; those that it gave are kept",
                        MEND,
                    ) from None
                if told is None or now - told >= HEARTBEAT_S:
                    told = now
                    said = f"{error.why}: trying again ({now - began:.0f} s of {self._patience_s:.0f} s)"
                    say(f"embeddings endpoint {self.url}: {said}")
                time.sleep(min(max(wait_s, error.after_s), left_s))
                wait_s = min(LONGEST_WAIT_S, 2 * wait_s)

    def _once(self, texts: list[str]) -> npt.NDArray[np.float32]:
        status, headers, body = self._post({"model": self.model, "input": texts, "encoding_format": "float"})
        if status == 200:
            found = _vectors(body, len(texts))
            self.expect(found.shape[1])
            return found
        if may_pass(status):
            raise _Again(f"status {status}: {self._said(body)}", retry_after_s(headers.get("retry-after")) or 0.0)
        if status in (401, 403):
            raise SetupError(f"{self.url} refuses the key (status {status})", "its key", "set OPD_EMBEDDINGS_API_KEY")
        raise SetupError(
            f"{self.url}/embeddings answers with status {status}: {self._said(body)}",
            f"vectors of {len(texts)} texts by `{self.model}`",
            "set OPD_EMBEDDINGS_URL, a model it has (memory.embedder: endpoint:MODEL), or a smaller "
            "OPD_EMBEDDINGS_BATCH",
        )

    def _post(self, tree: dict[str, Any]) -> tuple[int, Any, bytes]:
        """Status, headers and body. The time-out bounds the whole request, also one that trickles."""
        import httpx

        if self._client is None:
            local = urlsplit(self.url).hostname in ("localhost", "127.0.0.1", "::1")
            # A redirect is not followed: it would take texts and key to another place.
            self._client = httpx.Client(timeout=self._timeout_s, trust_env=not local, follow_redirects=False)
        headers = {"Authorization": f"Bearer {self._key.get_secret_value()}"} if self._key is not None else {}
        deadline = time.monotonic() + self._timeout_s
        body = bytearray()
        try:
            with self._client.stream("POST", f"{self.url}/embeddings", json=tree, headers=headers) as answer:
                for part in answer.iter_bytes():
                    body += part
                    if time.monotonic() > deadline:
                        raise _Again(f"no whole answer within {self._timeout_s:.0f} s")
                    if len(body) > MOST_BYTES:
                        raise _Again(f"an answer of more than {MOST_BYTES} bytes")
                return answer.status_code, answer.headers, bytes(body)
        except httpx.TimeoutException:
            raise _Again(f"no answer within {self._timeout_s:.0f} s") from None
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise _Again(f"{type(error).__name__}: {error}") from None

    def _said(self, body: bytes) -> str:
        text = " ".join(body[:2000].decode("utf-8", "replace").split())
        key = self._key.get_secret_value() if self._key is not None else ""
        return (text.replace(key, "***") if key else text)[:200] or "no text"


def _vectors(body: bytes, n: int) -> npt.NDArray[np.float32]:
    """[n, dimension] of an answer, in the order of the texts."""
    try:
        data = json.loads(body)["data"]
        rows: dict[int, Any] = {int(one.get("index", at)): one["embedding"] for at, one in enumerate(data)}
        if len(data) != n or sorted(rows) != list(range(n)):
            raise _Again(f"{len(data)} vectors for {n} texts")
        found = unit([rows[at] for at in range(n)])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise _Again("an answer that is no list of embeddings") from None
    if not found.any(axis=1).all():
        raise _Again("a vector of zeros")
    return found
