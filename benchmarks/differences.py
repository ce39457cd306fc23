"""Differences of rows from their controls, paired over seeds: what one thing changes, all else equal."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.rows import Row, asked
from benchmarks.suites import Table

CONFIDENCE = 0.95

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
    """For each row its difference from its control; None: it has none, or not exactly one row can be it.

    A control has the same data (label, content and everything that was asked of it), network and training, and the same
    values in the table's other fields; only its sparsity may be another if one of the two has none.
    """
    places = [_place(table, row) for row in rows]
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row, place in zip(rows, places, strict=True):
        for label in {_name(table, row), label_of(table, row)}:
            found.setdefault((label, *place), []).append(row)

    def of(row: Row, place: tuple[Any, ...]) -> Difference | None:
        wanted = table.controls.get(label_of(table, row)) or table.controls.get(_name(table, row))
        possible = found.get((wanted, *place), [])
        controls = [other for other in possible if other is not row and _equally_sparse(table, row, other)]
        if len(controls) != 1:
            return None
        return paired(_by_seed(table, row), _by_seed(table, controls[0]), label_of(table, controls[0]))

    return [of(row, place) for row, place in zip(rows, places, strict=True)]


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
