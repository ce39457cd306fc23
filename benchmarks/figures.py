"""Figures of a table: its headline against sparsity and against costs, one line a method. From runs.parquet only."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.differences import label_of
from benchmarks.rows import Row, plain
from benchmarks.suites import Column, Table
from pipelines.drawing import BLACK, BLUE, GREY, ORANGE, RED, SIZE, percent, render, with_prefix

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = (BLUE, ORANGE, RED, "#009e73", "#cc79a7", "#56b4e9", BLACK)
MARKERS = "osD^vP*X"

SPREAD = "mean and standard deviation over seeds"

LATENCY = "latency_seconds_batch_1"

COSTS = {
    "effective_macs": ("effective MACs", Column("effective_macs", "", "MACs with weights that are not zero, an image")),
    "latency": ("measured latency", Column(LATENCY, "", "latency of an image, in ms", scale=1000)),
    "training_cost": (
        "training cost",
        Column("dense_epochs", "", "training with teachers, in epochs of the dense network"),
    ),
}
"""Name of a figure -> its name for readers, and its horizontal axis."""


@dataclass(frozen=True)
class Point:
    """One row in a figure. x, y: means; wide, high: standard deviations, 0 for one run."""

    sparsity: float
    x: float
    y: float
    wide: float
    high: float


def draw(name: str, table: Table, rows: Sequence[Row]) -> dict[str, str]:
    """File name -> SVG, of each figure for which two rows or more have numbers. The same rows give the same bytes.

    Each network on each data set has figures of its own: between them, neither accuracies nor costs compare.
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.runs[0]["dataset"] or "-", row.runs[0]["model"] or "-"), []).append(row)
    found = {}
    for (dataset, model), own in sorted(groups.items()):
        several = len(groups) > 1
        words = re.sub(r"[^A-Za-z0-9]+", "_", f"{dataset} {model}")
        title = f"{table.title}, {model} on {dataset}" if several else table.title
        found |= _figures(f"{name}-{words}" if several else name, title, table, own)
    return found


def _figures(name: str, title: str, table: Table, rows: Sequence[Row]) -> dict[str, str]:
    found = {}
    series = _series(table, rows, Column("sparsity", "", ""))
    if len({point.x for points in series.values() for point in points}) > 1:
        found[f"{name}-sparsity.svg"] = _render(
            f"{title}: sparsity ({SPREAD})", series, lambda axes: _over_sparsity(axes, table, series)
        )
    for kind, (words, column) in COSTS.items():
        kept, where = _of_one_machine(rows) if column.field == LATENCY else (rows, "")
        series_of = _series(table, kept, column)
        if sum(map(len, series_of.values())) > 1:
            heading = column.heading + where
            found[f"{name}-{kind}.svg"] = _render(
                f"{title}: {words} ({SPREAD})",
                series_of,
                lambda axes, shown=series_of, heading=heading: _over_cost(axes, table, shown, heading),
            )
    return found


def _series(table: Table, rows: Sequence[Row], column: Column) -> dict[str, list[Point]]:
    """Label -> its points by rising sparsity; rows that lack one of the numbers, or diverged, have none."""
    _, *fields = (field for field in table.rows if field != "sparsity")
    varying = [field for field in fields if len({row.runs[0][field] for row in rows}) > 1]
    found: dict[str, list[Point]] = {}
    for row in rows:
        (x, wide), (y, high) = row.mean_and_std(column), row.mean_and_std(table.headline)
        if x is None or y is None or not (math.isfinite(x) and math.isfinite(y)):
            continue
        others = [f"{table.rows[field]} {plain(row.runs[0][field]) or '-'}" for field in varying]
        label = ", ".join([label_of(table, row), *others])
        found.setdefault(label, []).append(Point(row.runs[0]["sparsity"] or 0.0, x, y, wide or 0.0, high or 0.0))
    return {label: sorted(points, key=lambda point: (point.sparsity, point.x)) for label, points in found.items()}


def _of_one_machine(rows: Sequence[Row]) -> tuple[list[Row], str]:
    """The rows whose runs were all measured on the hardware with the most runs, and its name: others do not compare."""

    def machine(run: dict[str, Any]) -> tuple[str, int]:
        return run.get("hardware") or "unknown hardware", run.get("threads") or 0

    counted = Counter(machine(run) for row in rows for run in row.runs)
    hardware, threads = best = min(counted, key=lambda each: (-counted[each], each))
    kept = [row for row in rows if {machine(run) for run in row.runs} == {best}]
    return kept, f"\n({hardware}, {threads} thread{'s' * (threads != 1)})"


def _render(title: str, series: dict[str, list[Point]], plot: Callable[[Axes], None]) -> str:
    """As high as its legend needs."""
    return render(title, plot, size=(SIZE[0] + 2.0, max(SIZE[1], 0.19 * len(series) + 1.0)))["svg"].decode()


def _over_sparsity(axes: Axes, table: Table, series: dict[str, list[Point]]) -> None:
    """Sparsities stand side by side, evenly; the points of one sparsity beside each other: none hides another."""
    levels = sorted({point.x for points in series.values() for point in points})
    counts = Counter(point.x for points in series.values() for point in points)
    before: Counter[float] = Counter()
    for number, (label, points) in enumerate(series.items()):
        xs = []
        for point in points:
            beside = before[point.x] - (counts[point.x] - 1) / 2
            xs.append(levels.index(point.x) + beside * min(0.1, 0.8 / counts[point.x]))
            before[point.x] += 1
        _line(axes, number, label, xs, points)
    for boundary in range(1, len(levels)):
        axes.axvline(boundary - 0.5, color="#e6e6e6", linewidth=0.8)
    axes.set_xticks(range(len(levels)), [percent(level) for level in levels])
    axes.set_xlim(-0.5, len(levels) - 0.5)
    axes.grid(visible=False, axis="x")
    axes.set_xlabel("sparsity asked of masks (channels that are removed do not count)")
    _finish(axes, table)


def _over_cost(axes: Axes, table: Table, series: dict[str, list[Point]], heading: str) -> None:
    from matplotlib.ticker import LogLocator

    for number, (label, points) in enumerate(series.items()):
        _line(axes, number, label, [point.x for point in points], points, wide=True)
    costs = [point.x for points in series.values() for point in points]
    if min(costs) > 0 and max(costs) / min(costs) > 10:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(with_prefix)
    axes.xaxis.set_minor_formatter(lambda value, place: "")
    axes.set_xlabel(heading)
    _finish(axes, table)


def _line(
    axes: Axes, number: int, label: str, xs: Sequence[float], points: Sequence[Point], wide: bool = False
) -> None:
    """A method: its points joined, with bars of one standard deviation where there is one."""
    colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number // len(COLOURS) % len(MARKERS)]
    ys = [point.y for point in points]
    axes.plot(xs, ys, color=colour, marker=marker, markersize=5, linewidth=1.2, label=label)
    for place, point in zip(xs, points, strict=True):
        style = {"color": colour, "linestyle": "none", "elinewidth": 0.8, "capsize": 2, "alpha": 0.7}
        bars = {"yerr": point.high or None, "xerr": (wide and point.wide) or None}
        axes.errorbar([place], [point.y], **bars, **style)


def _finish(axes: Axes, table: Table) -> None:
    axes.set_ylabel(table.headline.heading)
    axes.yaxis.label.set_color(BLACK)
    axes.tick_params(color=GREY)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0, fontsize=8)
