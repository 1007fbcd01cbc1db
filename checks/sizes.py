"""Files ≤ 300 lines, functions ≤ 60. An exception is listed here with its reason."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

MOST_FILE_LINES, MOST_FUNCTION_LINES = 300, 60
FOLDERS = ("opd_evolver", "flows", "checks", "tests", "benchmarks", "examples")
EXCEPTIONS: dict[str, str] = {
    "opd_evolver/records.py": "one vocabulary, read as a whole; the cut would be by alphabet",
    "tests/driver.py": "both ends of one protocol, read side by side; it runs as one file",
}


def too_long(path: Path) -> list[str]:
    """What is over the limits in one file."""
    text = path.read_text(encoding="utf-8")
    found = []
    n_lines = len(text.splitlines())
    if n_lines > MOST_FILE_LINES and str(path) not in EXCEPTIONS:
        found.append(f"{path}: {n_lines} lines (at most {MOST_FILE_LINES})")
    if path.parts[0] == "tests":
        return found  # a test may be as long as its story
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MOST_FUNCTION_LINES:
                found.append(f"{path}:{node.lineno}: {node.name} has {length} lines (at most {MOST_FUNCTION_LINES})")
    return found


def main() -> int:
    files = sorted(path for folder in FOLDERS for path in Path(folder).rglob("*.py"))
    found = [line for path in files for line in too_long(path)]
    found += [f"{name}: listed as an exception, but does not exist" for name in EXCEPTIONS if not Path(name).exists()]
    print("\n".join(found) or f"sizes: {len(files)} files within the limits")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
