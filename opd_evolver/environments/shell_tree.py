"""A private folder whose whole content is known: laid out, read back, and put back as it was."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

FILE_MODE, FOLDER_MODE = 0o644, 0o755


class Node(NamedTuple):
    """A file with its content, or a folder (content None)."""

    content: bytes | None
    mode: int = FILE_MODE


def folder() -> Node:
    """An empty folder; what lies in it has nodes of its own."""
    return Node(None, FOLDER_MODE)


class Tree:
    """A temporary folder, removed by `close` or at the latest when the process ends."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="opd-shell-")).resolve()
        self._remove = weakref.finalize(self, shutil.rmtree, self.root, ignore_errors=True)

    def close(self) -> None:
        """Remove the folder."""
        self._remove()

    def nodes(self) -> dict[str, Node]:
        """What lies in the folder now, by path relative to it; a folder comes before its content."""
        found: dict[str, Node] = {}
        waiting = [""]
        while waiting:
            at = waiting.pop()
            with os.scandir(self.root / at) as entries:
                for entry in entries:
                    path, mode = at + entry.name, stat.S_IMODE(entry.stat(follow_symlinks=False).st_mode)
                    if entry.is_dir(follow_symlinks=False):
                        found[path] = Node(None, mode)
                        waiting.append(path + "/")
                    else:
                        found[path] = Node(_content(entry.path), mode)
        return found

    def restore(self, wanted: Mapping[str, Node]) -> None:
        """Change the folder to hold exactly `wanted`, in which a folder comes before its content."""
        now = self.nodes()
        for path in sorted(now, reverse=True):
            kept = wanted.get(path)
            if kept is None or (kept.content is None) != (now[path].content is None):
                self._drop(path, is_folder=now.pop(path).content is None)
        for path, node in wanted.items():
            if now.get(path) != node:
                self._put(path, node, now.get(path))

    def _drop(self, path: str, *, is_folder: bool) -> None:
        if is_folder:
            os.rmdir(self.root / path)
        else:
            os.unlink(self.root / path)

    def _put(self, path: str, node: Node, now: Node | None) -> None:
        where = self.root / path
        if node.content is None:
            if now is None:
                os.mkdir(where)
        elif now is None or now.content != node.content:
            if now is not None:
                os.unlink(where)
            where.write_bytes(node.content)
        os.chmod(where, node.mode)


def _content(path: str) -> bytes:
    """A file without the right to be read has another mode than any file laid out; its content decides nothing."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except PermissionError:
        return b""
