"""The plots of a sweep's figures, each drawn into the axes that it gets."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from compression.spaces import Choices, Space
from pipelines.drawing import BLACK, BLUE, GREY, ORANGE, RED, percent, with_prefix
from pipelines.search.axes import Axis, covering
from pipelines.search.trial import Goal, Trial, front
from pipelines.search.words import most_accurate, short_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAP = "cividis"
"""From a low to a high accuracy: even in lightness, and the same to colour-blind people."""

MARKERS = {
    "finished": {"marker": "o", "color": BLUE},
    "running": {"marker": "d", "color": ORANGE},
    "stopped": {"marker": "o", "color": GREY, "markerfacecolor": "white"},
    "failed": {"marker": "x", "color": RED, "markeredgewidth": 2},
}
LABELS = {"finished": "finished", "running": "running", "stopped": "stopped", "failed": "failed"}

ACCURACY = "validation accuracy"

COST_LABELS = {
    "effective_macs": "multiply-accumulates with weights that are not zero, for an image",
    "compacted_macs": "multiply-accumulates after compaction, for an image",
    "latency": "latency of an image, in ms",
    "parameters": "parameters that are not zero",
}

TIGHT = {"columnspacing": 1.1, "handlelength": 1.4, "handletextpad": 0.5}
"""So that six entries of a legend fit into one row."""

FAR = 1.5
"""Interquartile ranges below the lower quartile at which an accuracy is left below the axis."""

APART = 14
"""Smallest distance, in points, between two labels of a front."""


def course(axes: Axes, trials: Sequence[Trial]) -> None:
    """The accuracy of each trial in the order in which they were drawn, and the best so far."""
    low, high = _limits(trials)
    best = np.maximum.accumulate([trial.values[0] if trial.values else -1.0 for trial in trials])
    below = []
    for state, style in MARKERS.items():
        known = [(trial.number, _last(trial)) for trial in trials if trial.state == state]
        if state == "failed":
            _dots(axes, [(number, low) for number, _ in known], LABELS[state], **style)
            continue
        _dots(axes, [(number, value) for number, value in known if value >= low], LABELS[state], **style)
        below += [(number, low) for number, value in known if value < low]
    _dots(axes, below, "lower", marker="v", color=GREY)
    if (best >= 0).any():
        numbers = [trial.number for trial in trials]
        places = [(number, value) for number, value in zip(numbers, best, strict=True) if value >= 0]
        axes.step(*zip(*places, strict=True), where="post", color=BLACK, linewidth=1.5, label="best so far")
    _accuracy_axis(axes, low, high)
    _whole_numbers(axes, max(trial.number for trial in trials))
    axes.set_xlabel("trial")
    _legend(axes)


def settings(axes: Axes, trials: Sequence[Trial], space: Mapping[str, Space]) -> None:
    """Parallel coordinates: a line for each finished trial through its settings to its accuracy, coloured by it."""
    import matplotlib

    done = sorted(
        (trial for trial in trials if trial.values is not None), key=lambda trial: (_last(trial), -trial.number)
    )
    stopped = [trial for trial in trials if trial.state == "stopped"]
    names = list(dict.fromkeys(name for trial in done for name in trial.point))
    scales = {
        name: Axis(covering(space.get(name), [trial.point[name] for trial in (*done, *stopped) if name in trial.point]))
        for name in names
    }
    low, high = _limits(done)
    colours = matplotlib.colormaps[MAP]
    for trial in stopped:
        axes.plot(*_way(trial, scales), color="#dddddd", linewidth=0.8, zorder=1)
    for trial in done:
        share = min(max((_last(trial) - low) / (high - low), 0.0), 1.0)
        xs, ys = _way(trial, scales)
        best = trial is done[-1]
        style = {"linewidth": 3.0, "zorder": 4} if best else {"linewidth": 1.2, "zorder": 2, "alpha": 0.85}
        axes.plot([*xs, len(names)], [*ys, share], color=RED if best else colours(share), **style)
    for number, scale in enumerate(scales.values()):
        _upright(axes, number, scale.ticks())
    _colour_bar(axes, len(names), low, high, colours)
    axes.set_xticks(
        range(len(names) + 1), [*(_broken(name) for name in short_names(names).values()), "validation\naccuracy"]
    )
    axes.tick_params(length=0)
    axes.set_yticks([])
    axes.set_xlim(-0.35, len(names) + 0.45)
    axes.set_ylim(-0.03, 1.03)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.plot([], [], color=RED, linewidth=3, label=f"the best: trial {done[-1].number}")
    if stopped:
        axes.plot([], [], color="#cccccc", label="stopped")
    _legend(axes)


def pareto(axes: Axes, trials: Sequence[Trial], goal: Goal) -> None:
    """Accuracy against cost: the trials that no other one beats are joined and have their numbers."""
    assert goal.cost is not None
    done = [trial for trial in trials if trial.values is not None]
    factor = 1000.0 if goal.cost == "latency" else 1.0
    low, high = _limits(done)

    def at(trial: Trial) -> tuple[float, float]:
        assert trial.values is not None
        return trial.values[1] * factor, max(trial.values[0], low)

    best = front(done)
    others = [at(trial) for trial in done if trial not in best]
    _dots(axes, [place for place in others if place[1] > low], "finished", marker="o", color=GREY, alpha=0.6)
    _dots(axes, [place for place in others if place[1] <= low], "lower", marker="v", color=GREY)
    line = [at(trial) for trial in best]
    axes.step(*zip(*line, strict=True), where="post", color=BLUE, linewidth=1.5)
    _dots(axes, line, "Pareto front, with numbers of trials", marker="o", color=BLUE)
    costs = [at(trial)[0] for trial in done]
    if min(costs) > 0 and max(costs) / min(costs) > 20:
        axes.set_xscale("log")
    _accuracy_axis(axes, low, high)
    axes.xaxis.set_major_formatter(with_prefix)
    axes.xaxis.set_minor_formatter(lambda value, place: "")
    axes.margins(x=0.08)
    axes.set_xlabel(COST_LABELS[goal.cost])
    _number(axes, best, line)
    _legend(axes)


def shares(axes: Axes, importance: Mapping[str, float], num_trials: int) -> None:
    """A bar for each setting: how much of the accuracy's variance it explains."""
    names = [_broken(name, 22) for name in short_names(importance).values()]
    values = list(importance.values())
    bars = axes.barh(names, values, color=BLUE, height=0.6)
    axes.bar_label(bars, [f"{value:.0%}" for value in values], padding=4)
    axes.invert_yaxis()
    axes.set_xlim(0, max(values) * 1.12)
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_formatter(lambda value, place: f"{value:.0%}")
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(f"share of the variance of the validation accuracy (fANOVA, {num_trials} trials)")


def curves(axes: Axes, trials: Sequence[Trial]) -> None:
    """Accuracy over epochs: the best trial stands out, and those that were stopped end in a circle."""
    best = most_accurate(trials)
    for state, style in MARKERS.items():
        label: str | None = LABELS[state]
        for trial in trials:
            if trial.state != state or trial is best:
                continue
            ends: dict[str, Any] = {"marker": style["marker"], "markevery": [-1], "markersize": 4, **style}
            shown: dict[str, Any] = {"color": BLUE} if state == "finished" and len(trial.history) > 1 else ends
            alpha = 0.6 if state == "finished" else 0.9
            axes.plot(*zip(*trial.history, strict=True), alpha=alpha, linewidth=1.0, label=label, **shown)
            label = None
    if best is not None and best.history:
        line: dict[str, Any] = {"color": RED, "linewidth": 2.5, "zorder": 4, "label": f"the best: trial {best.number}"}
        axes.plot(*zip(*best.history, strict=True), marker="o" if len(best.history) == 1 else None, **line)
    accuracies = [accuracy for trial in trials for _, accuracy in trial.history]
    margin = 0.05 * (max(accuracies) - min(accuracies)) or 0.01
    _accuracy_axis(axes, min(accuracies) - margin, max(accuracies) + margin)
    _whole_numbers(axes, max(trial.history[-1][0] for trial in trials), 1)
    axes.set_xlabel("epoch of the last training stage")
    _legend(axes)


def _last(trial: Trial) -> float:
    """Its accuracy, or the one after its last epoch; nan: it has none."""
    if trial.values is not None:
        return trial.values[0]
    return trial.history[-1][1] if trial.history else float("nan")


def _limits(trials: Sequence[Trial]) -> tuple[float, float]:
    """Of the axis of accuracies: from the finished trials, but those that are far below the others, to the highest."""
    known = np.array([value for value in map(_last, trials) if value == value])
    if not len(known):
        return 0.0, 1.0
    done = np.array([trial.values[0] for trial in trials if trial.values])
    done = done if len(done) > 1 else known
    quarter, three_quarters = np.quantile(done, [0.25, 0.75])
    low = max(done.min(), quarter - FAR * (three_quarters - quarter)) if three_quarters > quarter else done.min()
    margin = max(0.08 * (known.max() - low), 0.005)
    return float(low - margin), float(known.max() + margin)


def _dots(axes: Axes, places: Sequence[tuple[float, float]], label: str, **style: Any) -> None:
    """Points with one entry in the legend; no points have none."""
    if places:
        axes.plot(*zip(*places, strict=True), linestyle="", label=label, clip_on=False, zorder=3, **style)


def _accuracy_axis(axes: Axes, low: float, high: float) -> None:
    axes.set_ylim(low, high)
    axes.yaxis.set_major_formatter(percent)
    axes.set_ylabel(ACCURACY)


def _whole_numbers(axes: Axes, last: int, first: int = 0) -> None:
    """The horizontal axis counts."""
    from matplotlib.ticker import MaxNLocator

    margin = 0.03 * (last - first) or 0.5
    axes.set_xlim(first - margin, last + margin)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))


def _legend(axes: Axes) -> None:
    """Between the title and the plot, where it hides nothing; none where nothing is drawn yet."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=6, borderaxespad=0.2, **TIGHT)


def _way(trial: Trial, scales: Mapping[str, Axis]) -> tuple[list[float], list[float]]:
    """Where a trial's line crosses the axes of its settings. Lines through the same choice lie beside each other."""
    xs, ys = [], []
    for number, (name, scale) in enumerate(scales.items()):
        if name in trial.point:
            beside = (trial.number * 0.618 % 1 - 0.5) * 0.05 if isinstance(scale.space, Choices) else 0.0
            xs.append(number)
            ys.append(scale.place(trial.point[name]) + beside)
    return xs, ys


def _upright(axes: Axes, x: float, ticks: Sequence[tuple[float, str]]) -> None:
    """The axis of one setting."""
    axes.plot([x, x], [0, 1], color=BLACK, linewidth=1, zorder=5)
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.8}
    for y, text in ticks:
        axes.plot([x - 0.02, x], [y, y], color=BLACK, linewidth=1, zorder=5)
        axes.text(x - 0.05, y, text, ha="right", va="center", fontsize=9, bbox=box, zorder=6)


def _colour_bar(axes: Axes, x: float, low: float, high: float, colours: Any) -> None:
    """The axis of the accuracy, which also explains the colours."""
    from matplotlib.ticker import MaxNLocator

    axes.imshow(
        np.linspace(0, 1, 256)[:, None], cmap=colours, extent=(x, x + 0.08, 0, 1), aspect="auto", origin="lower"
    )
    for value in MaxNLocator(6).tick_values(low, high):
        if low <= value <= high:
            axes.text(x + 0.12, (value - low) / (high - low), percent(value), ha="left", va="center", fontsize=9)


def _number(axes: Axes, best: Sequence[Trial], places: Sequence[tuple[float, float]]) -> None:
    """Numbers of trials above the points of a front, as many as fit. Nothing lies there: it would be on the front."""
    before = None
    for trial, place in zip(best, places, strict=True):
        x, y = axes.transData.transform(place) * 72 / axes.figure.dpi
        if before is None or abs(x - before[0]) + abs(y - before[1]) >= APART:
            axes.annotate(str(trial.number), place, (-3, 4), textcoords="offset points", ha="right", fontsize=9)
            before = (x, y)


def _broken(name: str, width: int = 12) -> str:
    """A setting's name in lines that fit below its axis."""
    words = re.sub(r"([._])", r"\1 ", name)
    return textwrap.fill(words, width).replace(". ", ".").replace("_ ", "_")
