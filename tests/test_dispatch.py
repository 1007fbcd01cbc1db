"""Which server a run is handed to: what it answers, and whom it lets in."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from uuid import uuid4

import pytest
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_KEY, PREFECT_API_URL, temporary_settings

from opd_evolver.errors import SetupError
from opd_evolver.steps import dispatch

USER = "admin:pass"
DEPLOYMENT = {"id": str(uuid4()), "flow_id": str(uuid4()), "name": "default"}


class Keyed(BaseHTTPRequestHandler):
    """Prefect's API behind a key, with one deployment below /api and none below /empty."""

    def do_GET(self) -> None:
        known = ("Bearer right", f"Basic {base64.b64encode(USER.encode()).decode()}")
        status = 200 if self.headers["Authorization"] in known else 401
        if status == 200 and self.path != f"/api/deployments/name/{dispatch.DEPLOYMENT}":
            status = 200 if self.path.startswith("/page") else 500 if self.path.startswith("/broken") else 404
        self.send_response(status)
        self.end_headers()
        self.wfile.write(b"<html>" if self.path.startswith("/page") else json.dumps(DEPLOYMENT).encode())

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Keyed) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()


def asked(url: str, key: str | None = "right", user: str | None = None) -> None:
    with temporary_settings({PREFECT_API_URL: url, PREFECT_API_KEY: key, PREFECT_API_AUTH_STRING: user}):
        dispatch.need_deployment(url)


def test_the_key_or_the_user_that_is_configured_is_shown(server: str) -> None:
    asked(f"{server}/api")
    asked(f"{server}/api", None, USER)
    for key, user in ((None, None), ("wrong", None), ("right", "admin:wrong")):
        with pytest.raises(SetupError, match=r"refuses the key \(HTTP 401\).*PREFECT_API_KEY"):
            asked(f"{server}/api", key, user)


def test_what_else_a_server_may_answer(server: str) -> None:
    for path, words in (("empty", "has no deployment"), ("broken", "answers HTTP 500"), ("page", "is no Prefect API")):
        with pytest.raises(SetupError, match=f"{server}/{path} {words}.*opd up"):
            asked(f"{server}/{path}")
    with pytest.raises(SetupError, match=r"no Prefect server answers at http://127\.0\.0\.1:9/api"):
        asked("http://127.0.0.1:9/api")
