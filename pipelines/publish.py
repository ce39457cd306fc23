"""Publisher: brings MLflow up to date with the storage. The storage is the record, MLflow a view of it."""

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from cluster.tracking import Metric, RunRecord, Tracker
from pipelines.progress import say
from pipelines.run_folder import RunFolder

Status = Literal["RUNNING", "FINISHED", "FAILED"]

SECONDS_BETWEEN = 30.0
"""Between two updates of a running experiment, so that its curves grow in MLflow while it trains."""

SECONDS_AFTER_FAILURE = 300.0
"""Between two attempts while MLflow does not answer: each may block the driver for a minute."""


class Publisher:
    """Writes the runs of one suite to one MLflow store. Only the driver uses it."""

    def __init__(self, uri: str, storage: Path, suite: str, console: Console) -> None:
        self.uri = uri
        self.suite = suite
        self.console = console
        self._artifacts = storage / "mlartifacts" if uri.startswith("sqlite:") else None
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

    def try_to_publish(self, folder: RunFolder) -> None:
        """Send a running experiment. If the server does not answer, the run continues."""
        if time.monotonic() < self._not_before:
            return
        try:
            self.publish(folder, "RUNNING")
        except ConnectionError as error:
            self._retry_later(error)

    def publish_now_and_then(self, folder: RunFolder) -> None:
        """Send a running experiment, at most every `SECONDS_BETWEEN`."""
        now = time.monotonic()
        if now - self._last.setdefault(folder.path, now) < SECONDS_BETWEEN:
            return
        self._last[folder.path] = now
        if folder.read_description() is not None:
            self.try_to_publish(folder)

    def publish_all(self, folders: Sequence[RunFolder], required: bool) -> dict[Path, str]:
        """Send every run that has begun, as finished or failed; returns the MLflow run ids of those that were sent.

        required: ConnectionError if MLflow does not answer; otherwise a message, because the storage has everything.
        """
        ids: dict[Path, str] = {}
        try:
            for path, folder in {folder.path: folder for folder in folders}.items():
                if folder.read_description() is not None:
                    ids[path] = self.publish(folder, "FINISHED" if folder.read_result() else "FAILED")
        except ConnectionError as error:
            text = f"{error} The storage has everything: start the same command again when MLflow answers"
            if required:
                raise ConnectionError(text) from error
            say(self.console, f"not in MLflow yet: {text}", "yellow")
        return ids

    def _connect(self) -> Tracker:
        if self._tracker is None:
            self._tracker = Tracker(self.uri, self._artifacts)
        return self._tracker

    def _retry_later(self, error: ConnectionError) -> None:
        self._not_before = time.monotonic() + SECONDS_AFTER_FAILURE
        say(self.console, f"MLflow does not answer now; the runs will be sent later ({error})")


def _record(folder: RunFolder, status: Status) -> RunRecord:
    result = folder.read_result()
    known: dict[str, Any] = result or folder.read_description() or {}
    return RunRecord(
        identity=known["identity"],
        name=known["name"],
        params=dict(_flatten(known["experiment"])),
        tags=_tags(known),
        metrics=[Metric(r["key"], r["step"], r["value"], r["time_ms"]) for r in folder.read_history()],
        status=status,
        artifacts=[folder.path / "model.safetensors", folder.path / "arch.json"] if result else [],
    )


def _tags(known: dict[str, Any]) -> dict[str, str]:
    environment = known.get("environment", {})
    return {
        **known["tags"],
        **{key: str(value) for key, value in known["placement"].items()},
        **known["labels"],
        "data_fingerprint": known["data"],
        "hardware": environment.get("hardware", "unknown"),
        "versions": json.dumps(environment.get("versions", {})),
    }


def _flatten(value: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, plain value), lists as JSON."""
    for key, item in value.items():
        if isinstance(item, dict):
            yield from _flatten(item, f"{prefix}{key}.")
        else:
            yield prefix + key, json.dumps(item) if isinstance(item, list) else item
