"""An embeddings endpoint on loopback that answers well, until it is told to misbehave."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

KEY = "sk-very-secret"
Answer = tuple[int, bytes, dict[str, str]]


def vector_of(text: str, dimension: int = 8) -> list[float]:
    """Not of unit length, as some servers' are not."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
    return [float(one) for one in np.random.default_rng(seed).normal(size=dimension) * 3]


def well(texts: list[str], dimension: int = 8) -> Answer:
    """What a sound endpoint says; out of order, as the API allows."""
    data = [
        {"object": "embedding", "index": at, "embedding": vector_of(text, dimension)} for at, text in enumerate(texts)
    ]
    return 200, json.dumps({"object": "list", "data": data[::-1], "model": "m"}).encode(), {}


class EmbeddingServer:
    """Holds what was asked, and the faults still to come, first one first."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.faults: list[Callable[[list[str]], Answer]] = []
        self.answer: Callable[[list[str]], Answer] = well
        self.dripping_s = 0.0
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    @property
    def n_texts(self) -> int:
        return sum(map(len, self.asked))

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                tree = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.path != "/v1/embeddings" or self.headers.get("Authorization") != f"Bearer {KEY}":
                    said = f"bad key {self.headers.get('Authorization')}".encode()
                    self._send((401 if self.path == "/v1/embeddings" else 404, said, {}))
                    return
                with outer._lock:
                    outer.asked.append(tree["input"])
                    answer = outer.faults.pop(0) if outer.faults else outer.answer
                self._send(answer(tree["input"]))

            def _send(self, answer: Answer) -> None:
                status, body, headers = answer
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                try:
                    if outer.dripping_s:
                        for at in range(len(body)):
                            self.wfile.write(body[at : at + 1])
                            time.sleep(outer.dripping_s)
                    else:
                        self.wfile.write(body)
                except OSError:
                    pass  # the client has gone

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler

    def start(self) -> None:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def settings(self) -> dict[str, str]:
        return {"OPD_EMBEDDINGS_URL": self.url, "OPD_EMBEDDINGS_API_KEY": KEY}


@contextmanager
def embedding_server() -> Iterator[EmbeddingServer]:
    server = EmbeddingServer()
    server.start()
    try:
        yield server
    finally:
        server.stop()
