"""MLflow, and the only caller of it: comparison of runs and rounds. Bytes stay with DVC.

One parent run per co-evolution, one child run per round with the same parameters and metric names,
headline metrics on the parent with step = round (one curve). Logging a round again changes nothing,
so a killed run is logged once. MLflow is imported when something is logged: it costs two seconds.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import Field

from opd_evolver.errors import SetupError
from opd_evolver.records import Record
from opd_evolver.tracking_errors import ours, without_userinfo

EXPERIMENT = "opd-evolver"
CHAMPION = "champion"
DIGEST, KIND, LINEAGE, ROUND = "opd.digest", "opd.kind", "opd.lineage", "round"
MAX_PARAM_CHARS = 500
BATCH = 100


class RoundRecord(Record):
    """What is logged of one round.

    Attributes:
        name, lineage, preset: which run.
        round: 0 is the base policy.
        digest: of the round's summary; the same digest is never logged twice.
        params: flattened parameters: the same names every round.
        metrics: finite numbers by name: the same names every round.
        headline: those that also go to the parent, with step = round.
        tags: memory.digest, policy.digest, dvc.rev, flow_run_id, git.sha, …
        files: small texts to keep beside the run, by name.
        policy_digest: weights of the round's policy; None: no new model.
        policy_path: where they lie (DVC keeps the bytes).
        promoted: the gate's verdict: the alias `champion` moves here.
        superseded: logged late, when a later round is the champion: the alias stays.
    """

    name: str
    lineage: str
    preset: str
    round: int
    digest: str
    params: dict[str, str] = Field(default_factory=dict)
    metrics: dict[str, float] = Field(default_factory=dict)
    headline: dict[str, float] = Field(default_factory=dict)
    tags: dict[str, str] = Field(default_factory=dict)
    files: dict[str, str] = Field(default_factory=dict)
    policy_digest: str | None = None
    policy_path: str = ""
    promoted: bool = False
    superseded: bool = False


class Tracker:
    """Logs rounds to one tracking address.

    Args:
        uri: sqlite:///… (no server needed) or http(s)://…
        artifacts: folder for small files of runs when `uri` is a local database.
    """

    def __init__(self, uri: str, artifacts: Path) -> None:
        self.uri, self.artifacts = uri, artifacts
        self.place = without_userinfo(uri)

    @cached_property
    def _client(self) -> Any:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("DO_NOT_TRACK", "true")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # stdout is for results
        from mlflow import MlflowClient

        for name in ("mlflow", "alembic"):  # importing it sets them to INFO
            logging.getLogger(name).setLevel(logging.WARNING)
        if self.uri.startswith("sqlite:///"):
            Path(self.uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        return MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)

    def log_round(self, record: RoundRecord) -> str:
        """Log a round and return its MLflow run id. The same round again changes nothing.

        Raises:
            OutageError: the tracking address does not answer; the round itself is safe on disk.
            SetupError: it refuses, or the experiment was deleted; the round is as safe.
        """
        with self._explained():
            parent = self._parent(record)
            child = self._child(parent, record)
            self._headline(parent, record)
            if record.policy_digest is not None:
                self._model(child, record)
            self._client.set_terminated(parent, "FINISHED")
            return child

    def log_folder(self, record: RoundRecord, folder: Path, place: str) -> None:
        """Keep a folder of small files at the parent run of a lineage, which is made when nothing is logged of it yet.

        Raises:
            OutageError: the tracking address does not answer.
        """
        with self._explained():
            parent = self._parent(record)
            self._client.log_artifacts(parent, str(folder), place)
            self._client.set_terminated(parent, "FINISHED")

    def logged(self, lineage: str) -> dict[int, str]:
        """Rounds of a lineage that are logged completely: round → digest."""
        with self._explained():
            return {
                int(run.data.tags[ROUND]): str(run.data.tags[DIGEST])
                for run in self._search(f"tags.`{KIND}` = 'round' and tags.`{LINEAGE}` = '{lineage}'")
                if run.info.status == "FINISHED"
            }

    def location(self, lineage: str) -> str | None:
        """Where the parent run of a lineage is found; None when nothing is logged."""
        with self._explained():
            found = self._search(f"tags.`{KIND}` = 'coevolve' and tags.`{LINEAGE}` = '{lineage}'")
            if not found:
                return None
            info = found[0].info
            place = f"#/experiments/{info.experiment_id}/runs/{info.run_id}"
            return f"{self.place.rstrip('/')}/{place}" if self.uri.startswith("http") else f"{self.place} {place}"

    # ── runs ─────────────────────────────────────────────────────────────────────────────────

    @cached_property
    def _experiment(self) -> str:
        found = self._client.get_experiment_by_name(EXPERIMENT)
        if found is not None and found.lifecycle_stage == "deleted":
            raise SetupError(
                f"the experiment {EXPERIMENT} of MLflow at {self.place} is deleted",
                "one that takes runs",
                f"MLFLOW_TRACKING_URI={self.place} mlflow experiments restore --experiment-id {found.experiment_id}",
            )
        if found is not None:
            return str(found.experiment_id)
        # A server decides for itself where artifacts go.
        place = None if self.uri.startswith("http") else self.artifacts.resolve().as_uri()
        return str(self._client.create_experiment(EXPERIMENT, artifact_location=place))

    def _search(self, query: str) -> list[Any]:
        return list(self._client.search_runs([self._experiment], query, order_by=["attributes.start_time ASC"]))

    def _parent(self, record: RoundRecord) -> str:
        found = self._search(f"tags.`{KIND}` = 'coevolve' and tags.`{LINEAGE}` = '{record.lineage}'")
        if found:
            return str(found[0].info.run_id)
        tags = {KIND: "coevolve", LINEAGE: record.lineage, "opd.name": record.name, "opd.preset": record.preset}
        run = self._client.create_run(self._experiment, tags=tags, run_name=record.lineage)
        self._log_params(run.info.run_id, record.params)
        return str(run.info.run_id)

    def _child(self, parent: str, record: RoundRecord) -> str:
        query = (
            f"tags.`{KIND}` = 'round' and tags.`{LINEAGE}` = '{record.lineage}' and tags.`{ROUND}` = '{record.round}'"
        )
        for run in self._search(query):
            if run.info.status == "FINISHED" and run.data.tags.get(DIGEST) == record.digest:
                return str(run.info.run_id)
            self._client.delete_run(run.info.run_id)  # left half-logged by a crash, or replaced by a replayed round
        tags = {
            **record.tags,
            KIND: "round",
            LINEAGE: record.lineage,
            ROUND: str(record.round),
            DIGEST: record.digest,
            "mlflow.parentRunId": parent,
        }
        run = self._client.create_run(self._experiment, tags=tags, run_name=f"round-{record.round:03d}")
        run_id = str(run.info.run_id)
        self._log_params(run_id, record.params)
        self._log_metrics(run_id, record.metrics, record.round)
        for name, text in record.files.items():
            self._client.log_text(run_id, text, name)
        self._client.set_terminated(run_id, "FINISHED")
        return run_id

    def _log_params(self, run_id: str, params: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        found = [Param(key, value[:MAX_PARAM_CHARS]) for key, value in sorted(params.items())]
        for at in range(0, len(found), BATCH):
            self._client.log_batch(run_id, params=found[at : at + BATCH])

    def _log_metrics(self, run_id: str, metrics: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        found = [Metric(key, value, now, step) for key, value in sorted(metrics.items()) if math.isfinite(value)]
        for at in range(0, len(found), 10 * BATCH):
            self._client.log_batch(run_id, metrics=found[at : at + 10 * BATCH])

    def _headline(self, parent: str, record: RoundRecord) -> None:
        """One point per round on the parent's curves; points that are there stay."""
        missing = {
            key: value
            for key, value in record.headline.items()
            if record.round not in {point.step for point in self._client.get_metric_history(parent, key)}
        }
        self._log_metrics(parent, missing, record.round)

    # ── models by digest ─────────────────────────────────────────────────────────────────────

    def _model(self, run_id: str, record: RoundRecord) -> None:
        from mlflow.entities import LoggedModelStatus

        digest = record.policy_digest or ""
        tags = {"policy.digest": digest, LINEAGE: record.lineage, ROUND: str(record.round), "path": record.policy_path}
        query = f"tags.`policy.digest` = '{digest}' and tags.`{LINEAGE}` = '{record.lineage}'"
        found = list(self._client.search_logged_models([self._experiment], query))
        if found:
            model = found[0]
        else:
            model = self._client.create_logged_model(
                self._experiment, name=f"policy-{digest[:12]}", source_run_id=run_id, tags=tags
            )
        if str(model.status) != str(LoggedModelStatus.READY):
            self._client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
        if record.promoted:
            self._promote(model, run_id, tags, record.name, moves=not record.superseded)

    def _promote(self, model: Any, run_id: str, tags: dict[str, str], name: str, *, moves: bool) -> None:
        """The policy's version of the run's registered model; the alias `champion` moves to it."""
        registered = f"{EXPERIMENT}.{name}"
        if not self._client.search_registered_models(f"name = '{registered}'"):
            self._client.create_registered_model(registered, description="policies by digest; DVC keeps the bytes")
        versions = self._client.search_model_versions(f"name = '{registered}'")
        same = [one for one in versions if one.tags.get("policy.digest") == tags["policy.digest"]]
        version = same[0] if same else None
        if version is None:
            source, model_id = str(model.artifact_location), str(model.model_id)
            version = self._client.create_model_version(
                registered, source=source, run_id=run_id, tags=tags, model_id=model_id
            )
        aliases = dict(self._client.get_registered_model(registered).aliases)
        if moves and str(aliases.get(CHAMPION)) != str(version.version):
            self._client.set_registered_model_alias(registered, CHAMPION, version.version)

    def champion(self, name: str) -> dict[str, str] | None:
        """Tags of the policy that the alias `champion` of a run points to; None before the first promotion."""
        registered = f"{EXPERIMENT}.{name}"
        with self._explained():
            found = self._client.search_registered_models(f"name = '{registered}'")
            if not found or CHAMPION not in self._client.get_registered_model(registered).aliases:
                return None
            return dict(self._client.get_model_version_by_alias(registered, CHAMPION).tags)

    def set_champion(self, name: str, policy_digest: str | None) -> bool:
        """Point the alias `champion` of a run at a policy that was promoted before; None takes the alias away.

        Returns:
            Whether MLflow knows that policy.

        Raises:
            OutageError: the tracking address does not answer.
        """
        registered = f"{EXPERIMENT}.{name}"
        with self._explained():
            if not self._client.search_registered_models(f"name = '{registered}'"):
                return False
            if policy_digest is None:
                self._client.delete_registered_model_alias(registered, CHAMPION)
                return True
            for version in self._client.search_model_versions(f"name = '{registered}'"):
                if version.tags.get("policy.digest") == policy_digest:
                    self._client.set_registered_model_alias(registered, CHAMPION, version.version)
                    return True
        return False

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if (found := ours(error, self.place)) is None:
                raise
            # An address with a password stands in MLflow's own words, too, which a traceback would print.
            raise found from (error if self.place == self.uri else None)


def open_tracker(root: Path, uri: str | None = None) -> Tracker:
    """The tracker of a project: `uri` (OPD_MLFLOW_TRACKING_URI), else a database file below the artifact root."""
    return Tracker(uri or f"sqlite:///{root.resolve() / 'mlflow.db'}", root / "mlartifacts")
