"""What of the machine a sandboxed program sees: an interpreter, read-only, and nothing of its user's.

Never the home, the repository, installed packages, or the host's /proc. The same tree is built by
bubblewrap and by our own launcher.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SYSTEM = ("/usr/bin", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/libexec")
# Beside /usr where the two are not merged; symlinks where they are.
MERGED = ("/bin", "/lib", "/lib32", "/lib64")
DEVICES = ("null", "zero", "full", "random", "urandom")
ETC = ("/etc/ld.so.cache", "/etc/alternatives")
WORK = "/work"
CODE = f"{WORK}/tool"
NOBODY = 65534
PYTHON = "/python"
SYSTEM_PYTHON = "/usr/bin/python3"


@dataclass(frozen=True)
class Tree:
    """What is bound read-only (host path, path inside), which folders are covered by empty ones, and symlinks.

    Attributes:
        binds: real host path and path inside.
        covers: folders inside that are hidden.
        symlinks: target and path inside.
        python: the interpreter inside, None without one.
        libraries: where python's shared libraries are, None for the system's.
    """

    binds: tuple[tuple[str, str], ...]
    covers: tuple[str, ...]
    symlinks: tuple[tuple[str, str], ...]
    python: str | None
    libraries: str | None


def _reachable(path: Path) -> bool:
    """Whether any user may read it: as root, bubblewrap runs as nobody."""
    return all(step.stat().st_mode & 0o001 for step in (path, *path.parents) if step.is_dir())


def _own_python() -> tuple[Path, Path] | None:
    """This interpreter's library folder and binary, when it is not the system's."""
    prefix = Path(sys.base_prefix).resolve()
    library = prefix / "lib"
    binary = (prefix / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}").resolve()
    known = (library / f"python{sys.version_info.major}.{sys.version_info.minor}" / "os.py").is_file()
    return (library, binary) if prefix != Path("/usr") and known and binary.is_file() else None


def _packages(library: Path) -> Iterator[str]:
    """Folders of installed packages under a library folder: what people installed is not the tool's to read."""
    for name in ("site-packages", "dist-packages"):
        for found in sorted(library.glob(f"python3*/{name}")):
            if found.is_dir() and not found.is_symlink():
                yield str(found.relative_to(library))


def tree(*, as_nobody: bool) -> Tree:
    """The tree for this machine.

    Args:
        as_nobody: whatever is shown must be readable by any user of the host.
    """
    binds = [(os.path.realpath(path), path) for path in (*SYSTEM, *ETC) if os.path.exists(path)]
    symlinks = [(WORK, "/tmp"), (WORK, "/dev/shm"), ("/proc/self/fd", "/dev/fd")]
    for path in MERGED:
        if os.path.islink(path):
            symlinks.append((os.readlink(path), path))
        elif os.path.isdir(path):
            binds.append((path, path))
    covers = [f"/usr/lib/{folder}" for folder in _packages(Path("/usr/lib"))]
    python, libraries = SYSTEM_PYTHON if os.path.exists(SYSTEM_PYTHON) else None, None
    own = _own_python()
    if own is not None and not (as_nobody and not all(map(_reachable, own))):
        library, binary = own
        python, libraries = f"{PYTHON}/bin/python3", f"{PYTHON}/lib"
        binds += [(str(library), f"{PYTHON}/lib"), (str(binary), python)]
        covers += [f"{PYTHON}/lib/{folder}" for folder in _packages(library)]
    return Tree(tuple(binds), tuple(covers), tuple(symlinks), python, libraries)
