"""DVC, and the only caller of it: versions and bytes. No flow commits to git in the user's checkout.

Snapshots and policies lie outside stage outputs, in versions/<lineage>/round-NNN/, each with its
pointer beside it. DVC runs as a child process: two seconds a call, so one call a round, under one
file lock. Outside a DVC project nothing breaks: versions lie there without pointers, and a note says so.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from opd_evolver.errors import CorruptionError, OutageError, SetupError

ATTEMPTS = 5
LOCK_TIMEOUT_S = 120.0
_BUSY = ("unable to acquire lock", "is busy", "could not acquire lock")
_MISSING = ("missing cache", "some of the cache files do not exist", "checkout failed", "no such file or directory")


def is_repo(root: Path) -> bool:
    """Whether `root` is the top folder of a DVC project whose DVC can be called."""
    if not (root / ".dvc" / "config").is_file():
        return False
    import importlib.util

    return importlib.util.find_spec("dvc") is not None


def note(root: Path) -> str:
    """One line for the user where nothing is versioned."""
    return f"{root} is no DVC project: versions/ is kept without pointers (git init && dvc init makes it one)"


def inside_stage() -> bool:
    """Whether `dvc repro` runs this process: it commits the stage itself when the command ends."""
    return bool(os.environ.get("DVC_STAGE"))


def pointer_of(folder: Path) -> Path:
    """The pointer beside a folder: versions/…/memory → versions/…/memory.dvc."""
    return folder.with_name(f"{folder.name}.dvc")


# ── pointers ──────────────────────────────────────────────────────────────────────────────────


def add_pointers(root: Path, folders: Sequence[Path], sleep: Callable[[float], None] = time.sleep) -> list[Path]:
    """Put folders into DVC's cache and a pointer beside each; what is there already is left alone.

    Args:
        root: the project's folder.
        folders: below it; immutable from now on.
        sleep: waits seconds between tries; injected by tests.

    Returns:
        The pointers, in the order of `folders`; none outside a DVC project.

    Raises:
        SetupError: a folder is missing or git-ignored.
        OutageError: another DVC process kept the lock.
    """
    if not is_repo(root):
        return []
    for folder in folders:
        if not folder.is_dir():
            raise SetupError(f"no folder {folder}", "a finished version", "opd resume")
    new = [folder for folder in folders if not is_current(folder)]
    if new:
        with _lock(root):
            _dvc(root, ["add", *(str(_within(root, folder)) for folder in new)], sleep)
    return [pointer_of(folder) for folder in folders]


def add_pointer(root: Path, folder: Path) -> Path | None:
    """One folder; see `add_pointers`."""
    return next(iter(add_pointers(root, [folder])), None)


def is_current(folder: Path) -> bool:
    """Whether the pointer beside `folder` names exactly its present bytes. No DVC call."""
    try:
        tree = yaml.safe_load(pointer_of(folder).read_text(encoding="utf-8"))
        return bool(tree["outs"][0]["md5"] == directory_md5(folder))
    except (OSError, yaml.YAMLError, KeyError, IndexError, TypeError):
        return False


def directory_md5(folder: Path) -> str:
    """DVC's own name for a folder's bytes: md5 over the sorted list of its files' md5s."""
    listed = []
    for path in folder.rglob("*"):
        if path.is_file():
            listed.append({"md5": _file_md5(path), "relpath": path.relative_to(folder).as_posix()})
    listed.sort(key=lambda one: one["relpath"])
    return hashlib.md5(json.dumps(listed, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"


def _file_md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def checkout(root: Path, pointer: Path, sleep: Callable[[float], None] = time.sleep) -> Path:
    """Bring back the folder that a pointer names, from DVC's cache or its remote; returns the folder.

    Args:
        root: the project's folder.
        pointer: versions/…/memory.dvc.
        sleep: waits seconds between tries.

    Raises:
        SetupError: no DVC project, or no such pointer.
        CorruptionError: the bytes are neither in the cache nor in a remote.
    """
    folder = pointer.with_suffix("")
    if not is_repo(root):
        raise SetupError(f"cannot bring back {folder}: {note(root)}", "a DVC project", "copy the folder from a backup")
    if not pointer.is_file():
        raise SetupError(f"no pointer {pointer}", "a version under DVC", f"git checkout {pointer}")
    with _lock(root):
        target = str(_within(root, pointer))
        try:
            _dvc(root, ["checkout", "--force", target], sleep)
        except SetupError as error:
            if not any(word in str(error).lower() for word in _MISSING):
                raise
            _pull(root, target, folder, sleep)
    return folder


def _pull(root: Path, target: str, folder: Path, sleep: Callable[[float], None]) -> None:
    try:
        _dvc(root, ["pull", "--force", target], sleep)
    except SetupError as error:
        raise CorruptionError(
            f"{folder} is neither in DVC's cache nor in a remote", "its bytes", f"dvc pull {target}"
        ) from error


def drop_cached(
    root: Path, holds: Callable[[dict[str, Path]], bool], sleep: Callable[[float], None] = time.sleep
) -> int:
    """Removes folders from DVC's local cache that no pointer of this checkout names and `holds` says yes to.

    Args:
        root: the project's folder.
        holds: asked with a cached folder's files, name in the folder → cached object.
        sleep: waits seconds between tries.

    Returns:
        Objects removed; 0 outside a DVC project. A remote keeps its copies: `dvc gc --cloud`.
    """
    if not is_repo(root):
        return 0
    with _lock(root):
        cache = Path(_dvc(root, ["cache", "dir"], sleep).strip()) / "files" / "md5"
        pointers = list((root / "versions").glob("**/*.dvc"))
        named = {str(yaml.safe_load(one.read_text(encoding="utf-8"))["outs"][0]["md5"]) for one in pointers}
        folders = {path.parent.name + path.name: _cached_files(cache, path) for path in cache.glob("??/*.dir")}
        needed = {one for name, files in folders.items() if name in named for one in files.values()}
        n = 0
        for name, files in folders.items():
            if name in named or not holds(files):
                continue
            for path in {*files.values()} - needed | {cache / name[:2] / name[2:]}:
                n += path.exists()
                path.unlink(missing_ok=True)
    return n


def _cached_files(cache: Path, folder: Path) -> dict[str, Path]:
    listed = json.loads(folder.read_text(encoding="utf-8"))
    return {one["relpath"]: cache / one["md5"][:2] / one["md5"][2:] for one in listed}


# ── stages ────────────────────────────────────────────────────────────────────────────────────


def commit(root: Path, stages: Sequence[str], sleep: Callable[[float], None] = time.sleep) -> bool:
    """Tell DVC that the outputs of stages are up to date, so that `dvc repro` has nothing to do.

    Called when an entry point other than `dvc repro` has done the work. Does nothing outside a DVC
    project, without a dvc.yaml, and inside a running stage (`dvc repro` commits itself).

    Returns:
        Whether the stages are now known to be up to date.
    """
    if not is_repo(root) or not (root / "dvc.yaml").is_file() or inside_stage():
        return False
    with _lock(root):
        _dvc(root, ["commit", "--force", *stages], sleep)
    return True


def git_sha(root: Path) -> str:
    """The checkout's commit, with `+` when tracked files differ from it; empty outside git."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"],
            cwd=root,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""


# ── the call ──────────────────────────────────────────────────────────────────────────────────


def environment() -> dict[str, str]:
    """A child's environment: no telemetry. The user's own DVC configuration is read, never written."""
    return {**os.environ, "DVC_NO_ANALYTICS": "true", "DO_NOT_TRACK": "true"}


def _dvc(root: Path, arguments: Sequence[str], sleep: Callable[[float], None]) -> str:
    """Run DVC and return its stdout. Another DVC process holding its lock is waited for.

    Raises:
        OutageError: the lock stayed held.
        SetupError: DVC refused; its own words.
    """
    said = ""
    for attempt in range(ATTEMPTS):
        done = subprocess.run(
            [sys.executable, "-m", "dvc", *arguments],
            cwd=root,
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode == 0:
            return done.stdout
        said = " ".join((done.stderr or done.stdout).split())
        if not any(word in said.lower() for word in _BUSY):
            break
        sleep(min(10.0, 1.0 * 2**attempt))
    else:
        raise OutageError(f"DVC is busy: {said[:300]}", "no other DVC process", "wait for it, then run this again")
    raise SetupError(f"dvc {arguments[0]}: {said[:600]}", "exit 0", f"dvc {' '.join(arguments)}")


def _within(root: Path, path: Path) -> Path:
    try:
        return path.resolve().relative_to(root.resolve())
    except ValueError:
        raise SetupError(
            f"{path} lies outside {root}", "a path in the DVC project", "set OPD_ARTIFACT_ROOT to the project's folder"
        ) from None


@contextmanager
def _lock(root: Path) -> Iterator[None]:
    """Ours: DVC has no waiting option and a second call at once fails after three seconds."""
    from filelock import FileLock, Timeout

    (root / ".dvc" / "tmp").mkdir(parents=True, exist_ok=True)
    held: Any = FileLock(root / ".dvc" / "tmp" / "opd.lock", timeout=LOCK_TIMEOUT_S)
    try:
        with held:
            yield
    except Timeout:
        raise OutageError(
            f"another process holds {held.lock_file}", "it to finish", "wait for it, then run this again"
        ) from None
