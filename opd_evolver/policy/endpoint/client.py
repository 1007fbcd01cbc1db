"""One patient client of a chat endpoint: retries with back-off and jitter, a rate limit, a limit of time.

What may pass (429, 5xx, time-outs, cut streams, a dead server) is tried again until the site's patience ends;
then it is an outage, never a failure of the agent. What will not mend itself is an error at once.
"""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import httpx

from opd_evolver.console import say
from opd_evolver.errors import OpdError, OutageError, SetupError
from opd_evolver.policy.endpoint import wire
from opd_evolver.policy.endpoint.address import KEY, URL, Address
from opd_evolver.retries import may_pass, retry_after_s

FIRST_WAIT_S, LONGEST_WAIT_S, HEARTBEAT_S, CONNECT_S = 0.5, 30.0, 5.0, 10.0
MOST_MALFORMED = 3
MOST_BYTES = 32_000_000
Sleep = Callable[[float], Awaitable[None]]


class _Passing(Exception):
    """A failure that may pass. `after_s`: when the server asks to be tried again."""

    def __init__(self, seen: str, after_s: float | None = None) -> None:
        super().__init__(seen)
        self.seen, self.after_s = seen, after_s


class TooLong(Exception):
    """The server says that a prompt is longer than its context. `error`: what that is if nothing can be left out."""

    def __init__(self, error: SetupError) -> None:
        super().__init__(error.seen)
        self.error = error


class Gate:
    """Lets requests start one by one: evenly spaced under a rate limit, and not before a server wants more."""

    def __init__(self, per_minute: float | None, sleep: Sleep) -> None:
        self._gap_s = 60.0 / per_minute if per_minute else 0.0
        self._sleep = sleep
        self._next = self._held = 0.0

    def hold(self, seconds: float) -> None:
        """No request starts for so long."""
        self._held = max(self._held, time.monotonic() + seconds)

    async def turn(self) -> None:
        """Wait until a request may start."""
        while (wait_s := max(self._next, self._held) - time.monotonic()) > 0:
            await self._sleep(wait_s)
        self._next = time.monotonic() + self._gap_s


class Client:
    """Speaks to one server; belongs to one event loop.

    Args:
        where: address, headers and limits.
        sleep: waits the given seconds; injected by tests.
        jitter: a number in [0, 1) that spreads the retries of many clients.
    """

    def __init__(
        self, where: Address, sleep: Sleep = asyncio.sleep, jitter: Callable[[], float] = random.random
    ) -> None:
        self.where, self._sleep, self._jitter = where, sleep, jitter
        self._gate = Gate(where.requests_per_minute, sleep)
        self._in_flight = asyncio.Semaphore(where.concurrency)
        self._told = 0.0
        self._http = httpx.AsyncClient(
            headers={name: value.get_secret_value() for name, value in where.headers.items()},
            timeout=httpx.Timeout(None, connect=min(CONNECT_S, where.timeout_s)),
            limits=httpx.Limits(max_connections=where.concurrency),
            follow_redirects=False,  # another host would be sent the key
            trust_env=not where.is_local,
        )

    async def ask(self, body: Mapping[str, Any]) -> tuple[wire.Answer, int]:
        """The answer to one request, and how many tries failed before it.

        Raises:
            OutageError: the server kept failing longer than OPD_ENDPOINT_PATIENCE_S.
            SetupError: the server refuses the request, or what it says is no chat completion.
            TooLong: it refuses the request for its length.
        """
        async with self._in_flight:
            began: float | None = None
            n_failed = n_malformed = 0
            while True:
                await self._gate.turn()
                try:
                    return await self._once(body), n_failed
                except _Passing as failure:
                    last = failure
                except wire.Malformed as failure:
                    n_malformed += 1
                    seen = failure.told(self.where.scrubbed)
                    if n_malformed >= MOST_MALFORMED:
                        raise self._no_endpoint(seen) from None
                    last = _Passing(f"answers with {seen}")
                n_failed += 1
                now = time.monotonic()
                began = now if began is None else began
                await self._wait(last, n_failed, now - began)

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def _wait(self, failure: _Passing, n_failed: int, failing_s: float) -> None:
        """Back off before the next try.

        Raises:
            OutageError: patience ends before then.
        """
        back_off_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** min(n_failed - 1, 10))
        wait_s = back_off_s * (0.5 + 0.5 * self._jitter())
        if failure.after_s is not None:
            # A little later than asked, not all at once.
            wait_s = failure.after_s + FIRST_WAIT_S * self._jitter()
            if wait_s <= self.where.patience_s - failing_s:
                self._gate.hold(failure.after_s)
        if failing_s + wait_s > self.where.patience_s:
            raise OutageError(
                f"{self.where.url} {failure.seen} ({n_failed} times in {failing_s:.0f} s)",
                "a server that answers",
                f"bring it up, see that {self.where.named_by} is right, or raise OPD_ENDPOINT_PATIENCE_S; "
                f"then: {self.where.again}",
            )
        now = time.monotonic()
        if failing_s >= HEARTBEAT_S and now - self._told >= HEARTBEAT_S:
            self._told = now
            say(f"{self.where.url} {failure.seen}: waiting ({failing_s:.0f} s of {self.where.patience_s:.0f} s)")
        await self._sleep(wait_s)

    async def _once(self, body: Mapping[str, Any]) -> wire.Answer:
        try:
            async with (
                asyncio.timeout(self.where.timeout_s),
                self._http.stream("POST", f"{self.where.url}/chat/completions", json=body) as response,
            ):
                if response.status_code != 200:
                    raise self._refusal(response, str(body["model"]), await _read(response))
                if "event-stream" not in response.headers.get("content-type", ""):
                    return wire.whole(await _read(response))
                stream = wire.Stream()
                async for line in _lines(response):
                    stream.feed(line)
                return stream.answer()
        except TimeoutError:
            raise _Passing(f"has not answered within {self.where.timeout_s:g} s") from None
        except wire.Broken as failure:
            raise _Passing(f"broke off: {failure.told(self.where.scrubbed)}") from None
        except httpx.DecodingError:
            raise wire.Malformed("a body that cannot be decompressed") from None
        except httpx.TransportError as failure:
            raise self._unreachable(failure) from None

    def _unreachable(self, failure: httpx.TransportError) -> Exception:
        cause: BaseException | None = failure
        while cause is not None:
            if isinstance(cause, ssl.SSLCertVerificationError):
                return SetupError(
                    f"the certificate of {self.where.url} is not trusted: {cause.verify_message}",
                    "one that this machine trusts",
                    "set SSL_CERT_FILE to the authority's certificate",
                )
            cause = cause.__cause__ or cause.__context__
        kind = "cannot be reached" if isinstance(failure, httpx.ConnectError) else "broke off"
        return _Passing(f"{kind} ({type(failure).__name__}: {self.where.scrubbed(str(failure))[:120]})")

    def _refusal(self, response: httpx.Response, model: str, raw: bytes) -> Exception:
        """What a status other than 200 means."""
        status, said = response.status_code, wire.brief(wire.error_text(raw), self.where.scrubbed)
        url = self.where.named_by
        seen = f"{status}{f': {said}' if said else ''}"
        if may_pass(status):
            return _Passing(f"answers {seen}", retry_after_s(response.headers.get("retry-after")))
        if status in (401, 403):
            site = "" if url == URL else f", and {URL} to this server or not at all"
            return SetupError(f"{self.where.url} refuses the key ({seen})", "a key that it accepts", f"set {KEY}{site}")
        if status == 404:
            return SetupError(
                f"{self.where.url} knows no such address or model ({seen})",
                f"an OpenAI-compatible server of the model {model}",
                f"set {url} (it mostly ends in /v1) or {self.where.model_named_by}; "
                f"{self.where.url}/models lists its models",
            )
        if 300 <= status < 400:
            return SetupError(f"{self.where.url} redirects ({status})", "the final address", f"set {url} to it")
        error = SetupError(
            f"{self.where.url} refuses the request ({seen})",
            "a request within the server's limits",
            "lower memory.entry_token_budget, fast.max_steps or fast.*_max_new_tokens, set policy.thinking to null, or "
            "mend the server",
        )
        return TooLong(error) if status == 413 or wire.is_too_long(raw) else error

    def _no_endpoint(self, seen: str) -> OpdError:
        return SetupError(
            f"{self.where.url} answers 200 with {seen}, {MOST_MALFORMED} times",
            "a chat completion: choices[0].message",
            f"set {self.where.named_by} to an OpenAI-compatible server (it mostly ends in /v1)",
        )


async def _read(response: httpx.Response) -> bytes:
    """The whole body, within a limit."""
    parts, size = [], 0
    async for part in response.aiter_bytes():
        size += len(part)
        if size > MOST_BYTES:
            raise wire.Malformed(f"more than {MOST_BYTES:,} bytes")
        parts.append(part)
    return b"".join(parts)


async def _lines(response: httpx.Response) -> AsyncIterator[bytes]:
    """Lines at line feeds alone: JSON may hold other line separators."""
    rest, size = b"", 0
    async for part in response.aiter_bytes():
        size += len(part)
        if size > MOST_BYTES:
            raise wire.Malformed(f"more than {MOST_BYTES:,} bytes")
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            yield line.rstrip(b"\r")
    if rest:
        yield rest.rstrip(b"\r")
