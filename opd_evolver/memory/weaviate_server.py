"""The connection to a Weaviate server: its address, one patient client, and errors with their mend.

Every operation of the index is idempotent, so a call that met a dead server is simply made again, with back-off
and a heartbeat, until the site's patience ends. What was acknowledged lies in the ledger all the while.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pydantic import SecretStr

from opd_evolver.errors import OutageError, SetupError
from opd_evolver.memory.address import is_address
from opd_evolver.records import Record
from opd_evolver.settings import load_settings

T = TypeVar("T")
START = "opd up --store weaviate (or set OPD_WEAVIATE_URL and OPD_WEAVIATE_API_KEY)"
LOCAL = Path(".opd") / "weaviate.json"
FIRST_WAIT_S, LONGEST_WAIT_S, HEARTBEAT_S = 0.2, 5.0, 5.0
_under_way: ContextVar[bool] = ContextVar("_under_way", default=False)


@contextmanager
def under_way() -> Iterator[None]:
    """Within it a run is under way: whoever opens a server that is down waits for it, as a call in the middle does."""
    token = _under_way.set(True)
    try:
        yield
    finally:
        _under_way.reset(token)


class Address(Record):
    """Where a server listens. The key is never printed."""

    url: str
    grpc_port: int
    api_key: SecretStr | None = None


def address() -> Address:
    """The server that the settings name, else the one that `opd up --store weaviate` started here.

    Raises:
        SetupError: neither is there, or the address is no URL.
    """
    settings = load_settings()
    if settings.weaviate_url is not None:
        if not is_address(settings.weaviate_url):
            raise SetupError(
                "OPD_WEAVIATE_URL is not valid",
                "http(s)://host:port, without user or key",
                "set OPD_WEAVIATE_URL to such a value (and OPD_WEAVIATE_API_KEY)",
            )
        return Address(
            url=settings.weaviate_url, grpc_port=settings.weaviate_grpc_port, api_key=settings.weaviate_api_key
        )
    try:
        tree = json.loads(LOCAL.read_text(encoding="utf-8"))
        return Address(url=tree["url"], grpc_port=tree["grpc_port"], api_key=tree["api_key"])
    except FileNotFoundError:
        raise SetupError("memory.store is weaviate and no server is named", "a Weaviate server", START) from None
    except (OSError, ValueError, KeyError) as error:
        raise SetupError(f"{LOCAL} cannot be read: {error}", "what `opd up` wrote", START) from None


class Server:
    """One client, opened anew after a failure.

    Args:
        where: the address.
        patience_s: how long a dead server is waited for, once it has answered or a run is under way.

    Raises:
        SetupError: nothing answers at the start, or the key is refused.
        OutageError: nothing answered for that long.
    """

    def __init__(self, where: Address, patience_s: float) -> None:
        self.where, self._patience_s = where, patience_s
        self._client: Any = None
        if _under_way.get():
            self.call(lambda client: None)
            return
        try:
            self._connected()
        except Exception as error:
            if not self._is_outage(error):
                raise
            raise SetupError(f"no Weaviate answers at {where.url}", "a running server", START) from None

    def call(self, work: Callable[[Any], T]) -> T:
        """Does `work` with a client; again, as often as it takes, while the server is down.

        Raises:
            OutageError: it stayed down longer than OPD_WEAVIATE_PATIENCE_S.
            SetupError: the server refuses the key.
        """
        began = told = time.monotonic()
        wait_s = FIRST_WAIT_S
        while True:
            try:
                return work(self._connected())
            except Exception as error:
                if not self._is_outage(error):
                    raise
                self.close()
                now = time.monotonic()
                if now - began > self._patience_s:
                    raise OutageError(
                        f"Weaviate at {self.where.url} has not answered for {now - began:.0f} s",
                        "a running server; nothing that was committed is lost",
                        f"{START}, then: opd resume",
                    ) from None
                if now - told >= HEARTBEAT_S or wait_s == FIRST_WAIT_S:
                    told = now
                    print(
                        f"Weaviate at {self.where.url} does not answer: waiting "
                        f"({now - began:.0f} s of {self._patience_s:.0f} s)",
                        file=sys.stderr,
                        flush=True,
                    )
                time.sleep(wait_s)
                wait_s = min(LONGEST_WAIT_S, 2 * wait_s)

    def close(self) -> None:
        """Closes the client; the next call opens another one."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def _connected(self) -> Any:
        if self._client is None:
            self._client = connect(self.where)
        return self._client

    def _is_outage(self, error: Exception) -> bool:
        """Whether the server may answer later; a refused key, or our own mistake, will not mend itself."""
        import grpc
        import httpx
        from weaviate import exceptions

        said = str(error).lower()
        if _is_refusal(error):
            raise SetupError(
                f"Weaviate at {self.where.url} refuses the key", "its API key", "set OPD_WEAVIATE_API_KEY"
            ) from None
        down = (
            exceptions.WeaviateConnectionError,
            exceptions.WeaviateGRPCUnavailableError,
            exceptions.WeaviateStartUpError,
            exceptions.WeaviateTimeoutError,
            exceptions.WeaviateClosedClientError,
            exceptions.WeaviateRetryError,
            httpx.TransportError,
            grpc.RpcError,
            ConnectionError,
        )
        if isinstance(error, down):
            return True
        worded = isinstance(error, exceptions.WeaviateBaseError) and any(
            word in said
            for word in ("unavailable", "connect", "status code: 503", "no leader", "leader not found", "socket closed")
        )
        return worded


_REFUSED = frozenset({401, 403, 7, 16})
"""HTTP's unauthorized and forbidden, gRPC's permission denied and unauthenticated."""
_REFUSED_WORDS = re.compile(
    r"status ?code\W+(40[13]\b|unauthenticated|permission_denied)|unauthorized|unauthenticated|forbidden action"
)


def _is_refusal(error: Exception) -> bool:
    """Whether the key is the trouble. Numbers alone say nothing: an address may hold them."""
    import grpc
    from weaviate import exceptions

    if isinstance(error, grpc.RpcError):
        code = getattr(error, "code", lambda: None)()
        return code is not None and code.value[0] in _REFUSED
    if not isinstance(error, exceptions.WeaviateBaseError):
        return False
    return getattr(error, "status_code", None) in _REFUSED or bool(_REFUSED_WORDS.search(str(error).lower()))


class _OurPatience(logging.Filter):
    """The client tries a dead server again for a minute without a word, and offers no setting for it.

    It logs each of these tries before it sleeps: there the failure is handed to `Server.call` instead, which waits
    with a heartbeat and as long as the site wants.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        said = record.getMessage()
        if "Retrying with exponential backoff" in said:
            raise ConnectionError(said.partition(" received exception")[0])
        return True


def connect(where: Address) -> Any:
    """A client that has made sure that the server is ready."""
    import weaviate
    from weaviate.classes.init import AdditionalConfig, Auth, Timeout
    from weaviate.logger import logger

    if not any(isinstance(one, _OurPatience) for one in logger.filters):
        logger.addFilter(_OurPatience())
        logger.setLevel(min(logging.INFO, logger.getEffectiveLevel()))
    parts = urlsplit(where.url)
    secure = parts.scheme == "https"
    client = weaviate.connect_to_custom(
        http_host=str(parts.hostname),
        http_port=parts.port or (443 if secure else 80),
        http_secure=secure,
        grpc_host=str(parts.hostname),
        grpc_port=where.grpc_port,
        grpc_secure=secure,
        auth_credentials=Auth.api_key(where.api_key.get_secret_value()) if where.api_key is not None else None,
        additional_config=AdditionalConfig(timeout=Timeout(init=10, query=60, insert=120), trust_env=False),
    )
    if not client.is_ready():
        client.close()
        raise ConnectionError(f"{where.url} is not ready")
    return client


def open_server() -> Server:
    """The server of this site; see `address`."""
    return Server(address(), load_settings().weaviate_patience_s)
