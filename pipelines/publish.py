"""Publisher: brings MLflow level with what lies in the storage. The storage is the record, MLflow the view of it."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from cluster.tracking import Metric, RunRecord, Tracker
from pipelines.run_folder import RunFolder

Status = Literal["RUNNING", "FINISHED", "FAILED"]

SECONDS_BETWEEN = 30.0
"""between two looks at a running experiment, so that its curves grow in MLflow while it trains"""

SECONDS_AFTER_FAILURE = 300.0
"""between two attempts while MLflow does not answer: each may hold the driver for a minute"""


class Publisher:
    """Writes the runs of one suite to one MLflow store, from the driver alone."""

    def __init__(self, uri: str, storage: Path, suite: str, console: Console) -> None:
        self.uri = uri
        self.suite = suite
        self.console = console
        self._artifacts = storage / "mlartifacts" if uri.startswith("sqlite:") else None
        self._tracker: Tracker | None = None
        self._last: dict[Path, float] = {}
        self._not_before = 0.0

    def reach(self, required: bool) -> None:
        """Reach MLflow. Where it is required, ValueError or ConnectionError says so before hours of training.

        It is not where a run goes on that was begun under it: that must not end because MLflow is away for a while.
        """
        try:
            self._connect()
        except ConnectionError as error:
            if required:
                raise
            self._say_later(error)

    def publish(self, folder: RunFolder, status: Status) -> str:
        """All that is known of a run, idempotently; its MLflow run id."""
        return self._connect().sync(self.suite, _record(folder, status))

    def try_to_publish(self, folder: RunFolder) -> None:
        """A run that has begun, as it stands; a server that does not answer stops nothing."""
        if time.monotonic() < self._not_before:
            return
        try:
            self.publish(folder, "RUNNING")
        except ConnectionError as error:
            self._say_later(error)

    def publish_now_and_then(self, folder: RunFolder) -> None:
        """While it runs, seldom."""
        now = time.monotonic()
        if now - self._last.setdefault(folder.path, now) < SECONDS_BETWEEN:
            return
        self._last[folder.path] = now
        if folder.read_description() is not None:
            self.try_to_publish(folder)

    def publish_all(self, folders: Sequence[RunFolder], required: bool) -> list[str | None]:
        """Every run that has begun, as it stands at the end: finished or failed; None for one that MLflow has not.

        required: ConnectionError where MLflow does not answer; else it is said, as the runs themselves are whole.
        """
        ids: list[str | None] = [None] * len(folders)
        try:
            for number, folder in enumerate(folders):
                if folder.read_description() is not None:
                    ids[number] = self.publish(folder, "FINISHED" if folder.read_result() else "FAILED")
        except ConnectionError as error:
            text = f"{error} The storage has everything: start the same command again when MLflow answers"
            if required:
                raise ConnectionError(text) from error
            self.console.print(f"not in MLflow yet: {text}", style="yellow", soft_wrap=True, markup=False)
        return ids

    def _connect(self) -> Tracker:
        if self._tracker is None:
            self._tracker = Tracker(self.uri, self._artifacts)
        return self._tracker

    def _say_later(self, error: ConnectionError) -> None:
        self._not_before = time.monotonic() + SECONDS_AFTER_FAILURE
        text = f"MLflow does not answer now; it will be brought level later ({error})"
        self.console.print(text, soft_wrap=True, highlight=False, markup=False)


def _record(folder: RunFolder, status: Status) -> RunRecord:
    result = folder.read_result()
    known: dict[str, Any] = result or folder.read_description() or {}
    artifacts = [folder.path / "model.safetensors", folder.path / "arch.json"] if result else []
    return RunRecord(
        identity=known["identity"],
        name=known["name"],
        params=dict(_flatten(known["experiment"])),
        tags=_tags(known),
        metrics=[Metric(r["key"], r["step"], r["value"], r["time_ms"]) for r in folder.read_history()],
        status=status,
        artifacts=artifacts,
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


def _flatten(value: dict[str, Any], prefix: str = ""):
    """(dotted name, plain value), lists as JSON."""
    for key, item in value.items():
        if isinstance(item, dict):
            yield from _flatten(item, f"{prefix}{key}.")
        else:
            yield prefix + key, json.dumps(item) if isinstance(item, list) else item
