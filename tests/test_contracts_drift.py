"""Drift between rounds, Data Docs, and a round that a failed contract stops."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import finished_run
import pytest
from memory_cases import row, tip

from opd_evolver import contracts, lineage, step, tracking
from opd_evolver.contracts import docs, engine
from opd_evolver.contracts import drift as drift_contract
from opd_evolver.contracts import memory as memory_contract
from opd_evolver.errors import OutageError
from opd_evolver.memory.segment import LedgerSegment
from opd_evolver.memory.snapshot import write_snapshot
from opd_evolver.memory.store import Memory, entry_of
from opd_evolver.params import ContractParams
from opd_evolver.records import Proposal, SkillContent
from opd_evolver.steps import plan

PARAMS = ContractParams()


def rounds(folder: Path, *shares: float, n: int = 200, fallback: float = 0.0, skills: int = 0) -> Path:
    """A snapshot with one round for each share of success; the last one has the given fallbacks and skills."""
    with Memory.open(folder / "live") as memory:
        for number, share in enumerate(shares, start=1):
            last = number == len(shares)
            entries = [tip(f"k{number}x{k}", "4", episode=f"e{number}", round=number) for k in range(40)]
            if last and skills:
                contents = [SkillContent(description=f"d{k}", steps=("a",)) for k in range(skills)]
                entries = [entry_of(Proposal(domain="sql", scope="z", content=one), number) for one in contents]
            # The first round has nothing to select from, as in a real run.
            old = [tip("k1x0", "4", episode="e1", round=1).entry_id] if number > 1 else []
            rows = [
                row(f"r{number}-{k}", round=number, injected=old, success=k < share * n).model_copy(
                    update={"select_fallback": last and k < fallback * n}
                )
                for k in range(n)
            ]
            memory.commit(LedgerSegment(lineage="run", round=number, wave=0, rows=tuple(rows), entries=tuple(entries)))
        write_snapshot(memory, folder / "memory", len(shares), "run")
    return folder / "memory"


def test_the_first_round_is_not_measured(tmp_path: Path) -> None:
    for report in contracts.check_drift(rounds(tmp_path, 0.5), 1, PARAMS):
        assert report.passed and not report.measured and not report.warnings


def test_nothing_moved_nothing_said(tmp_path: Path) -> None:
    for report in contracts.check_drift(rounds(tmp_path, 0.5, 0.47), 2, PARAMS):
        assert report.passed and report.measured and report.warnings == ()


def test_success_that_breaks_down_stops_and_one_that_falls_warns(tmp_path: Path) -> None:
    rollouts, _ = contracts.check_drift(rounds(tmp_path / "a", 0.9, 0.1), 2, PARAMS)
    assert not rollouts.passed and "success: expect_column_mean_to_be_between" in rollouts.failures[0]
    assert "0.1" in rollouts.failures[0], "what was seen is told"
    rollouts, _ = contracts.check_drift(rounds(tmp_path / "b", 0.9, 0.6), 2, PARAMS)
    assert rollouts.passed and any(one.startswith("success") for one in rollouts.warnings)


def test_a_small_round_alarms_nobody(tmp_path: Path) -> None:
    rollouts, _ = contracts.check_drift(rounds(tmp_path, 0.5, 0.0, n=4), 2, PARAMS)
    assert rollouts.passed and not any(one.startswith("success") for one in rollouts.warnings)


def test_unreadable_selections_stop(tmp_path: Path) -> None:
    rollouts, _ = contracts.check_drift(rounds(tmp_path, 0.5, 0.5, 0.5, fallback=0.9), 3, PARAMS)
    assert [one.split(":")[0] for one in rollouts.failures] == ["fallback"]


def test_a_policy_that_stops_choosing_warns(tmp_path: Path) -> None:
    shown = tip("k1x0", "4", episode="e1", round=1)
    with Memory.open(tmp_path / "live") as memory:
        for number, chooses in ((1, 100), (2, 20)):
            rows = [
                row(f"r{number}-{k}", round=number, injected=[shown.entry_id]).model_copy(
                    update={} if k < chooses else {"selected": (), "injected": ()}
                )
                for k in range(100)
            ]
            memory.commit(LedgerSegment(lineage="x", round=number, wave=0, rows=tuple(rows), entries=(shown,)))
        write_snapshot(memory, tmp_path / "memory", 2, "run")
    rollouts, _ = contracts.check_drift(tmp_path / "memory", 2, PARAMS)
    assert rollouts.passed and any(one.startswith("selects") for one in rollouts.warnings)


def test_other_levels_warn(tmp_path: Path) -> None:
    _, entries = contracts.check_drift(rounds(tmp_path, 0.5, 0.5, skills=40), 2, PARAMS)
    assert entries.passed and any(one.startswith("level") for one in entries.warnings)
    loose = PARAMS.model_copy(update={"max_level_divergence_nats": 50.0})
    _, entries = contracts.check_drift(tmp_path / "memory", 2, loose)
    assert not any(one.startswith("level") for one in entries.warnings)


def test_rows_with_ids_nobody_knows_are_named(tmp_path: Path) -> None:
    folder = rounds(tmp_path, 0.5)
    strange = row("strange", injected=["f" * 32])
    real = engine.found
    seen: list[str] = []

    def with_strange(rows, id_column, suite):  # type: ignore[no-untyped-def]
        found = real(rows, id_column, suite)
        seen.extend(found)
        return found

    from opd_evolver.contracts import ledger

    with patch.object(ledger, "read_rows", lambda *_: [strange]), patch.object(engine, "found", with_strange):
        report = contracts.check_ledger(folder)
    assert not report.passed and seen
    assert "entries_are_known" in report.failures[0] and "'strange'" in report.failures[0]


# ── Data Docs and the round ───────────────────────────────────────────────────────────────────


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    finished_run.build(tmp_path, finished_run.policy_folder(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield tmp_path


SOUND = memory_contract.contract


def broken(folder: Path) -> engine.Contract:
    found = SOUND(folder)
    rows = [{**found.rows[0], "usage_count": -7}, *found.rows[1:]]
    return engine.Contract(found.name, rows, found.id_column, found.suite)


def test_docs_name_what_failed_and_ask_the_network_nothing(tmp_path: Path) -> None:
    folder = rounds(tmp_path, 0.5, 0.5)
    page = docs.build([broken(folder), *drift_contract.contracts(folder, 2, PARAMS)], tmp_path / "docs")
    assert page.is_file()
    pages = [path.read_text() for path in (tmp_path / "docs" / "validations").rglob("*.html")]
    assert any("usage_count" in text and "-7" in text for text in pages)
    assert len(pages) == 3


def test_a_failed_contract_stops_the_round_and_keeps_the_champion(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = lineage.open_run(project, finished_run.NAME)
    with finished_run.scripted():
        for job in (plan.begin_job(run, 2),):
            step.run(job)
        for wave in range(plan.n_waves(run)):
            for job in plan.shard_jobs(run, 2, wave):
                step.run(job)
            step.run(plan.barrier_job(run, 2, wave))
        snapshot = step.run(plan.snapshot_job(run, 2))
        memory = snapshot.digests["entries"] + snapshot.digests["ledger"]
        examples = step.run(plan.examples_job(run, 2, memory))
    job = plan.contracts_job(run, 2, memory, examples.digests["examples"])

    class Silent:
        def log_folder(self, *_: object) -> None:
            raise OutageError("no answer", "an answer", "wait")

    with patch.object(memory_contract, "contract", broken), pytest.raises(contracts.ContractError):
        step.run(job)
    logged = [path.name for path in (project / "mlartifacts").rglob("contracts/round-002/index.html")]
    assert logged == ["index.html"], "though no round of this lineage was logged before"
    monkeypatch.setattr(tracking, "open_tracker", lambda *_: Silent())
    with patch.object(memory_contract, "contract", broken), pytest.raises(contracts.ContractError) as caught:
        step.run(job)
    assert "usage_count" in caught.value.seen and "nothing was trained" in caught.value.mend
    page = Path(re.search(r"look at (\S+index\.html)", caught.value.mend).group(1))  # type: ignore[union-attr]
    assert page.is_file()
    assert "MLflow has no copy" in capsys.readouterr().err
    assert run.finished_rounds() == [1] and plan.champion(run, 2).round == 1
    assert not (run.paths.version(2) / "policy").exists()
    assert step.run(job).metrics["memory"] > 0, "once mended, the round goes on"
    shutil.rmtree(run.paths.version(2))


def test_the_docs_reach_the_lineages_run_in_mlflow(project: Path) -> None:
    tracker = tracking.open_tracker(project, None)
    (project / "docs").mkdir()
    (project / "docs" / "index.html").write_text("x")
    record = tracking.RoundRecord(name="n", lineage="n", preset="micro", round=0, digest="d")
    tracker.log_round(record)
    tracker.log_folder(record, project / "docs", "contracts/round-001")
    tracker.log_folder(record, project / "docs", "contracts/round-001")
    assert len(list(project.rglob("contracts/round-001/index.html"))) == 1
    [parent] = tracker._search("tags.`opd.kind` = 'coevolve'")
    assert parent.info.status == "FINISHED"
