"""RunRecord: what the storage says of one run, as a tracking server needs it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cluster.records import sha256, sha256_of

EXECUTION = ("started_ms", "data_fingerprint")
"""Tags that stay the same while one execution of a run goes on."""

Point = tuple[str, int]
"""Key and step of a metric."""


class DamagedError(ValueError):
    """A file of a finished run is not what its record says."""


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

    identity: 16 hexadecimal digits of what the run was asked.
    params: the experiment, flattened to dotted names.
    tags: where and how it ran; updated until the run is synced as FINISHED. EXECUTION tells executions apart.
    metrics: the whole history; the first value of each (key, step) counts.
    artifacts: files with different names, uploaded when the run is FINISHED.
    hashes: file name -> sha256, as the run recorded it; of other files it is computed here.
    note: a description for readers.
    dataset, model: names for MLflow's columns.
    """

    identity: str
    name: str
    params: Mapping[str, str | int | float | bool | None]
    tags: Mapping[str, str]
    metrics: Sequence[Metric]
    status: Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]
    artifacts: Sequence[Path] = ()
    hashes: Mapping[str, str] = field(default_factory=dict)
    note: str = ""
    dataset: str = ""
    model: str = ""

    def points(self) -> dict[Point, Metric]:
        found: dict[Point, Metric] = {}
        for metric in self.metrics:
            found.setdefault((metric.key, metric.step), metric)
        return found

    def files(self) -> dict[str, str]:
        """Name -> sha256 of what a finished run left. DamagedError if a file without a recorded hash is missing."""
        if self.status != "FINISHED":
            return {}
        assert len({path.name for path in self.artifacts}) == len(self.artifacts), f"names repeat: {self.artifacts}"
        return {path.name: self.hashes.get(path.name) or hash_of(path) for path in self.artifacts}

    def digest(self, files: Mapping[str, str]) -> str:
        """Changes with everything that is written of a run. files: as from `files()`."""
        points = sorted((key, step, repr(metric.value)) for (key, step), metric in self.points().items())
        params = {key: str(value) for key, value in self.params.items()}
        tags = {key: self.tags[key] for key in EXECUTION if key in self.tags}
        text = json.dumps([self.status, params, tags, points, files], sort_keys=True)
        return sha256(text.encode())[:16]


def equal(one: float, other: float) -> bool:
    """Whether two values are the same number, as MLflow stores it: NaN is NaN, infinity the largest float."""
    return one == other or (math.isnan(one) and math.isnan(other)) or _finite(one) == _finite(other)


def _finite(value: float) -> float:
    return math.copysign(1.7976931348623157e308, value) if math.isinf(value) else value


def hash_of(path: Path) -> str:
    """The file's sha256. DamagedError if there is no such file."""
    try:
        return sha256_of(path)
    except FileNotFoundError as error:
        raise DamagedError(f"{path} is missing, but its run is finished") from error
