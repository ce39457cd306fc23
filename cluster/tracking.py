"""Tracker: copies runs from the storage to MLflow.

The storage is the record. MLflow is a copy that may lag behind or be lost. So `sync` is idempotent: it finds a run by
its identity, and writes only what is missing.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cluster.lock import lock

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

PREFIX = "orchard."
IDENTITY = PREFIX + "identity"
SYNCED = PREFIX + "synced"
SQLITE = "sqlite:///"

ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""Set where unset: with MLflow's 7 retries of 120 s a driver would hang for many minutes if the server is gone."""


@dataclass(frozen=True)
class Metric:
    """One number of a run; `timestamp_ms` is milliseconds since 1970, UTC."""

    key: str
    step: int
    value: float
    timestamp_ms: int


@dataclass(frozen=True)
class RunRecord:
    """What the driver knows about one run.

    identity: 16 hexadecimal digits, unique in a suite.
    params: the experiment, flattened to dotted names; never changes for one identity.
    tags: where and how it ran; updated until the run is synced as FINISHED.
    metrics: the whole history; the first value of each (key, step) is written, and never changed.
    artifacts: files with different names, uploaded when the run is FINISHED.
    """

    identity: str
    name: str
    params: Mapping[str, str | int | float | bool | None]
    tags: Mapping[str, str]
    metrics: Sequence[Metric]
    status: Literal["RUNNING", "FINISHED", "FAILED"]
    artifacts: Sequence[Path] = ()


class Tracker:
    """MLflow at one tracking URI; each suite is an MLflow experiment, each identity in it one run.

    uri: `sqlite:///FILE` or `http(s)://HOST:PORT`.
    artifact_root: folder for the artifacts of a SQLite store; a server has its own.

    ValueError for an unsupported URI, ConnectionError if the server does not answer; both name the URI.
    """

    def __init__(self, uri: str, artifact_root: Path | None = None) -> None:
        self.uri = _without_password(uri)
        is_file = uri.startswith(SQLITE) and uri != SQLITE
        if not is_file and not uri.startswith(("http://", "https://")):
            raise ValueError(f"tracking URI {self.uri!r} is not supported: give sqlite:///FILE or http(s)://HOST:PORT")
        self._artifact_location = str(artifact_root) if artifact_root and is_file else None
        self._experiments: dict[str, str] = {}
        with self._reaching():
            self._client = _open_file(Path(uri.removeprefix(SQLITE))) if is_file else _client(uri)
            self._client.search_experiments(max_results=1)

    def sync(self, suite: str, record: RunRecord) -> str:
        """Write what MLflow does not have of `record`; returns the MLflow run id. A synced run costs one search."""
        digest = _digest(record)
        with self._reaching():
            experiment = self._experiment(suite)
            run = self._find(experiment, record.identity) or self._create(experiment, record)
            if run.data.tags.get(SYNCED) != digest:
                self._write(run, record)
                # Last: a driver that dies before this writes everything again.
                self._client.set_tag(run.info.run_id, SYNCED, digest)
        return run.info.run_id

    def suites(self) -> set[str]:
        """The names of all experiments in this store."""
        with self._reaching():
            return {experiment.name for experiment in self._client.search_experiments()}

    def search(self, suite: str) -> list[dict[str, Any]]:
        """Every run of `suite`: run_id, name, status, started_ms, ended_ms, params, tags (ours, without prefix) and
        metrics (the value at the highest step of each). ValueError if there is no such suite."""
        with self._reaching():
            experiment = self._client.get_experiment_by_name(suite)
            if experiment is None:
                known = ", ".join(sorted(self.suites())) or "none"
                raise ValueError(f"there is no suite {suite!r} in {self.uri}; it has: {known}")
            runs, token = [], None
            while True:
                page = self._client.search_runs([experiment.experiment_id], page_token=token)
                runs += [_as_dict(run) for run in page]
                token = page.token
                if not token:
                    return runs

    def _experiment(self, suite: str) -> str:
        """The MLflow id of `suite`, which is created if missing."""
        if suite in self._experiments:
            return self._experiments[suite]
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(suite)
        if found is None:
            try:
                self._client.create_experiment(suite, artifact_location=self._artifact_location)
            except MlflowException as error:
                # another driver may have been faster
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            found = self._client.get_experiment_by_name(suite)
        assert found is not None
        if found.lifecycle_stage != "active":
            raise ValueError(
                f"MLflow experiment {suite!r} in {self.uri} is deleted: restore it with `mlflow experiments restore "
                f"--experiment-id {found.experiment_id}`, or give the suite another name"
            )
        self._experiments[suite] = found.experiment_id
        return found.experiment_id

    def _find(self, experiment: str, identity: str) -> Run | None:
        runs = self._client.search_runs([experiment], f"tags.`{IDENTITY}` = '{identity}'", max_results=1)
        return runs[0] if runs else None

    def _create(self, experiment: str, record: RunRecord) -> Run:
        started = min((m.timestamp_ms for m in record.metrics), default=_now_ms())
        tags = {IDENTITY: record.identity, "mlflow.source.name": "orchard", "mlflow.source.type": "LOCAL"}
        if "commit" in record.tags:
            tags["mlflow.source.git.commit"] = record.tags["commit"]
        return self._client.create_run(experiment, start_time=started, tags=tags, run_name=record.name)

    def _write(self, run: Run, record: RunRecord) -> None:
        from mlflow.entities import Metric as MlflowMetric
        from mlflow.entities import Param, RunTag
        from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH, MAX_TAG_VAL_LENGTH

        run_id = run.info.run_id
        if record.status == "RUNNING" and run.info.status != "RUNNING":
            self._client.update_run(run_id, status="RUNNING")
        params = {key: _cut(str(value), MAX_PARAM_VAL_LENGTH) for key, value in record.params.items()}
        for key, value in run.data.params.items():
            assert params.get(key, value) == value, f"{record.identity}: param {key} was {value!r}, now {params[key]!r}"
        missing = [Param(key, value) for key, value in params.items() if key not in run.data.params]
        tags = [RunTag(PREFIX + key, _cut(value, MAX_TAG_VAL_LENGTH)) for key, value in record.tags.items()]
        metrics = [MlflowMetric(m.key, m.value, m.timestamp_ms, m.step) for m in self._missing_metrics(run, record)]
        # One kind per request, as MLflow limits a request to a megabyte. The client splits each kind into chunks.
        self._client.log_batch(run_id, params=missing)
        self._client.log_batch(run_id, tags=tags)
        self._client.log_batch(run_id, metrics=metrics)
        if record.status == "FINISHED":
            self._upload(run_id, record.artifacts)
        if record.status != "RUNNING" and run.info.status != record.status:
            ended = max((m.timestamp_ms for m in record.metrics), default=_now_ms())
            self._client.set_terminated(run_id, status=record.status, end_time=ended)

    def _missing_metrics(self, run: Run, record: RunRecord) -> list[Metric]:
        tracked = {
            (key, m.step)
            for key in {m.key for m in record.metrics} & set(run.data.metrics)
            for m in self._client.get_metric_history(run.info.run_id, key)
        }
        first: dict[tuple[str, int], Metric] = {}
        for metric in record.metrics:
            first.setdefault((metric.key, metric.step), metric)
        return [metric for point, metric in first.items() if point not in tracked]

    def _upload(self, run_id: str, artifacts: Sequence[Path]) -> None:
        assert len({path.name for path in artifacts}) == len(artifacts), f"artifacts share a name: {artifacts}"
        if not artifacts:
            return
        stored = {info.path: info.file_size for info in self._client.list_artifacts(run_id)}
        for path in artifacts:
            # another size: the upload was interrupted
            if stored.get(path.name) != path.stat().st_size:
                self._client.log_artifact(run_id, str(path))

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        """Turns MLflow's errors into errors that name the URI."""
        from mlflow.exceptions import MlflowException

        try:
            yield
        except MlflowException as error:
            reason = _without_password(str(error)).strip().partition("\n")[0][:500]
            if error.error_code == "INVALID_PARAMETER_VALUE":
                raise ValueError(f"MLflow at {self.uri} refused a value: {reason}") from error
            raise ConnectionError(
                f"MLflow at {self.uri} cannot be used: {reason}. Is it running, and is --tracking-uri right?"
            ) from error


def _client(uri: str) -> MlflowClient:
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    # at INFO both report each table that they create
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(uri)


def _open_file(path: Path) -> MlflowClient:
    """A client of the SQLite store `path`, which is created if missing; ValueError if it cannot be opened.

    MLflow creates a database by dozens of migrations. Two drivers at once, or a kill in between, would leave one that
    never opens again. So it is created under a lock and a temporary name.
    """
    try:
        with lock(path.with_name(f"{path.name}.lock")):
            if path.exists():
                # MLflow would try for minutes to open a file that is no database
                with closing(sqlite3.connect(path)) as connection:
                    connection.execute("PRAGMA schema_version")
            else:
                fresh = path.with_name(f".tmp-{path.name}")
                fresh.unlink(missing_ok=True)
                fresh.with_name(f"{fresh.name}-journal").unlink(missing_ok=True)
                _client(f"{SQLITE}{fresh}")
                os.rename(fresh, path)
            return _client(f"{SQLITE}{path}")
    except (OSError, sqlite3.Error) as error:
        raise ValueError(
            f"tracking store {path} cannot be opened ({error}): give a SQLite file in a folder that can be written"
        ) from error


def _without_password(text: str) -> str:
    """`text` with user and password of each URL hidden, as errors end up in logs. A password may contain an @."""
    return re.sub(r"://[^/\s]*@", "://***@", text)


def _digest(record: RunRecord) -> str:
    """Changes if there is more to write of a run."""
    points = sorted({(m.key, m.step) for m in record.metrics})
    files = sorted((path.name, path.stat().st_size) for path in record.artifacts if record.status == "FINISHED")
    return hashlib.sha256(json.dumps([record.status, points, files]).encode()).hexdigest()[:16]


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _as_dict(run: Run) -> dict[str, Any]:
    return {
        "run_id": run.info.run_id,
        "name": run.info.run_name,
        "status": run.info.status,
        "started_ms": run.info.start_time,
        "ended_ms": run.info.end_time,
        "params": dict(run.data.params),
        "tags": {key.removeprefix(PREFIX): tag for key, tag in run.data.tags.items() if key.startswith(PREFIX)},
        "metrics": dict(run.data.metrics),
    }
