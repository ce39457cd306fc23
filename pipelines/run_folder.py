"""RunFolder: where the parts of one run lie in the storage, and what can be read back from it by anybody.

runs/<identity>/
    run.json                  the experiment, readable; placement and data of the first start
    lock                      held by whoever runs it
    stages/<name>/            stage.json + result.safetensors, or checkpoints/step-*/ for a training
    model.safetensors         the artefact
    arch.json
    result.json               written last: the run is finished
"""

import time
from pathlib import Path
from typing import Any

from cluster.checkpoints import CheckpointStore, file_name
from cluster.records import read_json

Record = dict[str, Any]
"""One number of a run: {"key", "step", "value", "time_ms"}."""


def record(key: str, step: int, value: float) -> Record:
    """One number, with the time at which it was known."""
    return {"key": key, "step": step, "value": float(value), "time_ms": int(time.time() * 1000)}


def read_stage(folder: Path) -> dict[str, Any]:
    """stage.json of a finished stage. ValueError: it is missing or damaged."""
    path, remedy = folder / "stage.json", f"delete {folder} and start the same command again: it is computed anew"
    try:
        stage = read_json(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{error}: {remedy}") from error
    if not isinstance(stage, dict) or not {"kind", "value", "order", "history"} <= stage.keys():
        raise ValueError(f"{path} is not the result of a stage: {remedy}")
    return stage


class RunFolder:
    """The folder of one experiment below a storage. ValueError where a name would lead out of it."""

    def __init__(self, storage: Path, identity: str) -> None:
        self.storage = storage
        self.path = storage / "runs" / file_name(identity)
        self.description = self.path / "run.json"
        self.result = self.path / "result.json"
        self.lock = self.path / "lock"
        self.error = self.path / "error.txt"

    def stage(self, name: str) -> Path:
        return self.path / "stages" / file_name(name)

    def checkpoints(self, name: str, keep: int = 2) -> CheckpointStore:
        return CheckpointStore(self.stage(name) / "checkpoints", keep)

    def read_description(self) -> dict[str, Any] | None:
        """What the run was when it was started, or None before. ValueError: it is damaged."""
        if not self.description.exists():
            return None
        remedy = f"delete {self.path} to start this run from its beginning"
        try:
            description = read_json(self.description)
        except ValueError as error:
            raise ValueError(f"{error}: {remedy}") from error
        if not isinstance(description, dict) or not description:
            raise ValueError(f"{self.description} does not describe a run: {remedy}")
        return description

    def read_result(self) -> dict[str, Any] | None:
        """What the finished run says of itself, or None while it is not finished. ValueError: it is damaged."""
        if not self.result.exists():
            return None
        remedy = "delete it and start the same command again: the run goes on from its last checkpoint"
        try:
            result = read_json(self.result)
        except ValueError as error:
            raise ValueError(f"{error}: {remedy}") from error
        if not isinstance(result, dict) or not {"data", "metrics", "history"} <= result.keys():
            raise ValueError(f"{self.result} is not the result of a finished run: {remedy}")
        return result

    def read_history(self) -> list[Record]:
        """Every number recorded so far: of a finished run from its result, else from what its stages left."""
        result = self.read_result()
        if result is not None:
            return result["history"]
        stages = sorted((self.path / "stages").glob("*"))
        return [record for stage in stages for record in self.read_stage_history(stage.name)]

    def read_stage_history(self, name: str) -> list[Record]:
        """Every number that one stage has left so far."""
        stage = self.stage(name)
        if (stage / "stage.json").exists():
            return read_stage(stage)["history"]
        latest = CheckpointStore(stage / "checkpoints").latest()
        return [] if latest is None else latest.state["history"]
