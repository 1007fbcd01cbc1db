"""docs/paper_map.md and the docstrings that cite the paper name the same files."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
MAP = (ROOT / "docs" / "paper_map.md").read_text(encoding="utf-8")
NAMED = set(re.findall(r"`(opd_evolver/[\w/]+\.py)`", MAP))


def test_every_file_the_map_names_is_there() -> None:
    assert NAMED
    assert sorted(name for name in NAMED if not (ROOT / name).is_file()) == []


def test_every_file_that_cites_the_paper_is_in_the_map() -> None:
    citing = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "opd_evolver").rglob("*.py")
        if re.search(r"\bPaper: (?!none)", path.read_text(encoding="utf-8"))
    }
    assert sorted(citing - NAMED) == []
