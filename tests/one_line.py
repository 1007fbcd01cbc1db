"""What every error of the command must be, and what a finished round left."""

from __future__ import annotations

from pathlib import Path

from conftest import Said


def one_line(said: Said, *words: str, code: int = 2) -> None:
    """The documented exit code, nothing on stdout, and one line that says what mends it."""
    assert said.code == code, said
    assert said.out == "", said.out
    lines = said.err.splitlines()
    assert len(lines) == 1, said.err
    assert lines[0].startswith("error: ") and "mend: " in lines[0]
    for word in words:
        assert word in lines[0], f"{word!r} not in {lines[0]!r}"


def contents(project: Path) -> dict[str, bytes]:
    """Everything a finished round left: its records and its versions."""
    kept = [project / "versions", project / "runs" / "done" / "rounds", project / "runs" / "done" / "run.json"]
    files = [path for one in kept for path in ([one] if one.is_file() else sorted(one.rglob("*")))]
    return {str(path): path.read_bytes() for path in files if path.is_file()}
