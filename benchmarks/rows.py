"""Rows of tables: which runs may stand in one row, and what a reader must be told of them."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.suites import Column, Table
from pipelines.publish import PLAIN

Run = dict[str, Any]

REPEATED = ("dataset", "method", "method_label", "objective", "sparsity")
"""Parameters in MLflow that repeat others under short names, and that older runs do not have."""


def asked(run: Run) -> tuple[str, str | None]:
    """What runs of one row must have in common: the experiment but for its seed, and the content of the data.

    Where that differs, means would be of different things. What may differ is marked (`MARKS`).
    """
    params = {
        name: value
        for name, value in json.loads(run.get("params") or "{}").items()
        if name != "seed" and name not in REPEATED and value not in PLAIN
    }
    return json.dumps(params, sort_keys=True), run.get("data_fingerprint")


@dataclass(frozen=True)
class Mark:
    """Something about the runs of a row that a reader must be told.

    find: what to tell of a row's runs; empty: nothing.
    """

    symbol: str
    text: str
    find: Callable[[Sequence[Run]], str]


def _several(field: str) -> Callable[[Sequence[Run]], str]:
    """The values of a field, if there are several."""

    def find(runs: Sequence[Run]) -> str:
        values = sorted({str(run[field]) for run in runs})
        return " / ".join(values) if len(values) > 1 else ""

    return find


def _commits(runs: Sequence[Run]) -> str:
    commits = sorted({commit[:7] for run in runs if known_commit(run) for commit in run["commit"].split(", ")})
    return " / ".join(commits) if len(commits) > 1 else ""


def _unknown(runs: Sequence[Run]) -> str:
    return "unknown" if any(not known_commit(run) or run.get("dirty") is None for run in runs) else ""


def known_commit(run: Run) -> bool:
    return "unknown" not in (run.get("commit") or "unknown")


def _versions(runs: Sequence[Run]) -> str:
    """Each package that differs, with its versions."""
    found = [json.loads(run.get("versions") or "{}") for run in runs]
    texts = []
    for package in sorted({name for versions in found for name in versions}):
        values = sorted({str(versions.get(package, "none")) for versions in found})
        texts += [f"{package} {' / '.join(values)}"] if len(values) > 1 else []
    return ", ".join(texts)


def _placements(runs: Sequence[Run]) -> str:
    fields = ("workers", "strategy", "threads")
    return ", ".join(f"{field} {values}" for field in fields if (values := _several(field)(runs)))


MARKS: dict[str, Mark] = {
    "dirty": Mark(
        "†", "run from an uncommitted tree", lambda runs: "dirty" if any(r.get("dirty") for r in runs) else ""
    ),
    "unknown commit": Mark("‡", "not known from which commit, or whether from an uncommitted tree", _unknown),
    "commits": Mark("§", "of several commits", _commits),
    "hardware": Mark("¶", "on different hardware", _several("hardware")),
    "versions": Mark("‖", "with different package versions", _versions),
    "placement": Mark("#", "by workers that were placed differently", _placements),
    "unknown data": Mark(
        "°",
        "not known of which content the data were",
        lambda runs: "unknown" if any(run.get("data_fingerprint") is None for run in runs) else "",
    ),
}


@dataclass(frozen=True)
class Row:
    """Runs that differ only by seed (and by what `asked` does not look at).

    others: how the row differs from others that look the same.
    """

    runs: tuple[Run, ...]
    others: str = ""

    @property
    def seeds(self) -> str:
        return " ".join(plain(run.get("seed")) or "?" for run in self.runs)

    @property
    def run_ids(self) -> list[str]:
        return [run["run_id"] for run in self.runs]

    @property
    def dirty(self) -> bool | None:
        """None: not known."""
        values = {run.get("dirty") for run in self.runs}
        return True if True in values else None if None in values else False

    def marks(self) -> dict[str, str]:
        """Name of a mark -> what it tells of this row."""
        return {name: text for name, mark in MARKS.items() if (text := mark.find(self.runs))}

    def mean_and_std(self, column: Column) -> tuple[float | None, float | None]:
        """Mean and sample standard deviation (n - 1; None for one run).

        Both are None if a run lacks the number: n, which the table shows beside them, counts all runs.
        """
        values = [run[column.field] for run in self.runs]
        if None in values:
            return None, None
        scaled = [value * column.scale for value in values]
        mean = math.fsum(scaled) / len(scaled)
        if len(scaled) == 1:
            return mean, None
        return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in scaled) / (len(scaled) - 1))


def build(table: Table, runs: Sequence[Run]) -> list[Row]:
    """The rows of `table`: dense ones first, then by the fields that make a row. ValueError: there are no runs.

    Runs that were asked different things are never one row, even where the table does not show the difference.
    """
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for run in (run for run in runs if run["suite"] == table.suite):
        groups.setdefault((*(run[field] for field in table.rows), *asked(run)), []).append(run)
    if not groups:
        raise ValueError(
            f"there are no runs of suite {table.suite!r}: run its experiments, then collect them by --tracking-uri "
            f"or --storage"
        )

    def order(key: tuple[Any, ...]) -> list[Any]:
        return [groups[key][0]["method"] != "dense", *((value is None, value) for value in key)]

    def by_seed(run: Run) -> tuple[Any, ...]:
        return run.get("seed") is None, run.get("seed"), run["run_id"]

    shown = len(table.rows)
    alike: dict[tuple[Any, ...], list[tuple[Any, ...]]] = {}
    for key in groups:
        alike.setdefault(key[:shown], []).append(key)
    differences = {
        key: text for keys in alike.values() for key, text in _differences(keys, [key[shown:] for key in keys]).items()
    }
    return [Row(tuple(sorted(groups[key], key=by_seed)), differences[key]) for key in sorted(groups, key=order)]


def _differences(keys: Sequence[tuple[Any, ...]], asked_of: Sequence[tuple[str, str | None]]) -> dict[Any, str]:
    """How (parameters, data) of each row differ from those of the rows that look the same."""
    if len(keys) == 1:
        return {keys[0]: ""}
    params = [json.loads(text) for text, _ in asked_of]
    several = len({data for _, data in asked_of}) > 1
    names = sorted({name for each in params for name in each})
    differing = [name for name in names if len({each.get(name) for each in params}) > 1]
    found = {}
    for key, own, (_, data) in zip(keys, params, asked_of, strict=True):
        texts = [f"data {(data or 'unknown')[:8]}"] if several else []
        texts += [f"{name} {own.get(name, 'as by default')}" for name in differing]
        found[key] = ", ".join(texts)
    return found


def plain(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)
