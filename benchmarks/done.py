"""What of a suite is done already: in the storage, or as a row of results/runs.parquet from another machine."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.collect import Row, read_runs
from benchmarks.suites import Line, Suite
from cluster.environment import installed
from cluster.records import as_json
from pipelines import reuse
from pipelines.experiment import Experiment
from pipelines.identity import canonical
from pipelines.run_folder import RunFolder
from pipelines.teachers import needed


@dataclass
class Done:
    """What was found.

    here: identity -> seconds of a run that is finished in the storage. elsewhere: identity -> row of runs.parquet that
    counts. notes: why other rows do not count.
    """

    here: dict[str, float] = field(default_factory=dict)
    elsewhere: dict[str, Row] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def missing(self, experiments: Sequence[Experiment]) -> list[Experiment]:
        """Those that have to run."""
        return [each for each in experiments if each.identity not in self.here and each.identity not in self.elsewhere]

    def teachers(self, experiments: Sequence[Experiment]) -> list[Experiment]:
        """The unfinished teachers of the missing ones, each once. A row is no network: it does not stand for one."""
        own = {each.identity for each in experiments}
        found = {each.identity: each for run in self.missing(experiments) for each in needed(run)}
        return [each for name, each in found.items() if name not in self.here and name not in own]

    def seconds(self, experiments: Sequence[Experiment]) -> list[float]:
        """How long those took that are done, as they recorded it; what is not known is left out."""
        rows = [self.elsewhere.get(each.identity, {}).get("run_seconds") for each in experiments]
        found = [self.here.get(each.identity, row) for each, row in zip(experiments, rows, strict=True)]
        return [seconds for seconds in found if seconds]


def find(experiments: Sequence[Experiment], storage: Path, parquet: Path) -> Done:
    """Look in the storage, then in `parquet`, where a row counts if it has the same identity and data as here.

    An identity covers everything that was asked, and the version of the method. ValueError: a damaged record.
    """
    done = Done()
    for each in {run.identity: run for own in experiments for run in (*needed(own), own)}.values():
        result = RunFolder(storage, each.identity).read_result()
        if result is not None:
            done.here[each.identity] = result["metrics"].get("cost/run_seconds", 0.0)
    missing = {each.identity: each for each in done.missing(experiments)}
    if not missing or not parquet.exists():
        return done
    if not installed("pyarrow"):
        done.notes.append(f"pyarrow is not installed: {parquet} is not read, none of its runs counts as done")
        return done
    rows = [row for row in read_runs(parquet) if row["identity"] in missing]
    fingerprints: dict[bytes, str | None] = {}
    refused: dict[str, int] = {}
    for row in rows:
        data = missing[row["identity"]].data
        key = as_json(canonical(data))
        if key not in fingerprints:
            fingerprints[key] = _fingerprint(missing[row["identity"]], storage)
        here, there = fingerprints[key], row["data_fingerprint"]
        if here is not None and here == there:
            done.elsewhere[row["identity"]] = row
            continue
        reason = "the fingerprint of their data is not recorded" if there is None else "their data are others than here"
        reason = reason if here is not None else f"{data.label} cannot be read here, so their data cannot be compared"
        refused[reason] = refused.get(reason, 0) + 1
    done.notes += [f"{count} rows of {parquet} do not count as done: {text}" for text, count in refused.items()]
    return done


def _fingerprint(experiment: Experiment, storage: Path) -> str | None:
    with contextlib.suppress(OSError, ValueError):
        return reuse.fingerprints(experiment, storage)["data"]
    return None


def seconds_left(suite: Suite, done: Done) -> list[tuple[Line, list[Experiment], float | None]]:
    """For each line its missing runs and their seconds, one after the other, as long as its done ones took."""
    found = []
    for line in suite.lines:
        runs = of_line(suite, line)
        missing, seconds = done.missing(runs), done.seconds(runs)
        each = sum(seconds) / len(seconds) if seconds else None
        found.append((line, missing, 0.0 if not missing else None if each is None else each * len(missing)))
    return found


def of_line(suite: Suite, line: Line) -> list[Experiment]:
    """The runs of a line."""
    return [replace(line.experiment, seed=seed) for seed in suite.seeds]


def as_rows(suite: Suite, done: Done) -> list[dict[str, Any]]:
    """The rows that count, as rows of this suite."""
    return [{**row, "suite": suite.name} for row in done.elsewhere.values()]
