"""Words and numbers of a sweep, as tables and figures show them."""

from collections.abc import Iterable, Mapping
from typing import Any

from pipelines.search.trial import COSTS, Goal, Point, Trial

STATES = ("finished", "running", "stopped", "failed")
"""States of a trial, in the order in which they are shown."""

DECIMALS = 4
"""Significant digits of a setting in a table or figure. Files have all of them."""


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Dotted name -> its last words, as few as tell it from the others: "sparsity" for "method.sparsity"."""
    parts = {name: name.split(".") for name in names}
    found = {}
    for name, own in parts.items():
        others = [each for each in parts.values() if each != own]
        length = next((n for n in range(1, len(own)) if all(each[-n:] != own[-n:] for each in others)), len(own))
        found[name] = ".".join(own[-length:])
    return found


def value_text(value: Any) -> str:
    """A setting as tables show it; a float has 4 significant digits."""
    return f"{value:.{DECIMALS}g}" if isinstance(value, float) else str(value)


def settings_text(point: Point, names: Mapping[str, str] | None = None) -> str:
    """All settings of a point in one line: "sparsity 0.9, temperature 4". names: as of `short_names`."""
    names = names or short_names(point)
    return ", ".join(f"{names[name]} {value_text(value)}" for name, value in point.items())


def cost_text(cost: str, value: float) -> str:
    """A cost with its unit: 41.2 M, 3.21 ms."""
    if cost == "latency":
        return f"{value * 1000:.3g} ms"
    for factor, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= 0.9995 * factor:
            return f"{value / factor:.3g}{unit}"
    return f"{value:.3g}"


def values_text(trial: Trial, goal: Goal) -> str:
    """What a finished trial reached: "93.10%", with a cost "93.10% at 41.2 M effective MACs"."""
    assert trial.values is not None
    accuracy, *costs = trial.values
    if goal.cost is None:
        return f"{accuracy:.2%}"
    unit = "" if goal.cost == "latency" else f" {COSTS[goal.cost].name}"
    return f"{accuracy:.2%} at {cost_text(goal.cost, costs[0])}{unit}"


def most_accurate(trials: Iterable[Trial]) -> Trial | None:
    """The finished trial of the highest accuracy, of equal ones the first; None if none is finished."""
    done = [trial for trial in trials if trial.values is not None]
    return min(done, key=lambda trial: (-(trial.values or (0.0,))[0], trial.number), default=None)


def epochs_of(trial: Trial) -> int:
    """Epochs that the trial has trained in its last training stage."""
    return trial.history[-1][0] if trial.history else 0
