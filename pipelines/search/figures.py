"""Figures of a sweep, as SVG and PNG: its course, its settings, its Pareto front, what matters, learning curves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.atomic import write_atomically
from compression.spaces import Space
from pipelines.drawing import render
from pipelines.search import plots
from pipelines.search.importance import importance
from pipelines.search.trial import Goal, Trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
    files = []
    for kind, data in render(title, plot, ("svg", "png")).items():
        files.append(folder / f"{name}.{kind}")
        write_atomically(files[-1], data)
    return files
