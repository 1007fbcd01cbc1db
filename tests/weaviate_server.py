"""A real Weaviate server for tests: free loopback ports, an API key, its own session, data in a temporary folder."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from opd_evolver.errors import SetupError
from opd_evolver.stack import weaviate

START_TIMEOUT_S = 180.0


def missing() -> str | None:
    """Why no server can be started here; None when one can. OPD_REQUIRE_WEAVIATE=1 makes that a failure."""
    try:
        weaviate.binary()
    except SetupError as error:
        if os.environ.get("OPD_REQUIRE_WEAVIATE") == "1":
            raise RuntimeError(f"OPD_REQUIRE_WEAVIATE=1, but {error}") from None
        return str(error)
    return None


class TestServer:
    """One server; it can be killed and started again on the same data and ports."""

    __test__ = False

    def __init__(self, folder: Path) -> None:
        self.folder, self.key = folder, "test-key"
        self.ports = dict(zip(weaviate.PORTS, free_ports(len(weaviate.PORTS)), strict=True))
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://{weaviate.HOST}:{self.ports['rest']}"

    @property
    def settings(self) -> dict[str, str]:
        """What a run's environment needs to find it."""
        return {
            "OPD_WEAVIATE_URL": self.url,
            "OPD_WEAVIATE_GRPC_PORT": str(self.ports["grpc"]),
            "OPD_WEAVIATE_API_KEY": self.key,
        }

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        log = (self.folder / "log").open("ab")
        environment = weaviate.environment(self.folder / "data", self.key, self.ports)
        kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "TMPDIR")}
        self._child = subprocess.Popen(
            weaviate.arguments(self.ports["rest"]),
            env={**kept, **environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        log.close()
        self.wait()

    def wait(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._ready():
            assert self._child is not None and self._child.poll() is None, (self.folder / "log").read_text()[-2000:]
            assert time.monotonic() < deadline, (self.folder / "log").read_text()[-2000:]
            time.sleep(0.1)

    def _ready(self) -> bool:
        return answers(f"{self.url}/v1/.well-known/ready")

    def kill(self) -> None:
        """kill -9, as a power cut would."""
        assert self._child is not None
        os.kill(self._child.pid, signal.SIGKILL)
        self._child.wait()

    def stop(self) -> None:
        if self._child is not None and self._child.poll() is None:
            self._child.terminate()
            try:
                self._child.wait(20)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()


def answers(url: str) -> bool:
    """Whether a loopback address says that all is well."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def free_ports(n: int) -> list[int]:
    probes = [socket.socket() for _ in range(n)]
    try:
        for probe in probes:
            probe.bind((weaviate.HOST, 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


@contextmanager
def serving(folder: Path) -> Iterator[TestServer]:
    """A started server; skips, loudly, where there is no binary."""
    if (why := missing()) is not None:
        pytest.skip(f"NOT TESTED against a real Weaviate: {why}")
    server = TestServer(folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()
