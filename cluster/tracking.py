"""Tracker: copies runs from the storage to MLflow.

The storage is the record. MLflow is a copy that may lag behind or be lost. So `sync` is idempotent: it finds a run by
its identity, and writes only what is missing. What MLflow has is never changed: a record that says something else is
another execution, thus a new MLflow run.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.mlflow_store import artifact_location, open_store, page, reaching, without_password
from cluster.run_record import EXECUTION, DamagedError, Metric, Point, RunRecord, equal, hash_of

__all__ = ["IDENTITY", "DamagedError", "Metric", "RunRecord", "Tracker"]

if TYPE_CHECKING:
    from mlflow.entities import Run

PREFIX = "orchard."
IDENTITY = PREFIX + "identity"
SYNCED = PREFIX + "synced"
FILES = PREFIX + "files"
"""JSON: name of an artefact -> sha256 of what was uploaded."""
REPLACED = PREFIX + "replaced_by"
"""The MLflow run of a later execution with the same identity."""
PARENT = "mlflow.parentRunId"
"""The run below which MLflow's UI shows a run."""

KIND = ("mlflow.experimentKind", "custom_model_development")
"""Tag of an experiment with which MLflow's UI shows its runs; without, it shows language models' traces."""


class Tracker:
    """MLflow at one tracking URI; each suite is an MLflow experiment, each execution of an identity in it one run.

    uri: `sqlite:///FILE`, with the artefacts beside the file, or `http(s)://HOST:PORT`.

    ValueError for an unsupported URI, ConnectionError if the server does not answer; both name the URI.
    """

    def __init__(self, uri: str) -> None:
        self.uri = without_password(uri)
        self._uri = uri
        self._experiments: dict[str, str] = {}
        with reaching(uri):
            self._client = open_store(uri)
            self._client.search_experiments(max_results=1)

    def sync(self, suite: str, record: RunRecord) -> str:
        """Write what MLflow does not have of `record`; returns the MLflow run id. A synced run costs one search.

        If MLflow's runs of this identity have other numbers, params, data or files than the record, they are of other
        executions: the record becomes a new run, and they are tagged as replaced by it.
        DamagedError if a file to be sent is not what the record says. Then MLflow keeps its own copy.
        """
        files = record.files()
        digest = record.digest(files)
        with reaching(self._uri):
            experiment = self._experiment(suite)
            runs = self._search(experiment, f"tags.`{IDENTITY}` = '{record.identity}'")
            run = next((run for run in runs if run.data.tags.get(SYNCED) == digest), None)
            if run is not None:
                return run.info.run_id
            for run in sorted(runs, key=lambda run: REPLACED in run.data.tags):
                history = self._history(run, record)
                if _agree(run, record, history):
                    break
            else:
                run, history = self._create(experiment, record), {}
                for other in runs:
                    if REPLACED not in other.data.tags:
                        self._client.set_tag(other.info.run_id, REPLACED, run.info.run_id)
            self._write(run, record, history, files)
            # Last: a driver that dies before this writes everything again.
            self._client.set_tag(run.info.run_id, SYNCED, digest)
        return run.info.run_id

    def nest(self, parent: str, children: Sequence[str]) -> None:
        """Show the runs `children` below the run `parent` of their suite.

        A run that is below another stays there, unless `parent` has replaced that one.
        """
        with reaching(self._uri):
            experiment = self._client.get_run(parent).info.experiment_id
            nested = {run.info.run_id for run in self._search(experiment, f"tags.`{PARENT}` = '{parent}'")}
            replaced = {run.info.run_id for run in self._search(experiment, f"tags.`{REPLACED}` = '{parent}'")}
            for child in set(children) - nested:
                if self._client.get_run(child).data.tags.get(PARENT) in {None, *replaced}:
                    self._client.set_tag(child, PARENT, parent)

    def page(self, suite: str, run_id: str | None = None) -> str:
        """The address of a run, or of all runs of a suite, in MLflow's UI."""
        with reaching(self._uri):
            return page(self._uri, self._experiment(suite), run_id)

    def suites(self) -> set[str]:
        """The names of all experiments in this store."""
        with reaching(self._uri):
            return {experiment.name for experiment in self._client.search_experiments()}

    def search(self, suite: str) -> list[dict[str, Any]]:
        """Every run of `suite` but deleted and replaced ones: run_id, name, status, started_ms, ended_ms, params, tags
        (ours, without prefix) and metrics (the value at the highest step of each).

        ValueError if there is no such suite.
        """
        return [_as_dict(run) for run in self._all(suite)[0]]

    def gone(self, suite: str) -> set[str]:
        """The ids of the deleted and the replaced runs of `suite`. ValueError if there is no such suite."""
        return {run.info.run_id for run in self._all(suite)[1]}

    def _all(self, suite: str) -> tuple[list[Run], list[Run]]:
        """The runs of a suite that count, and those that do not: deleted, or replaced by one that is not deleted."""
        from mlflow.entities import ViewType

        with reaching(self._uri):
            experiment = self._client.get_experiment_by_name(suite)
            if experiment is None:
                known = ", ".join(sorted(self.suites())) or "none"
                raise ValueError(f"there is no suite {suite!r} in {self.uri}; it has: {known}")
            runs = self._search(experiment.experiment_id, "", ViewType.ALL)
        alive = {run.info.run_id for run in runs if run.info.lifecycle_stage == "active"}
        counting = {run.info.run_id for run in runs if run.data.tags.get(REPLACED) not in alive} & alive
        return (
            [run for run in runs if run.info.run_id in counting],
            [run for run in runs if run.info.run_id not in counting],
        )

    def _search(self, experiment: str, which: str, view: int = 1) -> list[Run]:
        """The runs of an experiment, the latest first; view 1: without deleted ones."""
        runs, token = [], None
        while True:
            found = self._client.search_runs([experiment], which, view, page_token=token)
            runs += found
            token = found.token
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
                self._client.create_experiment(suite, artifact_location(self._uri), tags=dict([KIND]))
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
        if KIND[0] not in found.tags:
            self._client.set_experiment_tag(found.experiment_id, *KIND)
        self._experiments[suite] = found.experiment_id
        return found.experiment_id

    def _create(self, experiment: str, record: RunRecord) -> Run:
        from mlflow.entities import Dataset, DatasetInput

        started = min((m.timestamp_ms for m in record.metrics), default=_now_ms())
        tags = {IDENTITY: record.identity, "mlflow.source.name": "orchard", "mlflow.source.type": "LOCAL"}
        tags |= {PREFIX + key: record.tags[key] for key in EXECUTION if key in record.tags}
        if "commit" in record.tags:
            tags["mlflow.source.git.commit"] = record.tags["commit"].rpartition(", ")[2]
        if record.note:
            tags["mlflow.note.content"] = record.note
        run = self._client.create_run(experiment, start_time=started, tags=tags, run_name=record.name)
        if record.dataset:
            fingerprint = record.tags.get("data_fingerprint", "unknown")
            dataset = Dataset(_cut(record.dataset, 500), fingerprint[:36], "orchard", json.dumps({}))
            self._client.log_inputs(run.info.run_id, [DatasetInput(dataset, [])])
        return run

    def _history(self, run: Run, record: RunRecord) -> dict[Point, float]:
        """(key, step) -> value, of those keys that the record has."""
        return {
            (key, m.step): m.value
            for key in {m.key for m in record.metrics} & set(run.data.metrics)
            for m in self._client.get_metric_history(run.info.run_id, key)
        }

    def _write(self, run: Run, record: RunRecord, history: Mapping[Point, float], files: Mapping[str, str]):
        from mlflow.entities import Metric as MlflowMetric
        from mlflow.entities import Param, RunTag
        from mlflow.utils.validation import MAX_TAG_VAL_LENGTH

        run_id = run.info.run_id
        if record.status == "RUNNING" and run.info.status != "RUNNING":
            self._client.update_run(run_id, status="RUNNING")
        missing = [Param(key, value) for key, value in _params(record).items() if key not in run.data.params]
        tags = [RunTag(PREFIX + key, _cut(value, MAX_TAG_VAL_LENGTH)) for key, value in record.tags.items()]
        new = [metric for point, metric in record.points().items() if point not in history]
        # One kind per request, as MLflow limits a request to a megabyte. The client splits each kind into chunks.
        self._client.log_batch(run_id, params=missing)
        self._client.log_batch(run_id, tags=tags)
        self._client.log_batch(run_id, metrics=[MlflowMetric(m.key, m.value, m.timestamp_ms, m.step) for m in new])
        if record.status == "FINISHED":
            self._upload(run, record, files)
            self._show_model(run, record)
        if record.status != "RUNNING" and run.info.status != record.status:
            ended = max((m.timestamp_ms for m in record.metrics), default=_now_ms())
            self._client.set_terminated(run_id, status=record.status, end_time=ended)

    def _upload(self, run: Run, record: RunRecord, files: Mapping[str, str]) -> None:
        """Send what MLflow does not have. A file that is not what the record says never replaces MLflow's copy."""
        if not files:
            return
        sent, names = _sent(run), {info.path for info in self._client.list_artifacts(run.info.run_id)}
        for path in record.artifacts:
            stored = path.name in names
            if stored and path.name not in sent and SYNCED in run.data.tags:
                sent[path.name] = self._hash_of_copy(run, path.name)
            if stored and sent.get(path.name) == files[path.name]:
                continue
            if files[path.name] != sent.get(path.name, files[path.name]) or hash_of(path) != files[path.name]:
                raise DamagedError(f"{path} is damaged: it is not the file that its run recorded, and is not sent")
            self._client.log_artifact(run.info.run_id, str(path))
        self._client.set_tag(run.info.run_id, FILES, json.dumps(files))

    def _hash_of_copy(self, run: Run, name: str) -> str:
        """Of a file that MLflow has from before hashes were recorded."""
        with tempfile.TemporaryDirectory() as folder:
            return hash_of(Path(self._client.download_artifacts(run.info.run_id, name, folder)))

    def _show_model(self, run: Run, record: RunRecord) -> None:
        """Fill MLflow's column of models, once."""
        from mlflow.entities import LoggedModelOutput

        if not record.model or (run.outputs is not None and run.outputs.model_outputs):
            return
        made = self._client.create_logged_model(run.info.experiment_id, record.model, run.info.run_id)
        self._client.finalize_logged_model(made.model_id, "READY")
        last = max((m.step for m in record.metrics), default=0)
        self._client.log_outputs(run.info.run_id, [LoggedModelOutput(made.model_id, last)])


def _agree(run: Run, record: RunRecord, history: Mapping[Point, float]) -> bool:
    """Whether a run can be an earlier state of `record`: it began as the record did, and what both have is equal."""
    params, points, sent = _params(record), record.points(), _sent(run)
    ended, began = run.info.end_time, int(record.tags.get("started_ms", 0))
    return (
        (ended is None or ended >= began or PREFIX + "started_ms" in run.data.tags)  # older runs do not have the tag
        and all(run.data.tags.get(PREFIX + key, tag) == tag for key, tag in record.tags.items() if key in EXECUTION)
        and all(params.get(key, value) == value for key, value in run.data.params.items())
        and all(sent.get(name, sha256) == sha256 for name, sha256 in record.hashes.items())
        and all(equal(points[point].value, value) for point, value in history.items() if point in points)
        and (record.status != "FINISHED" or history.keys() <= points.keys())
    )


def _sent(run: Run) -> dict[str, str]:
    """Name -> sha256 of the artefacts that were uploaded."""
    return json.loads(run.data.tags.get(FILES, "{}"))


def _params(record: RunRecord) -> dict[str, str]:
    from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH

    return {key: _cut(str(value), MAX_PARAM_VAL_LENGTH) for key, value in record.params.items()}


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
