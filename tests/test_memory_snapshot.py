"""Snapshots: canonical bytes, verified digests, and a restore that gives the memory back."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from memory_cases import FULL_LEVELS, die, in_child, tip, wave

from opd_evolver.errors import CorruptionError, SchemaError, SetupError
from opd_evolver.memory.segment import LedgerSegment
from opd_evolver.memory.snapshot import read_entries, read_manifest, read_rows, restore, verify, write_snapshot
from opd_evolver.memory.store import Memory, entry_of
from opd_evolver.records import Content, Proposal, SkillContent, TipContent, ToolContent, TrajectoryContent

TEXT = st.text(max_size=30)
CONTENT: st.SearchStrategy[Content] = st.one_of(
    st.builds(TipContent, text=TEXT, trigger=TEXT),
    st.builds(SkillContent, description=TEXT, technique=TEXT, steps=st.lists(TEXT, max_size=2).map(tuple)),
    st.builds(ToolContent, name=TEXT, language=TEXT, code=TEXT),
    st.builds(
        TrajectoryContent,
        task=TEXT,
        steps=st.just(()),
        outcome=st.just("partial"),
        episode_return=st.floats(0, 1),
        learnings=st.lists(TEXT, max_size=2).map(tuple),
    ),
)
PROPOSAL = st.builds(Proposal, domain=TEXT, scope=TEXT, content=CONTENT, source_episodes=st.lists(TEXT, max_size=2))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    with Memory.open(tmp_path / "live") as memory:
        for number in range(3):
            memory.commit(wave(number), {f"r{number}-alone": 1.0})
        memory.retire([memory.entries()[0].entry_id], by="cli", round=1)
        write_snapshot(memory, tmp_path / "v" / "memory", 1, "run")
    return tmp_path / "v" / "memory"


def test_what_is_written(tmp_path: Path, snapshot: Path) -> None:
    info = verify(snapshot)
    assert set(files(snapshot)) == {"entries.jsonl", "ledger.jsonl", "manifest.json"}
    assert (info.round, info.lineage, info.embedder, info.n_entries, info.n_segments) == (
        1,
        "run",
        "hash-256-v1",
        12,
        4,
    )
    assert info.n_by_level == {"trajectory": 0, "tip": 11, "skill": 0, "tool": 0}
    assert len(read_entries(snapshot)) == 12 and len(read_rows(snapshot)) == 7 and read_rows(snapshot, 2) == []
    assert b"1.0" not in (snapshot / "manifest.json").read_bytes()  # no seconds
    with Memory.open(tmp_path / "live", read_only=True) as memory:
        assert (memory.digest(), memory.ledger.digest()) == (info.digest_entries, info.digest_ledger)


def test_bytes_do_not_depend_on_the_order_of_insertion(tmp_path: Path) -> None:
    entries = [entry_of(Proposal(domain="sql", scope="zora", content=content), 1) for content in FULL_LEVELS]
    entries += [tip(f"k{n % 9}", "1", episode=str(n)) for n in range(30)]
    found = []
    for name, order in (("a", entries), ("b", list(reversed(entries)))):
        with Memory.open(tmp_path / name) as memory:
            memory.commit(LedgerSegment(lineage="x", round=1, wave=0, entries=tuple(order)))
            write_snapshot(memory, tmp_path / f"v{name}", 1, "x")
        found.append(files(tmp_path / f"v{name}"))
    assert found[0] == found[1]


def test_digests_do_not_depend_on_the_lineage(tmp_path: Path) -> None:
    infos = []
    for lineage in ("run", "run~2"):
        with Memory.open(tmp_path / lineage) as memory:
            memory.commit(wave(0, lineage=lineage))
            infos.append(write_snapshot(memory, tmp_path / f"v-{lineage}", 1, lineage))
    assert infos[0].digest_entries == infos[1].digest_entries and infos[0].digest_ledger == infos[1].digest_ledger


def test_writing_again_touches_nothing(tmp_path: Path, snapshot: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in snapshot.iterdir()}
    with Memory.open(tmp_path / "live", read_only=True) as memory:
        write_snapshot(memory, snapshot, 1, "run")
    assert {path.name: path.stat().st_mtime_ns for path in snapshot.iterdir()} == before


def test_restore_gives_the_memory_back(tmp_path: Path, snapshot: Path) -> None:
    info = restore(snapshot, tmp_path / "again" / "live")
    with Memory.open(tmp_path / "again" / "live") as memory, Memory.open(tmp_path / "live") as old:
        assert (memory.digest(), memory.ledger.digest()) == (info.digest_entries, info.digest_ledger)
        assert memory.retrieve("zora key1x1", "sql", "zora") == old.retrieve("zora key1x1", "sql", "zora")
        memory.commit(wave(3, lineage="run~2"))
        old.commit(wave(3))
        assert (memory.digest(), memory.ledger.digest()) == (old.digest(), old.ledger.digest())


def test_restore_replaces_what_was_there(tmp_path: Path, snapshot: Path) -> None:
    with Memory.open(tmp_path / "live") as memory:
        memory.commit(wave(3))
        with pytest.raises(SetupError, match="being written"):
            restore(snapshot, tmp_path / "live")
    info = restore(snapshot, tmp_path / "live")
    with Memory.open(tmp_path / "live") as memory:
        assert memory.digest() == info.digest_entries and len(memory.ledger.segment_keys()) == 4


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(proposals=st.lists(PROPOSAL, max_size=6))
def test_any_entries_survive_the_round_trip(
    tmp_path_factory: pytest.TempPathFactory, proposals: list[Proposal]
) -> None:
    folder = tmp_path_factory.mktemp("trip")
    entries = {entry.entry_id: entry for entry in (entry_of(proposal, 1) for proposal in proposals)}
    with Memory.open(folder / "live") as memory:
        memory.commit(LedgerSegment(lineage="x", round=1, wave=0, entries=tuple(entries.values())))
        write_snapshot(memory, folder / "v", 1, "x")
    assert {entry.entry_id: entry for entry in read_entries(folder / "v")} == entries
    restore(folder / "v", folder / "again")
    with Memory.open(folder / "again") as memory:
        assert {entry.entry_id: entry for entry in memory.entries()} == entries


def test_an_empty_memory_has_a_snapshot(tmp_path: Path) -> None:
    with Memory.open(tmp_path / "live") as memory:
        write_snapshot(memory, tmp_path / "v", 0, "run")
    assert restore(tmp_path / "v", tmp_path / "again").n_entries == 0


# ── damage ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["entries.jsonl", "ledger.jsonl"])
@pytest.mark.parametrize("damage", ["cut", "changed", "missing"])
def test_damage_is_found_before_anything_is_restored(tmp_path: Path, snapshot: Path, name: str, damage: str) -> None:
    path = snapshot / name
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(data[:-40] if damage == "cut" else data.replace(b"key1x0", b"key1x9", 1))
    before = files(tmp_path / "live" / "ledger")
    with pytest.raises(CorruptionError, match=r"dvc checkout.*opd memory rollback"):
        restore(snapshot, tmp_path / "live")
    assert files(tmp_path / "live" / "ledger") == before


def test_a_manifest_that_lies_is_found(snapshot: Path) -> None:
    manifest = snapshot / "manifest.json"
    tree = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**tree, "digest_entries": "0" * 64}))
    with pytest.raises(CorruptionError, match="does not tell of its files"):
        verify(snapshot)
    manifest.write_text(json.dumps({**tree, "schema_version": 7}))
    with pytest.raises(SchemaError, match="schema 7"):
        read_manifest(snapshot)
    manifest.write_text("{")
    with pytest.raises(CorruptionError):
        read_manifest(snapshot)
    manifest.unlink()
    with pytest.raises(SetupError, match="dvc checkout"):
        read_manifest(snapshot)


def test_a_kill_leaves_the_old_snapshot_or_none(
    tmp_path: Path, snapshot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files(snapshot)

    def write() -> None:
        with Memory.open(tmp_path / "live") as memory:
            memory.commit(wave(5))
            monkeypatch.setattr(os, "replace", die)
            write_snapshot(memory, snapshot, 1, "run")

    assert in_child(write) == -9
    assert files(snapshot) == before
    with Memory.open(tmp_path / "live") as memory:
        write_snapshot(memory, snapshot, 1, "run")
    assert verify(snapshot).n_segments == 5
    assert [path.name for path in snapshot.parent.iterdir()] == ["memory"]
