"""Differences of rows from their controls, paired over seeds: what one thing changes, all else equal."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.rows import Row, asked
from benchmarks.suites import Table
from pipelines.experiment import Experiment
from pipelines.identity import canonical
from pipelines.publish import flatten

CONFIDENCE = 0.95

PLACEMENT = ("workers", "strategy", "threads")
"""Fields of a table that are no parameters of an experiment."""

NOTE = (
    "Differences are paired: a row minus its control, seed by seed, over the seeds that both have. The brackets are "
    "the 95 % interval of their mean, by Student's t. Fewer than two pairs give no difference, and pairs that all "
    "differ by the same no interval. A row is called higher or lower only if its interval leaves out 0. Each interval "
    "stands for itself: where nothing differs, one in twenty leaves out 0 by chance."
)


@dataclass(frozen=True)
class Difference:
    """A row's headline minus its control's, in units of the table, as it is shown.

    control: label of the control's row.
    pairs: seeds that both rows have, with the headline known in both.
    mean: over the pairs; None without two of them.
    interval: of the mean, (low, high), at 95 %; None if pairs are fewer than two or do not scatter.
    """

    control: str
    pairs: int
    mean: float | None = None
    interval: tuple[float, float] | None = None

    def verdict(self, digits: int) -> str:
        """higher, lower, or "not told apart"; empty without an interval. Of the numbers as shown, with `digits`."""
        if self.interval is None or not all(map(math.isfinite, self.interval)):
            return ""
        low, high = (round(bound, digits) for bound in self.interval)
        return "higher" if low > 0 else "lower" if high < 0 else "not told apart"


def paired(own: Mapping[int, float], other: Mapping[int, float], control: str) -> Difference:
    """The mean of own - other over their common seeds (seed -> number), with its interval by the paired t test."""
    from scipy.special import stdtrit

    differences = [own[seed] - other[seed] for seed in sorted(own.keys() & other.keys())]
    n = len(differences)
    if n < 2:
        return Difference(control, n)
    mean = math.fsum(differences) / n
    # Accuracies are counts of images: their differences are equal up to rounding, or really differ.
    if all(math.isclose(each, mean, rel_tol=0, abs_tol=1e-9) for each in differences):
        return Difference(control, n, mean)
    error = math.sqrt(math.fsum((each - mean) ** 2 for each in differences) / (n - 1) / n)
    half = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * error
    return Difference(control, n, mean, (mean - half, mean + half))


def compare(table: Table, rows: Sequence[Row]) -> list[Difference | None]:
    """For each row its difference from its control; None: it has none, or not exactly one row can be it."""
    possible = _by_lines(table, rows) if table.lines else _by_labels(table, rows)
    return [
        paired(_by_seed(table, row), _by_seed(table, controls[0]), label_of(table, controls[0]))
        if len(controls) == 1
        else None
        for row, controls in zip(rows, possible, strict=True)
    ]


def _by_labels(table: Table, rows: Sequence[Row]) -> list[list[Row]]:
    """For each row those that can be its control, by `controls`.

    They have the same data (label, content and everything that was asked of it), network and training, and the same
    values in the table's other fields; only the sparsity may be another if one of the two has none.
    """
    places = [_place(table, row) for row in rows]
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row, place in zip(rows, places, strict=True):
        for label in {_name(table, row), label_of(table, row)}:
            found.setdefault((label, *place), []).append(row)

    def of(row: Row, place: tuple[Any, ...]) -> list[Row]:
        wanted = table.controls.get(label_of(table, row)) or table.controls.get(_name(table, row))
        possible = found.get((wanted, *place), [])
        return [other for other in possible if other is not row and _equally_sparse(table, row, other)]

    return [of(row, place) for row, place in zip(rows, places, strict=True)]


def _by_lines(table: Table, rows: Sequence[Row]) -> list[list[Row]]:
    """For each row those that can be its control, by `lines`.

    A row is of the line with which it agrees in everything that differs between lines. It and its control agree in
    everything else: what was asked of all lines alike, the content of the data, and fields that are no parameters.
    """
    params = [_params(line.experiment) for line in table.lines]
    names = {name for each in params for name in each}
    varying = sorted(name for name in names if len({each.get(name) for each in params}) > 1)
    lines = {tuple(each.get(name) for name in varying): line for each, line in zip(params, table.lines, strict=True)}
    found: dict[tuple[Any, ...], list[Row]] = {}
    places: list[tuple[Any, ...]] = []
    for row in rows:
        text, fingerprint = asked(row.runs[0])
        own = json.loads(text)
        line = lines.get(tuple(own.get(name) for name in varying))
        rest = sorted((name, value) for name, value in own.items() if name not in varying)
        placement = [row.runs[0][field] for field in table.rows if field in PLACEMENT]
        place = (fingerprint, tuple(rest), *placement)
        places.append((line.control if line else None, *place))
        if line:
            found.setdefault((line.label, *place), []).append(row)
    return [found.get(place, []) for place in places]


def _params(experiment: Experiment) -> dict[str, str]:
    """What `asked` has of a run of this experiment."""
    flat = {name: str(value) for name, value in flatten(canonical(experiment))}
    return json.loads(asked({"params": json.dumps(flat)})[0])


def label_of(table: Table, row: Row) -> str:
    """What stands in the row's first cell, but for its marks."""
    return f"{_name(table, row)} ({row.others})" if row.others else _name(table, row)


def _name(table: Table, row: Row) -> str:
    return str(row.runs[0][next(iter(table.rows))] or "-")


def _equally_sparse(table: Table, row: Row, other: Row) -> bool:
    one, two = row.runs[0]["sparsity"], other.runs[0]["sparsity"]
    return "sparsity" not in table.rows or one == two or 0 in (one, two)


def _place(table: Table, row: Row) -> tuple[Any, ...]:
    """What rows that are compared must have in common: data, network, training, and the table's fields."""
    run = row.runs[0]
    params, fingerprint = asked(run)
    same = ("data.", "training.", "model")
    kept = {name: value for name, value in json.loads(params).items() if name.startswith(same)}
    _, *fields = table.rows
    shown = [run[field] for field in fields if field != "sparsity"]
    return run.get("dataset"), run.get("model"), fingerprint, json.dumps(kept, sort_keys=True), *shown


def _by_seed(table: Table, row: Row) -> dict[int, float]:
    """Seed -> headline. A seed that a row has twice, or whose number is unknown, has no pair."""
    values: dict[int, float] = {}
    seeds = [run.get("seed") for run in row.runs]
    for run, seed in zip(row.runs, seeds, strict=True):
        number = run[table.headline.field]
        if seed is not None and seeds.count(seed) == 1 and number is not None:
            values[seed] = number * table.headline.scale
    return values
