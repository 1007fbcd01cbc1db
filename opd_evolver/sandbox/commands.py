"""How a run is started in each mode: the command line, and what is handed over by descriptor."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from opd_evolver.sandbox import seccomp
from opd_evolver.sandbox.limits import Language, Limits, Mode
from opd_evolver.sandbox.tree import CODE, DEVICES, NOBODY, WORK, Tree, tree

# Process 1 inside bubblewrap: sets the limits, says "ready" on a descriptor that it closes, runs the program. It
# stays, under the limits itself: bubblewrap's own process 1 has none, and the program could make it work for it.
CONFINE = (
    "ulimit -Hc 0 && ulimit -Sc 0 && ulimit -u {processes} && ulimit -v {memory_kib} && ulimit -t {cpu_s} && "
    "ulimit -f {file_kib} && ulimit -n {open_files} && ulimit -l 0 && ulimit -i 64 && "
    "echo 1 >&{ready} && exec {ready}>&- || exit 125; "
    '{{ echo 1000 > /proc/self/oom_score_adj; }} 2>&- ; "$@" ; exit $?'
)


@dataclass(frozen=True)
class Started:
    """What `subprocess.Popen` needs for one run.

    Attributes:
        argv: the command.
        inherited: descriptors the command takes over; the caller closes its own copies.
        as_nobody: to be started as an unprivileged user, since root is bound by no process limit.
        namespace_pid: descriptor on which bubblewrap tells the pid of its process 1, None for our launcher.
    """

    argv: tuple[str, ...]
    inherited: tuple[int, ...]
    as_nobody: bool = False
    namespace_pid: int | None = None


def program(language: Language, arguments: Sequence[str], found: Tree) -> tuple[str, ...]:
    """The command inside the sandbox."""
    if language == "python":
        return (found.python or "", "-s", "-S", "-B", CODE, *arguments)
    return ("/bin/bash", "--noprofile", "--norc", CODE, *arguments)


def environment(language: Language, found: Tree) -> dict[str, str]:
    """All that stands in the program's environment; nothing of this process's."""
    fixed = {"PATH": "/usr/bin:/bin", "HOME": WORK, "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}
    if language == "python" and found.libraries:
        fixed["LD_LIBRARY_PATH"] = found.libraries
    return fixed


def memory_file(content: bytes) -> int:
    """An anonymous file with this content, open at its beginning."""
    descriptor = os.memfd_create("sandbox")
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _namespaces(
    language: Language, arguments: Sequence[str], files: Mapping[str, bytes], limits: Limits, ready: int
) -> Started:
    found = tree(as_nobody=False)
    spec = {
        "argv": program(language, arguments, found),
        "environment": environment(language, found),
        "binds": found.binds,
        "covers": found.covers,
        "devices": DEVICES,
        "symlinks": found.symlinks,
        "work": WORK,
        "nobody": NOBODY,
        "disk_bytes": limits.disk_bytes,
        "files": limits.files,
        "content": {name: content.hex() for name, content in files.items()},
        "seccomp": seccomp.program().hex(),
        "limits": {
            "RLIMIT_CORE": 0,
            "RLIMIT_NPROC": limits.processes + 2,
            "RLIMIT_AS": limits.memory_bytes,
            "RLIMIT_CPU": limits.cpu_s,
            "RLIMIT_FSIZE": limits.file_bytes,
            "RLIMIT_NOFILE": limits.open_files,
            "RLIMIT_MEMLOCK": 0,
            "RLIMIT_SIGPENDING": 64,
        },
    }
    handed = memory_file(json.dumps(spec).encode())
    launcher = str(Path(__file__).with_name("launcher.py"))
    argv = (sys.executable, "-I", "-S", launcher, str(handed), str(ready), str(os.getpid()))
    return Started(argv, (handed, ready))


def _bubblewrap(
    language: Language, arguments: Sequence[str], files: Mapping[str, bytes], limits: Limits, ready: int
) -> Started:
    as_root = os.geteuid() == 0
    found = tree(as_nobody=as_root)
    told_r, told_w = os.pipe()
    filter_fd = memory_file(seccomp.program())
    handed = [told_w, filter_fd, ready]
    argv = [shutil.which("bwrap") or "bwrap", "--unshare-all", "--unshare-user", "--disable-userns"]
    argv += ["--die-with-parent", "--as-pid-1", "--new-session", "--clearenv", "--cap-drop", "ALL"]
    argv += ["--hostname", "sandbox"]
    argv += ["--uid", str(NOBODY), "--gid", str(NOBODY), "--info-fd", str(told_w), "--seccomp", str(filter_fd)]
    for source, target in found.binds:
        argv += ["--ro-bind", source, target]
    for target in found.covers:
        argv += ["--size", "4096", "--tmpfs", target, "--remount-ro", target]
    for device in DEVICES:
        argv += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    for aim, target in found.symlinks:
        argv += ["--symlink", aim, target]
    argv += ["--proc", "/proc"]
    argv += ["--size", str(limits.disk_bytes), "--perms", "0700", "--tmpfs", WORK]
    for name, content in files.items():
        descriptor = memory_file(content)
        handed.append(descriptor)
        argv += ["--perms", "0644", "--file", str(descriptor), f"{WORK}/{name}"]
    argv += ["--chdir", WORK, "--remount-ro", "/"]
    for key, value in environment(language, found).items():
        argv += ["--setenv", key, value]
    confine = CONFINE.format(
        processes=limits.processes + 2,
        memory_kib=max(1, limits.memory_bytes >> 10),
        cpu_s=limits.cpu_s,
        file_kib=max(1, limits.file_bytes >> 10),
        open_files=limits.open_files,
        ready=ready,
    )
    argv += ["--", "/bin/bash", "--noprofile", "--norc", "-c", confine, "confine"]
    return Started((*argv, *program(language, arguments, found)), tuple(handed), as_root, told_r)


def start(
    mode: Mode,
    language: Language,
    arguments: Sequence[str],
    files: Mapping[str, bytes],
    limits: Limits,
    ready: int,
) -> Started:
    """The command of one run.

    Args:
        mode: how it is isolated.
        language: of the code in `files["tool"]`.
        arguments: the program's argv.
        files: path under the private folder to content.
        limits: what it may use.
        ready: descriptor on which one byte tells that the set-up held.
    """
    if mode == "bubblewrap":
        return _bubblewrap(language, arguments, files, limits, ready)
    return _namespaces(language, arguments, files, limits, ready)
