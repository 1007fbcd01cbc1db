"""`opd memory reembed`: another embedder in a new lineage; what was finished stays as it was."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import finished_run
import pytest
from conftest import Opd
from embedding_server import EmbeddingServer, embedding_server, well
from memory_cases import die, in_child, wave
from one_line import contents
from weaviate_server import TestServer

from opd_evolver import heads, lineage, step
from opd_evolver.errors import SetupError
from opd_evolver.memory import edits, embed, embed_endpoint, vectors
from opd_evolver.memory.embed import HashEmbedder
from opd_evolver.memory.snapshot import read_entries, read_manifest, restore, verify, write_snapshot
from opd_evolver.memory.store import Memory
from opd_evolver.params import MemoryParams
from opd_evolver.settings import load_settings
from opd_evolver.steps import plan, prepare, reembed

NAME = finished_run.NAME
OTHER = "hash-64"


@pytest.fixture(autouse=True)
def another(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A second embedder that needs no weights; and an endpoint is tried again at once."""
    monkeypatch.setitem(embed.EMBEDDERS, OTHER, lambda: HashEmbedder(64))
    monkeypatch.setattr(embed_endpoint, "FIRST_WAIT_S", 0.01)
    embed._costly.cache_clear()
    yield
    embed._costly.cache_clear()


@pytest.fixture
def server(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddingServer]:
    with embedding_server() as started:
        for name, value in {**started.settings, "OPD_EMBEDDINGS_PATIENCE_S": "0.1"}.items():
            monkeypatch.setenv(name, value)
        load_settings.cache_clear()
        yield started


def told(opd: Opd, *arguments: str) -> dict:  # type: ignore[type-arg]
    said = opd("memory", *arguments, "--name", NAME, "--json")
    assert said.code == 0, said.err
    return dict(json.loads(said.out))


def test_a_new_lineage_and_nothing_rewritten(intact: Path, opd: Opd) -> None:
    before = contents(intact)
    tree = told(opd, "reembed", "--to", OTHER)
    run = lineage.open_run(intact, NAME)
    assert (tree["lineage"], tree["round"], tree["before"]) == (f"{NAME}~2", 1, ["hash-256-v1"])
    assert (tree["identity"], tree["dimension"]) == ("hash-64-v1", 64) and tree["n_entries"] > 0
    assert run.params.memory.embedder == OTHER and run.reembeds == ("hash-256-v1",)
    assert lineage.differences(
        lineage.open_run(intact, f"{NAME}~2").params, lineage.Run(intact, lineage.read_identity(intact, NAME)).params
    ) == ["memory.embedder: 'hash-64' → 'hash-256'"]
    assert contents(intact) == before and not list((intact / "runs").glob("*/live/view-reembedding"))
    assert "memory.embedder" in (intact / "runs" / NAME / "HEAD.jsonl").read_text()
    assert opd("memory", "search", "late", "--name", NAME).code == 0
    assert told(opd, "copy", "--to", "embedded")["digest_entries"] == tree["digest_entries"]
    told(opd, "undo")
    assert lineage.open_run(intact, NAME).params.memory.embedder == "hash-256"


def test_the_next_round_is_played_with_the_new_embedder(project: Path, opd: Opd) -> None:
    waiting = edits.file_of(project / "runs" / NAME, 2)
    edits.add(waiting, edits.Edit(kind="retire", reason="waits"))
    told(opd, "reembed", "--to", OTHER)
    run = lineage.open_run(project, NAME)
    assert edits.read(edits.file_of(run.paths.run, 2)) == edits.read(waiting), "what waited still waits"
    with finished_run.scripted():
        finished_run.play_round(run, 2)
    info = verify(run.paths.version(2) / "memory")
    assert (info.embedder, info.dimension) == ("hash-64-v1", 64)
    first = read_entries(project / "versions" / NAME / "round-001" / "memory")
    champion = run.summary(1)["champion"]  # type: ignore[index]
    kept = {entry.entry_id for entry in read_entries(run.paths.version(2) / "memory")}
    assert champion == 0 or {entry.entry_id for entry in first} <= kept
    # Rolling back inside the new lineage stays with its embedder; so does a search.
    assert opd("memory", "rollback", "1", "--name", NAME).code == 0
    back = lineage.open_run(project, NAME)
    assert back.params.memory.embedder == OTHER and back.reembeds == ("hash-256-v1",)
    with finished_run.scripted():
        step.run(plan.begin_job(back, 2))
    told_entries = opd("memory", "search", "late", "--name", NAME, "--json")
    assert told_entries.code == 0


def test_what_waits_still_waits_when_it_is_killed_as_the_lineage_opens(project: Path) -> None:
    waiting = edits.file_of(project / "runs" / NAME, 2)
    edits.add(waiting, edits.Edit(kind="retire", reason="waits"))

    def killed() -> None:
        opening = lineage.branch

        def branch(*given: Any, **more: Any) -> None:
            opening(*given, **more)
            die()

        with patch.object(lineage, "branch", branch):
            reembed.reembed(project, NAME, OTHER)

    assert in_child(killed) < 0
    opened = lineage.open_run(project, NAME)
    assert opened.lineage == f"{NAME}~2"
    assert edits.read(edits.file_of(opened.paths.run, 2)) == edits.read(waiting)


@pytest.mark.parametrize(("of", "at"), [(lineage, "write_text"), (heads, "append")])
def test_a_killed_reembed_opens_no_lineage(project: Path, opd: Opd, of: Any, at: str) -> None:
    """Where it writes the edits that go along, and where it makes the lineage the current one."""
    waits = edits.Edit(kind="retire", reason="waits")
    edits.add(edits.file_of(project / "runs" / NAME, 2), waits)

    def killed() -> None:
        real = getattr(of, at)

        def write(*given: Any) -> None:
            die() if at == "append" or given[0].parent.name == "edits" else real(*given)

        with patch.object(of, at, write):
            reembed.reembed(project, NAME, OTHER)

    assert in_child(killed) < 0
    assert lineage.open_run(project, NAME).lineage == NAME, "the lineage was never opened"
    assert opd("memory", "rollback", "1", "--name", NAME).code == 0
    back = lineage.open_run(project, NAME)
    assert edits.read(edits.file_of(back.paths.run, 2)) == [waits] and back.params.memory.embedder == "hash-256"


def test_changed_parameters_are_still_refused(project: Path, opd: Opd) -> None:
    with pytest.raises(SetupError, match=r"memory\.embedder: 'hash-256' → 'hash-64'"):
        prepare.open_for_work(project, NAME, preset=None, overrides={"memory.embedder": OTHER})
    told(opd, "reembed", "--to", OTHER)
    with pytest.raises(SetupError, match=r"memory\.embedder: 'hash-64' → 'hash-256'"):
        prepare.open_for_work(project, NAME, preset=None, overrides={})
    run = prepare.open_for_work(project, NAME, preset=None, overrides={"memory.embedder": OTHER})
    assert run.lineage == f"{NAME}~2"


def test_the_same_embedder_an_unknown_one_and_no_round(project: Path, opd: Opd) -> None:
    for arguments, why in (
        ((), "already"),
        (("--to", "hash-256"), "already"),
        (("--to", "hush-64"), "unknown embedder"),
    ):
        said = opd("memory", "reembed", *arguments, "--name", NAME)
        assert said.code == 2 and why in said.err and "\n" not in said.err.strip()
    told(opd, "reembed", "--to", OTHER)
    assert "already" in opd("memory", "reembed", "--to", OTHER, "--name", NAME).err
    back = told(opd, "reembed", "--to", "hash-256")
    assert back["identity"] == "hash-256-v1" and back["lineage"] == f"{NAME}~3"
    (project / "runs" / NAME / "rounds" / "round-001.json").unlink()
    told(opd, "undo")
    told(opd, "undo")
    said = opd("memory", "reembed", "--to", OTHER, "--name", NAME)
    assert said.code == 2 and "no finished round" in said.err and "--set memory.embedder=" in said.err


def test_through_an_endpoint_that_fails_in_the_middle(
    project: Path, server: EmbeddingServer, opd: Opd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPD_EMBEDDINGS_BATCH", "1")
    monkeypatch.setattr(vectors, "CHUNK", 1)
    load_settings.cache_clear()
    before = contents(project)
    server.answer = lambda texts: well(texts) if len(server.asked) <= 3 else (500, b"gone", {})
    said = opd("memory", "reembed", "--to", "endpoint:m", "--name", NAME)
    assert said.code == 3 and "status 500: gone" in said.err and contents(project) == before
    assert lineage.open_run(project, NAME).lineage == NAME
    server.answer = well
    server.asked.clear()
    tree = told(opd, "reembed", "--to", "endpoint:m")
    assert (tree["identity"], tree["dimension"]) == ("endpoint:m-v1", 8)
    n_texts = len({entry.entry_id for entry in read_entries(project / "versions" / NAME / "round-001" / "memory")})
    assert server.n_texts == 1 + n_texts - 2, "one to see that it answers; two were kept"
    # From here on nothing that the memory holds is asked for again: not by views, not by the next round.
    server.asked.clear()
    told(opd, "copy", "--to", "embedded")
    embed._costly.cache_clear()
    with finished_run.scripted():
        step.run(plan.begin_job(lineage.open_run(project, NAME), 2))
    assert server.asked == []


def test_looking_needs_no_endpoint(project: Path, server: EmbeddingServer, opd: Opd) -> None:
    told(opd, "reembed", "--to", "endpoint:m")
    server.stop()
    embed._costly.cache_clear()
    assert opd("memory", "log", "--name", NAME).code == 0
    entry = read_entries(project / "versions" / NAME / "round-001" / "memory")[0]
    assert opd("memory", "show", entry.entry_id, "--name", NAME).code == 0
    said = opd("memory", "search", "never asked before", "--name", NAME)
    assert said.code == 3 and "OPD_EMBEDDINGS_URL" in said.err


def test_forgetting_reaches_kept_vectors_and_needs_no_endpoint(
    project: Path, server: EmbeddingServer, opd: Opd
) -> None:
    told(opd, "reembed", "--to", "endpoint:m")
    entry = read_entries(project / "versions" / NAME / "round-001" / "memory")[0]
    server.stop()
    told(opd, "erase", entry.entry_id, "--reason", "asked")
    info = read_manifest(project / "versions" / NAME / "round-001" / "memory")
    assert info.embedder == "hash-256-v1" and verify(project / "versions" / NAME / "round-001" / "memory") == info


def test_a_snapshot_of_another_embedder_is_refused_unless_left_behind(tmp_path: Path) -> None:
    with Memory.open(tmp_path / "live") as memory:
        memory.commit(wave(0))
        info = write_snapshot(memory, tmp_path / "snapshot", 1, "run")
    other = MemoryParams(embedder=OTHER)
    for left in ((), ("hash-32-v1",)):
        with pytest.raises(SetupError, match=r"hash-256-v1.*opd memory reembed"):
            restore(tmp_path / "snapshot", tmp_path / "again", other, left)
    found = restore(tmp_path / "snapshot", tmp_path / "again", other, ("hash-256-v1",))
    assert (found.embedder, found.dimension) == ("hash-64-v1", 64) and found.digest_entries != info.digest_entries
    assert (found.digest_ledger, found.n_entries) == (info.digest_ledger, info.n_entries)
    with Memory.open(tmp_path / "again", other, read_only=True) as memory:
        assert memory.digest() == found.digest_entries and memory.entries() == read_entries(tmp_path / "snapshot")


@pytest.mark.timeout(600)
def test_on_weaviate_memories_of_two_dimensions_stand_side_by_side(tmp_path: Path, weaviate: TestServer) -> None:
    with patch.dict(os.environ, weaviate.settings):
        load_settings.cache_clear()
        first = MemoryParams(store="weaviate")
        with Memory.open(tmp_path / "live", first) as memory:
            memory.commit(wave(0))
            write_snapshot(memory, tmp_path / "snapshot", 1, "run")
        other = first.model_copy(update={"embedder": OTHER})
        found = restore(tmp_path / "snapshot", tmp_path / "again", other, ("hash-256-v1",))
        for folder, params in (("live", first), ("again", other)):
            with Memory.open(tmp_path / folder, params) as memory:
                assert [entry.entry_id for entry, _ in memory.retrieve("key0x1", "sql", "zora", alpha=1.0)]
                memory.commit(wave(1))
                assert len(memory.entries()) == 8
                with pytest.raises(SetupError, match="opd memory reembed"):
                    Memory.open(tmp_path / folder, first if params is other else other, read_only=True)
        assert found.embedder == "hash-64-v1"
    load_settings.cache_clear()
