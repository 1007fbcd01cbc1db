"""The built wheel, installed into an environment of its own and used in another folder. No network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
HEAVY = ("torch", "prefect", "mlflow", "pandas", "great_expectations", "transformers", "dvc", "weaviate")
SEED = "opd_evolver/assets/seed-policy"
MOST_SEED_BYTES = 4 * 2**20


def call(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    done = call(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, PROJECT, cwd=out)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of commands of an environment that has the wheel; its dependencies are those of this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True, symlinks=True)
    done = call(folder / "bin/python", "-m", "pip", "install", "--no-index", "--no-deps", "-q", wheel, cwd=folder)
    assert done.returncode == 0, done.stderr
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return folder / "bin"


def test_contents(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        sizes = {one.filename: one.file_size for one in archive.infolist()}
        (metadata,) = (archive.read(name).decode() for name in sizes if name.endswith(".dist-info/METADATA"))
        (entries,) = (archive.read(name).decode() for name in sizes if name.endswith("entry_points.txt"))
    tops = {name.split("/")[0] for name in sizes}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"opd_evolver"}  # no tests, flows or checks
    for name in ("micro", "laptop", "evidence", "qwen3-4b-1gpu"):
        assert f"opd_evolver/presets/{name}.yaml" in sizes
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"):
        assert f"{SEED}/{name}" in sizes
    assert sum(size for name, size in sizes.items() if name.startswith(SEED)) <= MOST_SEED_BYTES
    assert any(name.endswith("licenses/LICENSE") for name in sizes)
    assert "License-Expression: Apache-2.0" in metadata and "Requires-Python: >=3.11" in metadata
    assert "opd = opd_evolver.cli:main" in entries and "sql = opd_evolver.environments.sql:Sql" in entries


def test_help_answers_without_anything_heavy(installed: Path, tmp_path: Path) -> None:
    done = call(installed / "opd", "--help", cwd=tmp_path)
    assert done.returncode == 0 and "exit codes" in done.stdout and done.stderr == ""
    code = (
        "import sys, opd_evolver\nfrom opd_evolver.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        f"print(opd_evolver.__file__, [name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    done = call(installed / "python", "-c", code, cwd=tmp_path)
    file, _, found = done.stderr.strip().partition(" ")
    assert Path(file).is_relative_to(installed.parent) and found == "[]", done.stderr


def test_environments_are_checked(installed: Path, tmp_path: Path) -> None:
    done = call(installed / "opd", "check-env", "sql", "--tasks", "12", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (report,) = json.loads(done.stdout)
    assert "sql" in report.values()
    assert list(tmp_path.iterdir()) == []


def test_the_packaged_policy_is_evaluated(installed: Path, tmp_path: Path) -> None:
    done = call(installed / "opd", "evaluate", "seed", "--tasks", "6", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    tree = json.loads(done.stdout)
    assert tree["split"] == "novel-test" and tree["n_tasks_per_domain"] == 6
    assert {"memory_use", "no_memory", "select_f1", "write_exact", "write_hindsight"} <= set(tree["metrics"])
    assert list(tmp_path.iterdir()) == []


def test_outside_a_project_it_says_so(installed: Path, tmp_path: Path) -> None:
    done = call(installed / "opd", "run", "--local", "--preset", "micro", cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.startswith("error: no flows/ in ")
    assert list(tmp_path.iterdir()) == []
