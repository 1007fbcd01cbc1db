"""Writes that a `kill -9` leaves either undone or whole, and the reading of what they left."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from opd_evolver.errors import CorruptionError, SchemaError, SetupError
from opd_evolver.records import SCHEMA_VERSION


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` last."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _number(error: Exception) -> int | None:
    """The system's error number; libraries in Rust (safetensors, tokenizers) give it in their message alone."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn a full disk or a missing permission into one clear line."""
    try:
        yield
    except Exception as error:
        number = _number(error)
        if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise SetupError(
                f"no space left to write {path}",
                "free disk space",
                "free some, then: opd resume (nothing finished is lost)",
            ) from error
        if number in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise SetupError(
                f"no permission to write {path}", "a writable folder", f"chmod u+w {path.parent}"
            ) from error
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file durably: temp name beside it, fsync, rename, fsync folder."""
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temp = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            with temp.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temp, path)
        except BaseException:
            temp.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def append_line(path: Path, line: str) -> None:
    """Append one line durably. A torn last line (a crash) is cut off first."""
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:
            end = file.seek(0, os.SEEK_END)
            if end:
                file.seek(0)
                whole = file.read().rfind(b"\n") + 1
                if whole < end:
                    file.truncate(whole)
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        sync_folder(path.parent)


def leftovers(target: Path) -> list[Path]:
    """Folders beside `target` that a killed `new_folder` was filling, or had moved away."""
    return sorted(target.parent.glob(f".{target.name}.*.tmp"))


def recover(target: Path) -> None:
    """Undo what a killed `new_folder` left beside `target`: a target that was moved away comes back, the rest goes."""
    moved = [left for left in leftovers(target) if left.name.endswith(".old.tmp")]
    if moved and not target.exists():
        os.replace(moved[0], target)
    for left in leftovers(target):
        shutil.rmtree(left, ignore_errors=True)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Fill a temporary folder that becomes `target` at once when the block ends well.

    An existing target is replaced; a crash between the two renames leaves no target, and `recover` puts it back.
    """
    with explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        recover(target)
        temp = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
        temp.mkdir()
        try:
            yield temp
            for file in temp.rglob("*"):
                if file.is_file():
                    with file.open("rb") as handle:
                        os.fsync(handle.fileno())
            if target.exists():
                old = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.old.tmp")
                os.replace(target, old)
                os.replace(temp, target)
                shutil.rmtree(old, ignore_errors=True)
            else:
                os.replace(temp, target)
            sync_folder(target.parent)
        finally:
            shutil.rmtree(temp, ignore_errors=True)


def read_json(path: Path) -> dict[str, Any]:
    """One JSON object.

    Raises:
        CorruptionError: unreadable; names the file.
        SchemaError: written by a newer version.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except PermissionError:
        raise SetupError(f"no permission to read {path}", "a readable file", f"chmod u+r {path}") from None
    except (OSError, ValueError) as error:
        raise CorruptionError(
            f"cannot read {path}: {error}", "a JSON object", f"restore {path} from a copy, or `dvc checkout`"
        ) from None
    if not isinstance(value, dict):
        raise CorruptionError(f"{path} holds {type(value).__name__}", "a JSON object", f"restore {path} from a copy")
    check_schema(value, str(path))
    return value


def check_schema(tree: Any, where: str) -> None:
    """Refuse what a newer version wrote.

    Raises:
        SchemaError: names `where` and the way to upgrade.
    """
    if isinstance(tree, dict) and int(tree.get("schema_version", 0)) > SCHEMA_VERSION:
        raise SchemaError(
            f"{where} has schema {tree['schema_version']}",
            f"at most {SCHEMA_VERSION}",
            "upgrade: pip install -U opd-evolver",
        )
