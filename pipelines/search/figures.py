"""Figures of a sweep, as SVG and PNG: its course, its settings, its Pareto front, what matters, learning curves."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.atomic import write_atomically
from compression.spaces import Space
from pipelines.search import plots
from pipelines.search.importance import importance
from pipelines.search.trial import Goal, Trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE = (8.0, 4.5)
"""Of a figure, in inches."""

DPI = 200
"""Pixels per inch of a PNG: it is 1600 pixels wide, and stays readable at 800."""

STYLE: dict[Any, Any] = {
    "svg.hashsalt": "orchard",  # the same trials give the same bytes
    "svg.fonttype": "none",  # text stays text: it can be searched, selected and edited
    "text.parse_math": False,  # a name may contain $
    "font.family": ["DejaVu Sans"],
    "font.size": 11,
    "figure.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    "legend.fontsize": 10,
    "figure.facecolor": "white",
}

WIDTH = 84
"""Characters of a title's line."""


def draw(
    trials: Sequence[Trial], goal: Goal, space: Mapping[str, Space], title: str, folder: Path
) -> tuple[list[Path], list[str]]:
    """Write every figure that the trials allow to `folder`: the files, and a note for each figure that is left out.

    space: dotted name -> what the sweep searched; a setting that it lacks has an axis that spans its values.
    Each file has either its old or its new content. The same trials give the same bytes. OSError as of writing.
    """
    files, notes = [], []

    def add(name: str, heading: str, plot: Callable[[Axes], None]) -> None:
        files.extend(_write(folder, name, f"{title}: {heading}", plot))

    done = [trial for trial in trials if trial.values is not None]
    curves = [trial for trial in trials if trial.history]
    matters = importance(trials, space)
    if trials:
        add("accuracy", "accuracy of each trial", lambda axes: plots.course(axes, trials))
    if done:
        add("settings", "settings and accuracy", lambda axes: plots.settings(axes, trials, space))
    else:
        notes.append("settings and accuracy are not drawn: no trial is finished")
    if done and goal.cost:
        add("front", "accuracy against cost", lambda axes: plots.pareto(axes, trials, goal))
    if isinstance(matters, str):
        notes.append(f"the importance of settings is not drawn: {matters}")
    else:
        add("importance", "what the accuracy depends on", lambda axes: plots.shares(axes, matters, len(done)))
    if curves:
        add("learning_curves", "accuracy after each epoch", lambda axes: plots.curves(axes, curves))
    return files, notes


def _write(folder: Path, name: str, title: str, plot: Callable[[Axes], None]) -> list[Path]:
    """One figure as SVG and PNG."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kinds: dict[str, dict[str, Any]] = {"svg": {"metadata": {"Date": None}}, "png": {"dpi": DPI}}
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # the person's own matplotlibrc would change the bytes
        matplotlib.rcParams.update(STYLE)
        figure = Figure(figsize=SIZE, layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle("\n".join(textwrap.wrap(title, WIDTH)), x=0.01, ha="left")
        plot(figure.add_subplot())
        for kind, options in kinds.items():
            data = io.BytesIO()
            figure.savefig(data, format=kind, **options)
            write_atomically(folder / f"{name}.{kind}", data.getvalue())
    return [folder / f"{name}.{kind}" for kind in kinds]
