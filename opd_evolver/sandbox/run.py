"""One run of untrusted code: start it isolated, read what it says within a bound, end all of it.

Whatever happens, when `Sandbox.run` returns no process of the run is left.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import IO, NamedTuple

from opd_evolver.errors import OutageError, SetupError
from opd_evolver.sandbox.commands import Started, start
from opd_evolver.sandbox.limits import LANGUAGES, Language, Limits, Mode, Outcome
from opd_evolver.sandbox.tree import NOBODY

CHUNK = 1 << 14
PATIENCE_S = 5.0
# A set-up takes a tenth of a second; a busy machine's delay is an outage, not the program's time.
SET_UP_S = 20.0
LATE = f"a set-up within {SET_UP_S:g} s"
MEND = "opd status shows what isolation this machine has"


class _Heard(NamedTuple):
    """What came out of a run until it ended or was ended."""

    stdout: bytes
    stderr: bytes
    ready: bool
    timed_out: bool
    truncated: bool


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the namespace: the process outside does so on SIGTERM, or by its own death."""
    process.terminate()
    try:
        process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _listen(process: subprocess.Popen[bytes], ready: int, limits: Limits) -> _Heard:
    """Read until all pipes are closed and the process has ended, or a limit is passed: then kill.

    The wall time begins when the set-up is told to have held.
    """
    assert process.stdout is not None and process.stderr is not None
    kept: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray(), "ready": bytearray()}
    ends = time.monotonic() + SET_UP_S
    timed_out = truncated = False
    ended = os.pidfd_open(process.pid)
    try:
        with selectors.DefaultSelector() as selector:
            for source, name in ((process.stdout, "stdout"), (process.stderr, "stderr"), (ready, "ready")):
                selector.register(source, selectors.EVENT_READ, name)
            selector.register(ended, selectors.EVENT_READ, "ended")
            while selector.get_map():
                left = PATIENCE_S if timed_out or truncated else max(0.0, ends - time.monotonic())
                for key, _ in selector.select(left):
                    chunk = os.read(key.fd, CHUNK) if key.data != "ended" else b""
                    if not chunk:
                        selector.unregister(key.fileobj)
                        continue
                    if key.data == "ready":
                        ends = time.monotonic() + limits.wall_s
                    said = kept["stdout"], kept["stderr"]
                    room = limits.output_bytes - len(said[0]) - len(said[1]) if key.data != "ready" else CHUNK
                    kept[key.data] += chunk[: max(0, room)]
                    if len(chunk) > room and not (timed_out or truncated):
                        truncated = True
                        _kill(process)
                if selector.get_map() and time.monotonic() >= ends and not (timed_out or truncated):
                    timed_out = True
                    _kill(process)
    finally:
        os.close(ended)
    return _Heard(bytes(kept["stdout"]), bytes(kept["stderr"]), bool(kept["ready"]), timed_out, truncated)


def _await_namespace(told: int) -> None:
    """Bubblewrap's outer process may end before its process 1, with which everything inside dies."""
    with os.fdopen(told, "rb") as file:
        said = file.read()
    if not said:
        return
    try:
        inside = os.pidfd_open(int(json.loads(said)["child-pid"]))
    except ProcessLookupError:
        return
    with selectors.DefaultSelector() as selector:
        selector.register(inside, selectors.EVENT_READ)
        if not selector.select(PATIENCE_S):
            signal.pidfd_send_signal(inside, signal.SIGKILL)
            selector.select()
    os.close(inside)


@contextmanager
def _running(started: Started) -> Iterator[subprocess.Popen[bytes]]:
    """The started process; all of its namespace is dead afterwards, whatever happens."""
    try:
        process = subprocess.Popen(
            started.argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd="/",
            env={},
            pass_fds=started.inherited,
            start_new_session=True,
            user=NOBODY if started.as_nobody else None,
            group=NOBODY if started.as_nobody else None,
            extra_groups=() if started.as_nobody else None,
        )
    except OSError as error:
        if started.namespace_pid is not None:
            os.close(started.namespace_pid)
        raise OutageError(f"cannot start {started.argv[0]}: {error.strerror}", "a free process", MEND) from error
    finally:
        for descriptor in started.inherited:
            os.close(descriptor)
    try:
        yield process
    finally:
        _kill(process)
        for pipe in (process.stdout, process.stderr):
            _close(pipe)
        if started.namespace_pid is not None:
            _await_namespace(started.namespace_pid)


def _close(pipe: IO[bytes] | None) -> None:
    if pipe is not None:
        pipe.close()


def _signal_name(code: int) -> str | None:
    try:
        return signal.Signals(code - 128).name if code > 128 else None
    except ValueError:
        return None


def _inputs(code: str, arguments: Sequence[str], files: Mapping[str, bytes], limits: Limits) -> dict[str, bytes]:
    names = [PurePosixPath(name) for name in files]
    bad = next((str(name) for name in names if name.is_absolute() or ".." in name.parts or name.parts == ("tool",)), "")
    content = {**files, "tool": code.encode("utf-8", "replace")}
    size = sum(map(len, content.values())) + sum(len(word.encode("utf-8", "replace")) for word in arguments)
    if bad or any("\0" in word for word in (*arguments, *files)) or size > limits.input_bytes:
        raise SetupError(
            f"file {bad!r}, or a NUL byte, or {size} bytes handed to a sandbox",
            f"relative paths that stay inside, text without NUL, at most {limits.input_bytes} bytes",
            "hand it less, or raise Limits.input_bytes",
        )
    return content


class Sandbox:
    """Runs untrusted code without network, files, processes or environment of this machine."""

    def __init__(self, mode: Mode, limits: Limits | None = None, languages: tuple[Language, ...] = LANGUAGES) -> None:
        """Args: mode: from `probe()`. limits: those of runs that name none. languages: found isolated by `probe()`."""
        self.mode = mode
        self.limits = limits or Limits()
        self.languages = languages

    def run(
        self,
        language: Language,
        code: str,
        arguments: Sequence[str] = (),
        *,
        files: Mapping[str, bytes] | None = None,
        limits: Limits | None = None,
    ) -> Outcome:
        """Run `code` to its end or to a limit. Nothing of the run is left when this returns.

        Args:
            language: what interprets the code.
            code: the program; it lies as `tool` in the private folder, which is its working directory.
            arguments: its argv.
            files: further files for it, by path under the private folder; they are copies.
            limits: in place of the sandbox's.

        Raises:
            SetupError: too much input, or a path that leaves the private folder.
            OutageError: the namespaces could not be made, or not in time, though `probe()` had made some.
        """
        limits = limits or self.limits
        content = _inputs(code, arguments, files or {}, limits)
        words = [word.encode("utf-8", "replace").decode() for word in arguments]
        ready_r, ready_w = os.pipe()
        try:
            with _running(start(self.mode, language, words, content, limits, ready_w)) as process:
                heard = _listen(process, ready_r, limits)
        finally:
            os.close(ready_r)
        stderr = heard.stderr.decode("utf-8", "replace")
        if not heard.ready:
            raise OutageError(
                f"the sandbox could not be set up ({self.mode}): {stderr.strip() or process.returncode}",
                LATE if heard.timed_out else "namespaces for an unprivileged user",
                MEND,
            )
        code_seen = process.returncode if process.returncode >= 0 else 128 - process.returncode
        killed = "wall time" if heard.timed_out else "output" if heard.truncated else _signal_name(code_seen)
        return Outcome(
            exit_code=code_seen,
            stdout=heard.stdout.decode("utf-8", "replace"),
            stderr=stderr,
            timed_out=heard.timed_out,
            truncated=heard.truncated,
            killed_by=killed,
        )
