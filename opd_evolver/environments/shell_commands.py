"""A closed list of real commands, run as argument vectors inside one folder, under resource limits.

No shell ever reads what the agent writes: words are split at spaces, options are those listed here, every path
is resolved under the root. So this needs no isolating sandbox; a free shell would (`docs/sandbox.md`).
"""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from opd_evolver.errors import OutageError, SetupError

MAX_WORDS, MAX_WORD_CHARS, MAX_DEPTH = 12, 64, 4
WALL_S = 10.0
PROGRAMS = "/usr/bin:/bin"
UNLIMITED = 125
# The limits are set in the child by a constant script; the agent's words are its positional parameters.
MEMORY = "ulimit -v 524288" if sys.platform == "linux" else ":"
LIMITS = f"ulimit -c 0 && ulimit -t 2 && ulimit -f 256 && ulimit -n 32 && {MEMORY} && umask 022"
CONFINE = f'{{ {LIMITS} ; }} || exit {UNLIMITED}; exec "$@"'
WORD = re.compile(r"[A-Za-z0-9_./,:=+@-]+")
# In the terse dialect every word stands alone: `gamma / web . log` is the path gamma/web.log.
APART = re.compile(r"(?<=[A-Za-z0-9_]) ([/.]) (?=[A-Za-z0-9_])")
COUNT, MODE, PATTERN = re.compile(r"\d{1,4}"), re.compile(r"[0-7]{3}"), re.compile(r"[A-Za-z0-9]+")


class Command(NamedTuple):
    """What a command may be given.

    Args:
        options: options without a value.
        counted: options that a number follows.
        leading: what the first word that is no option must look like, where it is no path.
        fewest: least number of paths.
        always: options that it is given in any case.
        files_only: whether a path may not be a folder.
    """

    options: tuple[str, ...] = ()
    counted: tuple[str, ...] = ()
    leading: re.Pattern[str] | None = None
    fewest: int = 1
    always: tuple[str, ...] = ()
    files_only: bool = False


COMMANDS = {
    "cat": Command(),
    "chmod": Command(leading=MODE, files_only=True),
    "cp": Command(fewest=2),
    "grep": Command(("-c", "-v", "-i", "-h"), leading=PATTERN, always=("-F",)),
    "head": Command(counted=("-n",)),
    "ls": Command(("-1", "-a", "-R"), fewest=0),
    "mkdir": Command(),
    "mv": Command(fewest=2),
    "rm": Command(),
    "sort": Command(("-n", "-r", "-u")),
    "tail": Command(counted=("-n",)),
    "touch": Command(),
    "wc": Command(("-l", "-w", "-c")),
}


class Refused(Exception):
    """The action is no command of the list; the text says what is wrong."""


class Output(NamedTuple):
    """What a command said, and its exit code."""

    stdout: str
    stderr: str
    code: int


def parse(action: str, root: Path) -> tuple[str, ...]:
    """The argument vector of an action.

    Raises:
        Refused: it is no command of the list, or a word is not allowed there.
    """
    words = APART.sub(r"\1", " ".join(action.split())).split(" ")
    if words[0] not in COMMANDS:
        raise Refused("not a command")
    if len(words) > MAX_WORDS:
        raise Refused("too many words")
    if any(len(word) > MAX_WORD_CHARS or not WORD.fullmatch(word) for word in words):
        raise Refused("not a word")
    name, command = words[0], COMMANDS[words[0]]
    options, plain = _options(command, words[1:])
    leading: list[str] = []
    if command.leading is not None:
        if not plain or not command.leading.fullmatch(plain[0]):
            raise Refused("not an argument")
        leading.append(plain.pop(0))
    if len(plain) < command.fewest:
        raise Refused("too few paths")
    for path in plain:
        _check(path, root, command.files_only)
    return (name, *command.always, *options, *leading, *plain)


def _options(command: Command, words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Options with their numbers, and the other words."""
    options: list[str] = []
    plain: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            plain.append(word)
        elif word in command.counted and rest and COUNT.fullmatch(rest[0]):
            options += [word, rest.pop(0)]
        elif word in command.options:
            options.append(word)
        else:
            raise Refused("not an option")
    return options, plain


def _check(path: str, root: Path, files_only: bool) -> None:
    parts = path.split("/")
    if path.startswith("/") or ".." in parts or len(parts) > MAX_DEPTH:
        raise Refused("not a path")
    if not (root / path).resolve().is_relative_to(root):
        raise Refused("not a path")
    if files_only and (root / path).is_dir():
        raise Refused("not a file")


@functools.cache
def program(name: str) -> str:
    """Where a command lies.

    Raises:
        SetupError: this machine has none.
    """
    found = shutil.which(name, path=PROGRAMS)
    if found is None:
        raise SetupError(f"no `{name}` in {PROGRAMS}", "the POSIX commands", "install coreutils and grep")
    return found


def run(argv: Sequence[str], root: Path) -> Output:
    """Run an argument vector of `parse` in `root`.

    Raises:
        OutageError: no process could be started, its limits could not be set, or it never ended.
    """
    mend = "free processes and memory, then run again"
    try:
        done = subprocess.run(
            ("/bin/sh", "-c", CONFINE, "sh", program(argv[0]), *argv[1:]),
            cwd=root,
            env={"PATH": PROGRAMS, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=WALL_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise OutageError(f"{argv[0]} could not be run: {error}", f"an end within {WALL_S:g} s", mend) from error
    if done.returncode == UNLIMITED:
        raise OutageError(f"limits of {argv[0]} could not be set: {_text(done.stderr)}", "a working ulimit", mend)
    return Output(_text(done.stdout), _text(done.stderr), done.returncode)


def _text(said: bytes) -> str:
    return said.decode("ascii", "replace")
