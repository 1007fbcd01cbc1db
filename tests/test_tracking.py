"""MLflow on a database file, without a server: one parent, one child per round, once."""

from __future__ import annotations

import threading
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from mlflow.exceptions import MlflowException

from opd_evolver.errors import OpdError, OutageError, SetupError
from opd_evolver.tracking import EXPERIMENT, RoundRecord, Tracker, open_tracker
from opd_evolver.tracking_errors import ours


def record(round_: int, **changes: object) -> RoundRecord:
    base = RoundRecord(
        name="default",
        lineage="default",
        preset="micro",
        round=round_,
        digest=f"summary-{round_}",
        params={"seed": "0", "fast.wave_tasks": "40", "long": "x" * 9000},
        metrics={"alone.mean": 0.1 * round_, "with_memory.mean": 0.2 * round_, "unknown": float("nan")},
        headline={"alone.mean": 0.1 * round_},
        tags={"memory.digest": f"m{round_}", "policy.digest": f"p{round_}", "dvc.rev": "-", "git.sha": "abc"},
        files={"rounds.txt": "table"},
        policy_digest=f"p{round_}" * 10 if round_ else None,
        policy_path=f"versions/default/round-{round_:03d}/policy",
        promoted=round_ == 1,
    )
    return base.model_copy(update=changes)


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    """Three rounds, each logged twice, as after a crash between logging and noting it."""
    opened = open_tracker(tmp_path_factory.mktemp("project"))
    for round_ in range(3):
        assert opened.log_round(record(round_)) == opened.log_round(record(round_))
    return opened


def test_one_parent_and_one_child_per_round_with_the_same_names(tracker: Tracker) -> None:
    client = tracker._client
    experiment = client.get_experiment_by_name(EXPERIMENT)
    runs = client.search_runs([experiment.experiment_id])
    parents = [run for run in runs if run.data.tags["opd.kind"] == "coevolve"]
    children = {run.info.run_name: run for run in runs if run.data.tags["opd.kind"] == "round"}
    assert len(parents) == 1 and sorted(children) == ["round-000", "round-001", "round-002"] and len(runs) == 4
    for number in range(3):
        run = children[f"round-{number:03d}"]
        assert run.data.tags["mlflow.parentRunId"] == parents[0].info.run_id
        assert {"round", "memory.digest", "policy.digest", "dvc.rev", "git.sha"} <= run.data.tags.keys()
        assert run.data.params.keys() == {"seed", "fast.wave_tasks", "long"}
        assert run.data.metrics.keys() == {"alone.mean", "with_memory.mean"}
        assert run.info.status == "FINISHED"
    curve = client.get_metric_history(parents[0].info.run_id, "alone.mean")
    assert [(point.step, round(point.value, 3)) for point in curve] == [(0, 0.0), (1, 0.1), (2, 0.2)]


def test_files_lie_below_the_project(tracker: Tracker) -> None:
    client = tracker._client
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert Path(experiment.artifact_location.removeprefix("file://")) == tracker.artifacts.resolve()
    assert len(list(tracker.artifacts.rglob("rounds.txt"))) == 3


def test_models_are_known_by_digest_and_the_champion_is_the_promoted_one(tracker: Tracker) -> None:
    client = tracker._client
    experiment = client.get_experiment_by_name(EXPERIMENT)
    models = client.search_logged_models([experiment.experiment_id])
    assert sorted(model.tags["policy.digest"] for model in models) == ["p1" * 10, "p2" * 10]
    assert all("READY" in str(model.status) for model in models)
    held = tracker.champion("default")
    assert held is not None and held["policy.digest"] == "p1" * 10 and held["round"] == "1"
    assert held["path"] == "versions/default/round-001/policy"
    assert tracker.champion("other") is None


def test_what_is_logged_can_be_asked_without_logging(tracker: Tracker) -> None:
    assert tracker.logged("default") == {0: "summary-0", 1: "summary-1", 2: "summary-2"}
    assert tracker.logged("default~2") == {}
    assert tracker.location("nobody") is None
    assert "runs/" in (tracker.location("default") or "")


def test_a_half_logged_or_replayed_round_is_logged_anew_and_lineages_stay_apart(tracker: Tracker) -> None:
    client = tracker._client
    first = tracker.log_round(record(0, lineage="default~2", digest="a"))
    client.update_run(first, status="RUNNING")
    second = tracker.log_round(record(0, lineage="default~2", digest="a"))
    third = tracker.log_round(record(0, lineage="default~2", digest="b"))
    assert len({first, second, third}) == 3
    assert tracker.logged("default~2") == {0: "b"} and len(tracker.logged("default")) == 3


def test_a_server_that_does_not_answer_is_an_outage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(OutageError, match="does not answer"):
        Tracker("http://127.0.0.1:9", tmp_path).log_round(record(1))


def test_a_foreign_database_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("this is no database, whatever its name says " * 30)
    with pytest.raises(SetupError, match=r"mlflow\.db.*move that file away"):
        open_tracker(tmp_path).log_round(record(1))


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        ("API request to http://b:s3cret@h/api failed with timeout exception read", OutageError, "does not answer"),
        ("API request to endpoint /api failed with error code 503 != 200. Response body: ''", OutageError, "answer"),
        ("(sqlite3.OperationalError) database is locked", OutageError, "another process has locked it"),
        ("Detected out-of-date database schema (found version a)", SetupError, "move that file away"),
        ("Model of postgresql://b:s3cret@h/db has no such version", SetupError, "postgresql://h/db"),
    ],
)
def test_what_an_error_of_mlflow_means(said: str, kind: type[OpdError], words: str) -> None:
    found = ours(MlflowException(said), "there")
    assert type(found) is kind and words in str(found) and "s3cret" not in str(found)
    assert ("move that file away" in str(found)) is ("schema" in said)
    assert ours(ValueError(said), "there") is None


PASSWORD = "s3cret"


class Refusing(BaseHTTPRequestHandler):
    """A server that knows nobody."""

    def do_GET(self) -> None:
        self.send_response(401)
        self.end_headers()
        self.wfile.write(b"You are not authenticated.")

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        """Says nothing."""


def test_no_message_tells_the_password_of_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for port, kind, mend in (
            (server.server_port, SetupError, "MLFLOW_TRACKING_USERNAME"),
            (9, OutageError, "opd up"),
        ):
            with pytest.raises(kind, match=f"MLflow at http://127.0.0.1:{port}.*{mend}") as caught:
                Tracker(f"http://bob:{PASSWORD}@127.0.0.1:{port}", tmp_path).log_round(record(1))
            assert PASSWORD not in "".join(traceback.format_exception(caught.value))
        server.shutdown()
    opened = Tracker(f"http://bob:{PASSWORD}@there:5000/", tmp_path)
    info = SimpleNamespace(experiment_id="1", run_id="r")
    monkeypatch.setattr(opened, "_search", lambda query: [SimpleNamespace(info=info)])
    assert opened.location("default") == "http://there:5000/#/experiments/1/runs/r"


def test_the_alias_goes_back_and_away(tracker: Tracker) -> None:
    assert tracker.set_champion("default", "p1") is False, "nothing is known yet"
    for number in (1, 2):
        tracker.log_round(record(number, policy_digest=f"p{number}", promoted=True))
    assert tracker.set_champion("default", "p1") is True
    held = tracker.champion("default")
    assert held is not None and held["policy.digest"] == "p1"
    assert tracker.set_champion("default", "unknown") is False
    assert tracker.set_champion("default", None) is True and tracker.champion("default") is None


def test_a_round_logged_late_leaves_the_alias_with_the_champion(tmp_path: Path) -> None:
    opened = open_tracker(tmp_path)
    opened.log_round(record(2, promoted=True))
    opened.log_round(record(1, superseded=True))
    held = opened.champion("default")
    assert held is not None and held["round"] == "2"
    assert opened.set_champion("default", "p1" * 10), "a rollback can go to it all the same"
