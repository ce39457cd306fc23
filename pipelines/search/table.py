"""The trials of a sweep as a table: all of them in a CSV file, the best on the terminal, methods beside each other."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from cluster.atomic import write_atomically
from pipelines.search.trial import COSTS, Goal, Trial, front
from pipelines.search.words import (
    cost_text,
    epochs_of,
    most_accurate,
    settings_text,
    short_names,
    value_text,
)

MANY_SETTINGS = 5
"""From so many settings on, a table on the terminal has them all in one column."""


def rows(trials: Sequence[Trial], goal: Goal) -> list[dict[str, Any]]:
    """A row for each trial, all with the same keys.

    number, identity, state; accuracy (and the goal's cost): None unless it is finished; last_accuracy: after its last
    epoch, also of a stopped trial; epochs: trained in the last training stage; dense_epochs; each setting by its dotted
    name, "" if the trial has none of that name; error.
    """
    settings = settings_of(trials)
    return [
        {
            "number": trial.number,
            "identity": trial.identity,
            "state": trial.state,
            **dict(zip(goal.names, trial.values or [None] * len(goal.names), strict=True)),
            "last_accuracy": trial.history[-1][1] if trial.history else None,
            "epochs": epochs_of(trial),
            "dense_epochs": trial.dense_epochs,
            **{name: trial.point.get(name, "") for name in settings},
            "error": trial.error,
        }
        for trial in trials
    ]


def write_csv(path: Path, trials: Sequence[Trial], goal: Goal) -> None:
    """Write `rows`, floats with all their digits. An accuracy, cost or error that is not known is an empty cell.

    The file has either its old or its new content. OSError if it cannot be written.
    """
    settings, known = settings_of(trials), rows(trials, goal)
    titles = ["number", "identity", "state", *goal.names, "last_accuracy", "epochs", "dense_epochs", *settings, "error"]
    text = io.StringIO()
    writer = csv.DictWriter(text, titles, lineterminator="\n")
    writer.writeheader()
    for row in known:
        writer.writerow({**row, **{name: str(row[name]) for name in settings}})
    write_atomically(path, text.getvalue().encode())


def settings_of(trials: Sequence[Trial]) -> list[str]:
    """The dotted names of all settings that any trial has, in the order of the trials."""
    return list(dict.fromkeys(name for trial in trials for name in trial.point))


def best_table(trials: Sequence[Trial], goal: Goal, limit: int = 10) -> Table:
    """The `limit` most accurate finished trials, the best first; with a cost: the Pareto front, the cheapest first."""
    done = [trial for trial in trials if trial.values is not None]
    shown = front(trials) if goal.cost else sorted(done, key=lambda trial: (-_accuracy(trial), trial.number))
    names = short_names(settings_of(shown))
    caption = _caption(len(shown), len(done), goal, limit)
    table = Table(box=None, pad_edge=False, caption=caption, caption_justify="left")
    for title in ("trial", "validation accuracy", *([COSTS[goal.cost].name] if goal.cost else [])):
        table.add_column(title, justify="right")
    wide = len(names) < MANY_SETTINGS
    for title in names.values() if wide else ["settings"]:
        table.add_column(Text(title), justify="right" if wide else "left", overflow="fold")
    table.add_column("epochs", justify="right")
    for trial in shown[:limit]:
        costs = [cost_text(goal.cost, value) for value in (trial.values or ())[1:]] if goal.cost else []
        point = trial.point
        settings = [value_text(point[name]) if name in point else "" for name in names]
        cells = [str(trial.number), f"{_accuracy(trial):.2%}", *costs]
        cells += settings if wide else [settings_text(point, names)]
        table.add_row(*map(Text, (*cells, str(epochs_of(trial)))))
    return table


def comparison(results: Mapping[str, Sequence[Trial]], goal: Goal) -> tuple[Table, str]:
    """Sweeps of several methods beside each other, for the terminal and as Markdown: a row for each method.

    results: name of the method -> its trials. The accuracy, cost and settings are those of its most accurate trial.
    """
    titles = ["method", "trials", "finished", "stopped", "failed", "epochs", "dense epochs", "validation accuracy"]
    titles += [COSTS[goal.cost].name] if goal.cost else []
    lines = [_compared(method, trials, goal) for method, trials in results.items()]
    best = [f"{line[0]}: {line[-1]}" for line in lines]  # too long for a column
    table = Table(box=None, pad_edge=False, caption=Text("\n".join(["best settings", *best])), caption_justify="left")
    for title in titles:
        table.add_column(title, justify="left" if title == "method" else "right", overflow="fold")
    for line in lines:
        table.add_row(*map(Text, line[:-1]))
    rule = [":--", *["--:"] * (len(titles) - 1), ":--"]
    cells = ([*titles, "best settings"], rule, *lines)
    return table, "".join(f"| {' | '.join(map(_escaped, line))} |\n" for line in cells)


def _compared(method: str, trials: Sequence[Trial], goal: Goal) -> list[str]:
    """The cells of one method."""
    states = [sum(trial.state == state for trial in trials) for state in ("finished", "stopped", "failed")]
    epochs, dense = sum(map(epochs_of, trials)), sum(trial.dense_epochs for trial in trials)
    best = most_accurate(trials)
    cells = [method, *map(str, (len(trials), *states, epochs)), f"{dense:.4g}"]
    if best is None or best.values is None:
        return [*cells, *["-"] * (len(goal.names) + 1)]
    costs = [cost_text(goal.cost, value) for value in best.values[1:]] if goal.cost else []
    return [*cells, f"{best.values[0]:.2%}", *costs, settings_text(best.point)]


def _caption(shown: int, done: int, goal: Goal, limit: int) -> str:
    if not done:
        return "no trial is finished"
    if not goal.cost:
        return f"the best {limit} of {done} finished trials" if shown > limit else ""
    hidden = f", the {limit} cheapest of {shown}" if shown > limit else ""
    return f"Pareto front of {done} finished trials{hidden}: none is both more accurate and cheaper"


def _accuracy(trial: Trial) -> float:
    assert trial.values is not None
    return trial.values[0]


def _escaped(cell: str) -> str:
    """A cell of Markdown: a bar would end it, a line break would end the table."""
    return " ".join(cell.replace("|", "\\|").split())
