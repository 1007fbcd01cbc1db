"""The habits that `make check` keeps, seen failing on a bad example; and what the command may import."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from checks import sizes

PROJECT = Path(__file__).parents[1]
HEAVY = {
    "torch",
    "transformers",
    "prefect",
    "mlflow",
    "dvc",
    "pandas",
    "great_expectations",
    "weaviate",
    "peft",
    "rich",
}


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom opd_evolver.cli import build_parser\nbuild_parser().format_help()\n"
        "print(' '.join(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & HEAVY


def test_a_long_function_or_file_is_found(tmp_path: Path) -> None:
    body = "\n".join(f"    x{at} = {at}" for at in range(sizes.MOST_FUNCTION_LINES))
    path = tmp_path / "long.py"
    path.write_text(f"def f():\n{body}\n")
    assert len(sizes.too_long(path)) == 1 and "f has" in sizes.too_long(path)[0]
    path.write_text("\n" * (sizes.MOST_FILE_LINES + 1))
    assert len(sizes.too_long(path)) == 1 and "lines" in sizes.too_long(path)[0]


def test_the_layers_contract_finds_an_import_upwards(tmp_path: Path) -> None:
    """The contract of pyproject.toml, on a package where a lower floor imports a higher one."""
    contract = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    floors = [name for layer in contract["layers"] for name in layer.split(" | ")]
    assert set(floors) == {
        path.stem
        for path in (PROJECT / "opd_evolver").iterdir()
        if (path.suffix == ".py" or (path / "__init__.py").exists()) and path.stem != "__init__"
    }
    package = tmp_path / "opd_evolver"
    package.mkdir()
    (package / "__init__.py").touch()
    for name in floors:
        (package / f"{name}.py").touch()
    layers = "\n".join(f"    {layer}" for layer in contract["layers"])
    (tmp_path / ".importlinter").write_text(
        "[importlinter]\nroot_package = opd_evolver\n\n[importlinter:contract:house]\nname = house\n"
        f"type = layers\nexhaustive = true\ncontainers =\n    opd_evolver\nlayers =\n{layers}\n"
    )
    assert _lint(tmp_path) == 0
    for lower, higher in (("memory", "fast"), ("fast", "slow"), ("records", "params")):
        (package / f"{lower}.py").write_text(f"import opd_evolver.{higher}\n")
        assert _lint(tmp_path) == 1, f"{lower} may import {higher}"
        (package / f"{lower}.py").write_text("")


def _lint(folder: Path) -> int:
    lint = Path(sys.executable).parent / "lint-imports"
    if not lint.exists():
        pytest.skip("import-linter is not installed")
    command = [str(lint), "--no-cache", "--config", ".importlinter"]
    return subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode
