"""A local server that speaks the OpenAI-compatible protocol as vLLM and SGLang do, and misbehaves on demand."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}


def completion(message: dict[str, Any] | None = None, *, finish: str | None = "stop", usage: Any = USAGE) -> dict:
    tree = {
        "id": "c1",
        "object": "chat.completion",
        "model": "m",
        "choices": [
            {"index": 0, "message": {"role": "assistant", **(message or {"content": "hello"})}, "finish_reason": finish}
        ],
    }
    return tree if usage is None else {**tree, "usage": usage}


def chunks(*deltas: dict[str, Any], finish: str | None = "stop", usage: Any = USAGE, done: bool = True) -> list[str]:
    """Server-sent events: one per delta, the finish, the usage (with no choices, as both servers send it), the end."""
    trees: list[Any] = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    if finish is not None:
        trees.append({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
    if usage is not None:
        trees.append({"choices": [], "usage": usage})
    return [f"data: {json.dumps(tree)}\n\n" for tree in trees] + (["data: [DONE]\n\n"] if done else [])


class Exchange:
    """One request as it came, and the means to answer it."""

    def __init__(self, handler: BaseHTTPRequestHandler, body: Any) -> None:
        self.handler, self.body = handler, body
        self.headers = {name.lower(): value for name, value in handler.headers.items()}
        self.path = handler.path

    def answer(self, content: str | bytes | dict, status: int = 200, **headers: str) -> None:
        kind = "application/json" if isinstance(content, dict) else "text/html"
        text = json.dumps(content) if isinstance(content, dict) else content
        raw = text.encode() if isinstance(text, str) else text
        self.handler.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(raw)), **headers}.items():
            self.handler.send_header(name.replace("_", "-"), value)
        self.handler.end_headers()
        self.handler.wfile.write(raw)

    def stream(self, events: Sequence[str], *, pause_s: float = 0.0, end: bool = True) -> None:
        """Chunked; without `end` the connection breaks before the last chunk."""
        self.handler.send_response(200)
        self.handler.send_header("Content-Type", "text/event-stream")
        self.handler.send_header("Transfer-Encoding", "chunked")
        self.handler.end_headers()
        for event in events:
            raw = event.encode()
            self.handler.wfile.write(b"%x\r\n%s\r\n" % (len(raw), raw))
            self.handler.wfile.flush()
            time.sleep(pause_s)
        if end:
            self.handler.wfile.write(b"0\r\n\r\n")
        else:
            self.handler.close_connection = True

    def good(self, text: str = "hello") -> None:
        """As asked: streamed or whole."""
        if self.body.get("stream"):
            self.stream(chunks({"role": "assistant", "content": ""}, {"content": text}))
        else:
            self.answer(completion({"content": text}))

    def drop(self) -> None:
        """Hang up without a word."""
        self.handler.close_connection = True
        self.handler.connection.close()


Behaviour = Callable[[Exchange], None]


def good(exchange: Exchange) -> None:
    exchange.good()


def says(text: str) -> Behaviour:
    return lambda exchange: exchange.good(text)


def within(n_words: int, exchange: Exchange, behave: Behaviour = good) -> None:
    """As a server with a context of so many words, which says what vLLM says of a longer prompt."""
    n = sum(len(message["content"].split()) for message in exchange.body["messages"])
    if n <= n_words:
        return behave(exchange)
    said = f"This model's maximum context length is {n_words} tokens. However, you requested {n} tokens."
    exchange.answer({"object": "error", "message": said, "type": "BadRequestError", "code": 400}, 400)


class ChatServer:
    """Follows a script of behaviours, one a request, then the last one for ever.

    Attributes:
        url: base URL.
        seen: every request, in the order in which they came.
        most_at_once: requests that were answered at the same time, at most.
    """

    def __init__(self, script: Sequence[Behaviour]) -> None:
        self._script, self._lock = list(script), threading.Lock()
        self.seen: list[Exchange] = []
        self.times: list[float] = []
        self.most_at_once = self._now = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers.get("content-length") or 0))
                outer._serve(Exchange(self, json.loads(raw)))

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def _serve(self, exchange: Exchange) -> None:
        with self._lock:
            self.seen.append(exchange)
            self.times.append(time.monotonic())
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
            behave = self._script.pop(0) if len(self._script) > 1 else self._script[0]
        try:
            behave(exchange)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client has gone, as some tests want it to
        finally:
            with self._lock:
                self._now -= 1

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def serving(*script: Behaviour) -> Iterator[ChatServer]:
    server = ChatServer(script or [good])
    try:
        yield server
    finally:
        server.close()
