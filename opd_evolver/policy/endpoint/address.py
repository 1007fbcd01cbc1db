"""Where an endpoint listens and how it may be used. From the site's settings; secrets are never printed."""

from __future__ import annotations

import ipaddress
import json
import re
from typing import Any
from urllib.parse import urlsplit

from pydantic import Field, SecretStr

from opd_evolver.console import say
from opd_evolver.errors import SetupError
from opd_evolver.records import Record
from opd_evolver.settings import Settings

URL, KEY, HEADERS = "OPD_ENDPOINT_URL", "OPD_ENDPOINT_API_KEY", "OPD_ENDPOINT_HEADERS"
TYPED = "--policy"
"""Where the URL comes from when a command names it instead of the site."""
_EXAMPLE = "http://127.0.0.1:8000/v1"
_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_VALUE = re.compile(r"[\x21-\x7e]+(?: +[\x21-\x7e]+)*")


class Address(Record):
    """A server that speaks the OpenAI-compatible chat protocol.

    Attributes:
        url: base URL, without a trailing slash and without secrets.
        headers: sent with every request; the key is one of them.
        timeout_s: most seconds of one request, waiting for its first token included.
        patience_s: how long a server that fails is tried again.
        concurrency: requests in flight.
        requests_per_minute: None is no limit.
        stream: whether replies are read as they come.
        named_by: the setting or the option that the URL comes from; errors say it.
    """

    url: str
    headers: dict[str, SecretStr] = Field(default_factory=dict)
    timeout_s: float = 300.0
    patience_s: float = 600.0
    concurrency: int = 8
    requests_per_minute: float | None = None
    stream: bool = True
    named_by: str = URL

    @property
    def model_named_by(self) -> str:
        """What names the model beside this URL."""
        return "--model" if self.named_by == TYPED else "policy.path"

    @property
    def again(self) -> str:
        """What goes on after an outage; a command that was told the URL has no run to resume."""
        return "the same command again" if self.named_by == TYPED else "opd resume"

    @property
    def is_local(self) -> bool:
        """Whether it is this machine, which no proxy serves."""
        host = urlsplit(self.url).hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"

    def scrubbed(self, text: str) -> str:
        """`text` without this site's secrets: servers repeat a wrong key in their answers."""
        secrets = {value.get_secret_value() for value in self.headers.values()}
        secrets |= {secret.removeprefix("Bearer ") for secret in secrets}
        # As it stands, and as JSON or a printed object would quote it; the longest first, for one may hold another.
        forms = {form for one in secrets for form in (one, json.dumps(one)[1:-1], repr(one)[1:-1])}
        for form in sorted(forms - {""}, key=len, reverse=True):
            text = text.replace(form, "***")
        return text


def address(settings: Settings, typed: str | None = None) -> Address:
    """The endpoint that the site's settings name, or a command.

    Args:
        settings: of this process.
        typed: another URL than the site's. Where the site names a server, key and headers are for that one alone:
            another is sent neither, and a line says so.

    Raises:
        SetupError: no URL or a wrong one, or a key or header that cannot be sent; never shows a secret.
    """
    given, named_by = (settings.endpoint_url, URL) if typed is None else (typed, TYPED)
    if given is None:
        raise SetupError("policy.backend is endpoint and no server is named", "its base URL", f"set {URL}={_EXAMPLE}")
    url = base_url(given, named_by)
    if typed is not None and _is_foreign(settings, url):
        say(f"{url} is not the server of {URL}: {KEY} and {HEADERS} are not sent to it")
        settings = settings.model_copy(update={"endpoint_api_key": None, "endpoint_headers": None})
    headers = _headers(settings.endpoint_headers)
    if settings.endpoint_api_key is not None:
        key = settings.endpoint_api_key.get_secret_value()
        if not _VALUE.fullmatch(key):
            raise SetupError(f"{KEY} holds line breaks, blanks at its ends or no ASCII", "a key", f"set {KEY} again")
        headers["Authorization"] = SecretStr(f"Bearer {key}")
    return Address(
        url=url,
        headers=headers,
        timeout_s=settings.endpoint_timeout_s,
        patience_s=settings.endpoint_patience_s,
        concurrency=settings.endpoint_concurrency,
        requests_per_minute=settings.endpoint_requests_per_minute,
        stream=settings.endpoint_stream,
        named_by=named_by,
    )


def _is_foreign(settings: Settings, url: str) -> bool:
    """Whether the site has secrets and they belong to another server."""
    if settings.endpoint_url is None or (settings.endpoint_api_key is None and settings.endpoint_headers is None):
        return False
    return _origin(url) != _origin(settings.endpoint_url)


def _origin(url: str) -> tuple[str, str | None, int | None] | None:
    """Scheme, host and port; None when it is no URL."""
    try:
        parts = urlsplit(url)
        return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return None


def base_url(given: str, named_by: str) -> str:
    """A URL as it may be printed and asked, without the path of chat completions.

    Raises:
        SetupError: it is none, or carries secrets; never shows them.
    """
    try:
        parts = urlsplit(given)
        port, host = parts.port, parts.hostname
    except ValueError:
        parts, port, host = urlsplit(""), None, None
    if parts.username or parts.password or parts.query or parts.fragment:
        raise SetupError(
            f"{named_by} carries a user, a password, a query or a fragment",
            f"an address alone, such as {_EXAMPLE}",
            f"put secrets into {KEY} or {HEADERS}",
        )
    if parts.scheme not in ("http", "https") or not host or port == 0 or any(one.isspace() for one in given):
        hidden = any(mark in given for mark in "@?#")
        raise SetupError(
            f"{named_by} is no such URL (not shown: it may hold secrets)" if hidden else f"{named_by}={given}",
            f"http(s)://host:port/v1, such as {_EXAMPLE}",
            f"set {named_by} to such a value",
        )
    return given.rstrip("/").removesuffix("/chat/completions")


def _headers(given: SecretStr | None) -> dict[str, SecretStr]:
    if given is None:
        return {}
    try:
        tree: Any = json.loads(given.get_secret_value())
    except ValueError:
        tree = None
    pairs: dict[str, Any] = tree if isinstance(tree, dict) else {"": None}
    if not all(isinstance(v, str) and _NAME.fullmatch(k) and _VALUE.fullmatch(v) for k, v in pairs.items()):
        raise SetupError(
            f"{HEADERS} cannot be read (not shown: it may hold secrets)",
            'a JSON object of header names and values, such as {"X-Team": "blue"}',
            f"set {HEADERS} to such a value",
        ) from None
    return {name: SecretStr(value) for name, value in pairs.items()}
