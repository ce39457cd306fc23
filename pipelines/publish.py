"""Publisher: brings MLflow up to date with the storage. The storage is the record, MLflow a view of it."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from cluster.environment import installed
from cluster.mlflow_store import database_of
from cluster.tracking import DamagedError, Metric, RunRecord, Tracker
from pipelines.progress import say
from pipelines.run_folder import RunFolder

PLAIN = ("Experiment", "Training", "Augmentation")
"""Classes of which there is only one: their names tell nothing."""

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]
"""As MLflow names them; KILLED: ended early on purpose."""

SECONDS_BETWEEN = 30.0
"""Between two updates of a running experiment, so that its curves grow in MLflow while it trains."""

SECONDS_AFTER_FAILURE = 300.0
"""Between two attempts while MLflow does not answer: each may block the driver for a minute."""


class Publisher:
    """Writes the runs of one suite to one MLflow store. Only the driver uses it."""

    def __init__(self, uri: str, suite: str, console: Console) -> None:
        database_of(uri)  # ValueError now, before anything is computed
        self.uri = uri
        self.suite = suite
        self.console = console
        self._tracker: Tracker | None = None
        self._last: dict[Path, float] = {}
        self._not_before = 0.0

    def reach(self, required: bool) -> None:
        """Connect to MLflow.

        required: ValueError or ConnectionError if that fails, before hours of training. A run that resumes does not
        require MLflow: it must not fail because MLflow is away for a while.
        """
        try:
            self._connect()
        except ConnectionError as error:
            if required:
                raise
            self._retry_later(error)

    def publish(self, folder: RunFolder, status: Status) -> str:
        """Send everything known of a run, idempotently; returns its MLflow run id."""
        return self._connect().sync(self.suite, _record(folder, status))

    def try_to_publish(self, folder: RunFolder, status: Status = "RUNNING") -> None:
        """Send an experiment. If the server does not answer, the command continues."""
        if time.monotonic() < self._not_before or folder.read_description() is None:
            return
        try:
            self.publish(folder, status)
        except ConnectionError as error:
            self._retry_later(error)

    def publish_now_and_then(self, folder: RunFolder) -> None:
        """Send a running experiment, at most every `SECONDS_BETWEEN`."""
        now = time.monotonic()
        if now - self._last.setdefault(folder.path, now) < SECONDS_BETWEEN:
            return
        self._last[folder.path] = now
        self.try_to_publish(folder)

    def publish_all(
        self, folders: Sequence[RunFolder], required: bool, statuses: Mapping[str, Status] | None = None
    ) -> dict[Path, str]:
        """Send every run that has begun, as finished or failed; returns the MLflow run ids of those that were sent.

        statuses: of runs without a result, by the names of their folders; without, they have failed.

        required: ConnectionError if MLflow does not answer; otherwise a message, because the storage has everything.
        A damaged network is not sent, with a message: MLflow keeps the copy that it has.
        """
        ids: dict[Path, str] = {}
        try:
            for path, folder in {folder.path: folder for folder in folders}.items():
                if folder.read_description() is None:
                    continue
                try:
                    unfinished = (statuses or {}).get(path.name, "FAILED")
                    ids[path] = self.publish(folder, "FINISHED" if folder.read_result() else unfinished)
                except DamagedError as error:
                    say(self.console, f"not in MLflow: {error}", "red")
        except ConnectionError as error:
            text = f"{error} The storage has everything: start the same command again when MLflow answers"
            if required:
                raise ConnectionError(text) from error
            say(self.console, f"not in MLflow yet: {text}", "yellow")
        return ids

    def publish_parent(self, record: RunRecord, children: Sequence[str]) -> str | None:
        """Send a record of several runs and show them below it; the address of its page, None if MLflow is away."""
        try:
            tracker = self._connect()
            parent = tracker.sync(self.suite, record)
            tracker.nest(parent, children)
            return tracker.page(self.suite, parent)
        except ConnectionError as error:
            self._retry_later(error)
            return None

    def page(self, run_id: str) -> str:
        """The address of a run in MLflow's UI."""
        return self._connect().page(self.suite, run_id)

    def _connect(self) -> Tracker:
        if self._tracker is None:
            self._tracker = Tracker(self.uri)
        return self._tracker

    def _retry_later(self, error: ConnectionError) -> None:
        self._not_before = time.monotonic() + SECONDS_AFTER_FAILURE
        say(self.console, f"MLflow does not answer now; the runs will be sent later ({error})")


class Untracked(Publisher):
    """In place of a Publisher where MLflow is not installed: nothing is sent. The storage has everything."""

    def reach(self, required: bool) -> None: ...

    def try_to_publish(self, folder: RunFolder, status: Status = "RUNNING") -> None: ...

    def publish_all(
        self, folders: Sequence[RunFolder], required: bool, statuses: Mapping[str, Status] | None = None
    ) -> dict[Path, str]:
        return {}

    def publish_parent(self, record: RunRecord, children: Sequence[str]) -> str | None: ...


def open_publisher(uri: str | None, storage: Path, suite: str, console: Console) -> Publisher:
    """The publisher of a suite. uri: of MLflow; None: the file in the storage, or Untracked if MLflow is not installed.

    ValueError: MLflow at `uri` was asked for, but is not installed.
    """
    if installed("mlflow"):
        return Publisher(uri or f"sqlite:///{storage}/mlflow.db", suite, console)
    if uri is not None:
        raise ValueError(
            "MLflow is not installed: pip install mlflow, or leave out --tracking-uri (MLFLOW_TRACKING_URI)"
        )
    text = "MLflow is not installed: runs are not tracked. The same command, started where it is, tracks them"
    say(console, text, "yellow")
    return Untracked(f"sqlite:///{storage}/mlflow.db", suite, console)


ALIASED = ("test/", "val/")
"""Beginnings of the metrics that a finished run also has under a name that MLflow's search needs no quotes for."""


def _record(folder: RunFolder, status: Status) -> RunRecord:
    result = folder.read_result()
    known: dict[str, Any] = result or folder.read_description() or {}
    labels, hashes = known["labels"], known.get("files", {})
    metrics = [Metric(r["key"], r["step"], r["value"], r["time_ms"]) for r in folder.read_history()]
    artifacts = ("model.safetensors", "arch.json")
    return RunRecord(
        identity=known["identity"],
        name=f"{labels['method']} {labels['sparsity']} {labels['model']} s{labels['seed']} {known['identity'][:4]}",
        params={**dict(flatten(known["experiment"])), **labels},
        tags=_tags(known),
        metrics=[*metrics, *_aliases(metrics)] if result else metrics,
        status=status,
        artifacts=[folder.path / name for name in artifacts] if result else [],
        hashes={name: hashes[name] for name in artifacts if name in hashes},
        note=known["name"],
        dataset=labels["dataset"],
        model=labels["model"],
    )


def _aliases(metrics: Sequence[Metric]) -> Iterator[Metric]:
    """`test_accuracy` beside `test/accuracy`, with its last value."""
    for metric in {metric.key: metric for metric in sorted(metrics, key=lambda metric: metric.step)}.values():
        if metric.key.startswith(ALIASED):
            yield replace(metric, key=metric.key.replace("/", "_"))


def _tags(known: dict[str, Any]) -> dict[str, str]:
    environment = known.get("environment", {})
    return {
        **known["tags"],
        **{key: str(value) for key, value in known["placement"].items()},
        **known["labels"],
        "started_ms": str(known["started_ms"]),
        "data_fingerprint": known["data"],
        "hardware": environment.get("hardware", "unknown"),
        "versions": json.dumps(environment.get("versions", {})),
    }


def flatten(value: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, plain value) as MLflow's parameters have them, of a canonical experiment (pipelines.identity).

    Lists are JSON; names of classes that only hold values together are left out.
    """
    for key, item in value.items():
        if isinstance(item, dict):
            yield from flatten(item, f"{prefix}{key}.")
        elif key != "kind" or item not in PLAIN:
            yield prefix + key, json.dumps(item) if isinstance(item, list) else item
