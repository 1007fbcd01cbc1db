"""What every test gets: no telemetry, no settings of the user, no network; and a project with a finished round."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from unittest.mock import patch

import driver
import hypothesis
import pytest
from weaviate_server import TestServer, serving

if TYPE_CHECKING:
    from slow_world import Played

    from opd_evolver.params import MemoryParams
    from opd_evolver.slow.views import Views

# A busy machine is no failure: pytest's own time-out ends what hangs.
hypothesis.settings.register_profile("house", deadline=None)
hypothesis.settings.load_profile("house")
for name in [name for name in os.environ if name.upper().startswith("OPD_") and name != "OPD_REQUIRE_WEAVIATE"]:
    del os.environ[name]
os.environ.update(
    DO_NOT_TRACK="true",
    GX_ANALYTICS_ENABLED="false",
    HF_HUB_OFFLINE="1",
    MLFLOW_DISABLE_TELEMETRY="true",
    OMP_WAIT_POLICY="PASSIVE",
    PREFECT_SERVER_ANALYTICS_ENABLED="false",
    TOKENIZERS_PARALLELISM="false",
)
# A suite that was started in the background ignores SIGINT, and so would every child that a test interrupts.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Files of minutes, longest first: one that begins last keeps a worker busy while the others have nothing to do.
LONGEST = (
    "test_placement.py",
    "test_coevolve_micro.py",
    "test_crash.py",
    "test_retrace.py",
    "test_slow_launch.py",
    "test_bench_ablations.py",
    "test_bench_rounds.py",
    "test_checkpoints_run.py",
    "test_flows_alone.py",
    "test_seed_train.py",
    "test_wheel.py",
    "test_weaviate_run.py",
    "test_stack.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(autouse=True)
def fresh_settings() -> Iterator[None]:
    """Settings are read once per process; a test that sets some must not leave them to the next."""
    from opd_evolver.settings import load_settings

    load_settings.cache_clear()
    yield
    load_settings.cache_clear()


class Said(NamedTuple):
    """What a call of `opd` left: its exit code and both streams."""

    code: int
    out: str
    err: str


Opd = Callable[..., Said]


@pytest.fixture
def opd(capsys: pytest.CaptureFixture[str]) -> Opd:
    """Calls the command in process."""
    from opd_evolver.cli import main

    def call(*arguments: str) -> Said:
        capsys.readouterr()
        try:
            code = main(arguments)
        except SystemExit as left:  # argparse
            code = int(left.code or 0)
        streams = capsys.readouterr()
        return Said(code, streams.out, streams.err)

    return call


@pytest.fixture(scope="module")
def children() -> Iterator[driver.Children]:
    """Runs of the real flows in forked children; one server for a file, which imports everything heavy once."""
    with driver.Children() as served:
        yield served


@pytest.fixture(scope="module")
def weaviate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestServer]:
    """A real Weaviate server for a file."""
    with serving(tmp_path_factory.mktemp("weaviate")) as started:
        yield started


@pytest.fixture
def remote(weaviate: TestServer) -> Iterator[MemoryParams]:
    """Memory parameters that name that server."""
    from opd_evolver.params import MemoryParams
    from opd_evolver.settings import load_settings

    with patch.dict(os.environ, weaviate.settings):
        load_settings.cache_clear()
        yield MemoryParams(store="weaviate")
    load_settings.cache_clear()


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Played:
    """A round that a scripted agent has played, for the tests of the slow loop."""
    from slow_world import play

    return play(tmp_path_factory.mktemp("slow-world"))


@pytest.fixture(scope="session")
def views(world: Played) -> Views:
    """Its examples."""
    from opd_evolver.slow.views import build

    return build(world.rows, world.entries, world.attributions, world.local.encode, world.params)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with the finished run `done`; copy it before writing."""
    import finished_run

    folder = tmp_path_factory.mktemp("finished")
    finished_run.build(folder / "project", finished_run.policy_folder(folder))
    return folder / "project"


@pytest.fixture
def project(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that project, as the current folder."""
    copy = tmp_path / "project"
    shutil.copytree(finished, copy)
    monkeypatch.chdir(copy)
    return copy


@pytest.fixture
def intact(project: Path) -> Iterator[Path]:
    """The project; after the test its finished rounds must be what they were."""
    from one_line import contents

    before = contents(project)
    yield project
    assert contents(project) == before
