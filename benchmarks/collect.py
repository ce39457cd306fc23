"""From MLflow to results/runs.parquet: one row for each finished experiment (results/README.md has the units)."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.atomic import write_atomically
from cluster.tracking import Tracker

if TYPE_CHECKING:
    import pyarrow as pa

Row = dict[str, Any]

TAGS: dict[str, type] = {
    "recipe": str,
    "dataset": str,
    "model": str,
    "method": str,
    "method_label": str,
    "objective": str,
    "seed": int,
    "sparsity": float,
    "workers": int,
    "launcher": str,
    "strategy": str,
    "threads": int,
    "commit": str,
    "dirty": bool,
    "hardware": str,
    "versions": str,
    "data_fingerprint": str,
}
"""Columns that are tags of a run."""

METRICS: dict[str, tuple[str, type]] = {
    "test_accuracy": ("test/accuracy", float),
    "test_loss": ("test/loss", float),
    "val_accuracy": ("val/accuracy", float),
    "achieved_sparsity": ("cost/achieved_sparsity", float),
    "parameters": ("cost/parameters", int),
    "nonzero_parameters": ("cost/nonzero_parameters", int),
    "macs": ("cost/macs", int),
    "effective_macs": ("cost/effective_macs", int),
    "scoring_seconds": ("cost/score_seconds", float),
    "train_seconds": ("cost/train_seconds", float),
    "run_seconds": ("cost/run_seconds", float),
    "compacted_parameters": ("cost/compacted_parameters", int),
    "compacted_macs": ("cost/compacted_macs", int),
    "own_dense_epochs": ("cost/own_dense_epochs", float),
    "dense_epochs": ("cost/dense_epochs", float),
    "latency_seconds_batch_1": ("cost/latency_seconds_batch_1", float),
    "latency_seconds_batch_64": ("cost/latency_seconds_batch_64", float),
    "peak_memory_bytes": ("cost/peak_memory_bytes", int),
    "test_entropy": ("test/entropy", float),
    "test_max_probability": ("test/max_probability", float),
}
"""Columns that are a run's final metrics: (MLflow key, type)."""


def collect(tracking_uri: str, suite: str, parquet: Path) -> int:
    """Merge the finished runs of `suite` into `parquet`; how many there are.

    Of several runs of one suite, identity and data the one that was started last is kept; other rows stay, but those
    of runs that were deleted or replaced in MLflow go. Equal content gives equal bytes.
    ValueError: there is no store, no such suite or no finished run, or the file has other columns.
    """
    store = tracker(tracking_uri)
    rows = finished(store, suite)
    add(parquet, rows, store.gone(suite))
    if not rows:
        raise ValueError(f"suite {suite!r} has no finished runs in {tracking_uri}: run its experiments first")
    return len(rows)


def add(parquet: Path, rows: Sequence[Row], gone: Collection[str] = ()) -> None:
    """Merge rows into `parquet`, as `collect` does. gone: ids of runs that leave it."""
    before = read_runs(parquet) if parquet.exists() else []
    new = {(row["suite"], row["run_id"]) for row in rows}
    kept = [row for row in before if row["run_id"] not in gone and (row["suite"], row["run_id"]) not in new]
    all_rows = [*kept, *rows]
    newest = {(row["suite"], row["identity"], row["data_fingerprint"] or ""): row for row in sorted(all_rows, key=_age)}
    merged = [newest[place] for place in sorted(newest)]
    if merged != before:
        _write_runs(parquet, merged)


def finished(store: Tracker, suite: str) -> list[Row]:
    """One row for each finished run of `suite`. ValueError if there is no such suite."""
    found = [run for run in store.search(suite) if run["status"] == "FINISHED"]
    return [_row(suite, run) for run in found if "identity" in run["tags"]]


def tracker(tracking_uri: str) -> Tracker:
    """The store of an existing MLflow; ValueError if its database file is missing (MLflow would make an empty one)."""
    if tracking_uri.startswith("sqlite:///") and not Path(tracking_uri.removeprefix("sqlite:///")).exists():
        raise ValueError(f"there is no tracking store {tracking_uri}: run `make demo`, or correct the URI")
    return Tracker(tracking_uri)


def read_runs(parquet: Path) -> list[Row]:
    """The rows of `parquet`. What an older file does not have is None.

    ValueError: the file is missing or damaged, or has other columns than `schema()`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not parquet.exists():
        raise ValueError(f"{parquet} is missing: collect runs first, by --tracking-uri or --storage")
    try:
        table = pq.read_table(parquet)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{parquet} is no complete Parquet file: {error}") from error
    late = {*METRICS, "data_fingerprint"}
    later = [field for field in schema() if field.name in late and field.name not in table.schema.names]
    for field in later:  # the file is older than the column
        table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    if later and set(table.schema.names) == set(schema().names):
        table = table.select(schema().names)
    if not table.schema.equals(schema()):
        differing = sorted({f"{field.name} {field.type}" for field in set(table.schema) ^ set(schema())})
        raise ValueError(
            f"{parquet} has not the columns of this version ({', '.join(differing) or 'another order'}): "
            f"collect into a new file, by --runs"
        )
    return table.to_pylist()


def schema() -> pa.Schema:
    """The columns of runs.parquet."""
    import pyarrow as pa

    types = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    time = pa.timestamp("ms", tz="UTC")
    return pa.schema(
        [(name, pa.string()) for name in ("run_id", "identity", "suite", "name")]
        + [(name, types[kind]) for name, kind in TAGS.items()]
        + [(name, types[kind]) for name, (_, kind) in METRICS.items()]
        + [("started", time), ("finished", time), ("params", pa.string())]
    )


def _row(suite: str, run: Row) -> Row:
    tags, metrics = run["tags"], run["metrics"]
    # MLflow keeps every metric as a float; counts are whole.
    numbers = {name: (metrics.get(key), kind) for name, (key, kind) in METRICS.items()}
    return {
        "run_id": run["run_id"],
        "identity": tags["identity"],
        "suite": suite,
        "name": run["name"],
        **{name: _parsed(run["run_id"], name, kind, tags.get(name)) for name, kind in TAGS.items()},
        **{name: round(v) if kind is int and v is not None else v for name, (v, kind) in numbers.items()},
        "started": _time(run["started_ms"]),
        "finished": _time(run["ended_ms"]),
        "params": json.dumps(run["params"], sort_keys=True),
    }


def _parsed(run_id: str, tag: str, kind: type, text: str | None) -> Any:
    if text is None or (text == "unknown" and kind is not str):
        return None
    try:
        return {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError) as error:
        raise ValueError(f"run {run_id}: tag orchard.{tag} is {text!r}, which is no {kind.__name__}") from error


def _time(milliseconds: int | None) -> datetime | None:
    return None if milliseconds is None else datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=milliseconds)


def _age(row: Row) -> tuple[datetime, str]:
    return row["started"], row["run_id"]


def _write_runs(parquet: Path, rows: list[Row]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema()), sink)
    write_atomically(parquet, sink.getvalue().to_pybytes())
