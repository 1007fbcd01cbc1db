"""A finished round on a real server: copied, indexed again, rolled back to, and an entry of it forgotten."""

from __future__ import annotations

import json
from pathlib import Path
from unittest.mock import patch

import pytest

from opd_evolver.memory import stores, weaviate_schema
from opd_evolver.memory.snapshot import verify
from opd_evolver.memory.store import Memory
from opd_evolver.params import MemoryParams

pytestmark = pytest.mark.timeout(600)


def test_copy_hosts_a_finished_round_and_counts_and_digests_are_equal(
    tmp_path: Path, remote: MemoryParams, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import finished_run

    from opd_evolver import cli

    run = finished_run.build(tmp_path, finished_run.policy_folder(tmp_path))
    monkeypatch.chdir(tmp_path)
    info = verify(run.paths.version(1) / "memory")
    names = []
    for _ in range(2):  # again replaces it
        assert cli.main(["memory", "copy", "--to", "weaviate", "--name", finished_run.NAME, "--json"]) == 0
        tree = json.loads(capsys.readouterr().out)
        assert (tree["entries"], tree["digest_entries"]) == (info.n_entries, info.digest_entries)
        assert tree["by_level"] == info.n_by_level
        names.append(tree["memory"])
    from opd_evolver.memory.weaviate_server import open_server

    opened = open_server()
    try:
        notes = opened.call(
            lambda client: client.collections.get(weaviate_schema.NOTES).query.fetch_objects(limit=1000)
        )
        known = {one.properties["memory"] for one in notes.objects}
        assert names[1] in known and names[0] not in known
    finally:
        opened.close()


def stored_texts(names: set[str]) -> list[str]:
    """Everything that the server holds of these memories, as text."""
    from opd_evolver.memory.weaviate_server import open_server

    opened = open_server()
    try:
        found = []
        for name in weaviate_schema.COLLECTIONS.values():
            collection = opened.call(lambda client, name=name: client.collections.get(name))  # type: ignore[misc]
            for tenant in collection.tenants.get():
                if tenant.rpartition("-")[0] in names:
                    page = collection.with_tenant(tenant).query.fetch_objects(limit=1000).objects
                    found += [json.dumps(one.properties, ensure_ascii=False) for one in page]
        return found
    finally:
        opened.close()


def test_erase_reaches_what_the_server_hosts_and_rollback_restores_from_it(
    tmp_path: Path, remote: MemoryParams, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run whose memory lies on the server: reindex, erase and rollback, each with equal counts and digests."""
    import finished_run

    from opd_evolver import cli, lineage, step
    from opd_evolver.memory.snapshot import read_entries
    from opd_evolver.steps import plan

    def told(*arguments: str) -> dict:  # type: ignore[type-arg]
        capsys.readouterr()
        assert cli.main(["memory", *arguments, "--name", finished_run.NAME, "--json"]) == 0
        return dict(json.loads(capsys.readouterr().out))

    with patch.dict(finished_run.SMALL, {"memory.store": "weaviate"}):
        run = finished_run.build(tmp_path, finished_run.policy_folder(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert run.params.memory.store == "weaviate"
    folder = run.paths.version(1) / "memory"
    info = verify(folder)
    again = told("reindex")
    assert (again["entries"], again["digest_entries"]) == (info.n_entries, info.digest_entries)
    hosted = told("copy", "--to", "weaviate")["memory"]
    entry = next(one for one in read_entries(folder) if one.status == "live")
    words = json.dumps(entry.content.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))[1:-1]
    assert any(words in text.replace('\\"', '"') for text in stored_texts({hosted})), "the control"

    assert told("rollback", "1")["lineage"].endswith("~2")
    branched = lineage.open_run(tmp_path, finished_run.NAME)
    with finished_run.scripted():
        step.run(plan.begin_job(branched, 2))
    live = branched.paths.live(2)
    with Memory.open(live, branched.params.memory, read_only=True) as memory:
        assert memory.digest() == info.digest_entries, "rolled back onto the server"
    done = told("erase", entry.entry_id, "--reason", "asked")
    assert done["live"] == 2
    names = {str(stores.name_of(one)) for one in (live, run.paths.run / "hosted" / "weaviate")}
    texts = stored_texts(names)
    assert texts and not any(words in text.replace('\\"', '"') for text in texts)
    assert not stored_texts({hosted}), "the old copy is off the server"
    now = verify(folder)
    assert now.digest_entries != info.digest_entries
    with Memory.open(live, branched.params.memory, read_only=True) as memory:
        assert memory.digest() == now.digest_entries
        assert memory.get([entry.entry_id])[0].status == "erased"
    assert told("undo")["lineage"] == finished_run.NAME
