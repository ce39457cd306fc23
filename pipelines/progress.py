"""Progress: what the driver's terminal shows while experiments run; one live display, or plain lines."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

WAITING, FINISHED, FAILED = "waiting", "finished", "failed"
STYLES = {WAITING: "dim", FINISHED: "green", FAILED: "red"}
"""Of the states in which nothing is done for an experiment; every other stage is work."""

COLUMNS = {"experiment": 0, "stage": 0, "epoch": 55, "": 75, "loss": 90, "accuracy": 45, "ETA": 65}
"""Title -> the narrowest terminal, in characters, that shows the column: the name must stay readable beside it."""

BAR = 14
"""Its length in characters."""

WIDE = 120
"""Characters from which on a name fits into one line."""


@dataclass
class Row:
    """What is known of one experiment."""

    name: str
    stage: str = WAITING
    done: float = 0.0
    """share of the training"""
    epochs: str = ""
    loss: str = ""
    accuracy: str = ""
    first: tuple[float, float] = (0.0, 0.0)
    """time and share done when this training was first heard of here: a resumed one does not begin at 0"""
    end: float | None = None
    """when the training will be over, on the same clock"""

    @property
    def working(self) -> bool:
        return self.stage not in STYLES

    def train(self, stage: str, done: float) -> None:
        """The training `stage` has come so far."""
        now = time.monotonic()
        if stage != self.stage:
            self.first, self.end = (now, done), None
        since, before = self.first
        if done > before:
            self.end = now + (now - since) / (done - before) * (1 - done)
        self.stage, self.done = stage, done

    def eta(self) -> str:
        """Time to go, from how fast this session has gone; empty while that is not known."""
        if self.end is None or not self.working or self.done >= 1:
            return ""
        return _duration(max(self.end - time.monotonic(), 0.0))

    def cells(self) -> dict[str, Text | ProgressBar]:
        """What stands under each title."""
        length = None if self.working and self.done == 0 else 1.0  # without a length the bar pulses
        return {
            "experiment": Text(self.name),
            "stage": Text(self.stage, STYLES.get(self.stage, "cyan")),
            "epoch": Text(self.epochs),
            "": ProgressBar(total=length, completed=self.done, width=BAR, animation_time=time.monotonic()),
            "loss": Text(self.loss),
            "accuracy": Text(self.accuracy),
            "ETA": Text(self.eta()),
        }


class Progress:
    """Takes the events of workers; a context manager around the launch."""

    def __init__(self, names: Sequence[str], console: Console | None = None) -> None:
        self.console = console or Console()
        self.rows = [Row(name) for name in names]
        self.lively = self.console.is_interactive
        self.over = not self.lively
        self.live = Live(console=self.console, get_renderable=self.table, refresh_per_second=4)
        self.machinery = _Lines(self)

    def __enter__(self) -> Progress:
        self.machinery.open()
        if self.lively:
            self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None):
        self.over = True
        if self.lively:
            self.live.stop()
        self.machinery.close()

    def __call__(self, number: int, event: dict[str, Any]) -> None:
        """One event of experiment `number`."""
        row = self.rows[number]
        kind = event["kind"]
        if kind == "stage":
            row.stage = event["stage"]
            self._line(f"{row.name}: {row.stage}")
        elif kind == "waiting":
            row.stage = WAITING
            self._line(f"{row.name}: {event['text']}", beside_table=True)
        elif kind == "note":
            self._line(f"{row.name}: {event['text']}", beside_table=True)
        elif kind in ("progress", "epoch"):
            self._training(row, event)
        elif kind == "finished":
            row.stage, row.done = FINISHED, 1.0
            row.accuracy = f"{event['accuracy']:.2%} test"
            self._line(f"{row.name}: finished, test accuracy {event['accuracy']:.2%}")
        elif kind == "failed":
            row.stage = FAILED
            # Where there is but one, the report that follows says it.
            self._line(f"{row.name}: failed: {event['error']}", beside_table=len(self.rows) > 1)

    def _training(self, row: Row, event: dict[str, Any]) -> None:
        step, steps = event["step"], event["steps_per_epoch"]
        row.train(event["stage"], (event["epoch"] - 1 + step / steps) / event["num_epochs"])
        row.epochs = f"{event['epoch']}/{event['num_epochs']}"
        row.loss = f"{event['loss']:.4f}"
        if "val/accuracy" in event["metrics"]:
            row.accuracy = f"{event['metrics']['val/accuracy']:.2%} val"
        within = "" if event["kind"] == "epoch" else f", step {step}/{steps}"
        accuracy = f", accuracy {row.accuracy}" if row.accuracy else ""
        eta = f", {row.eta()} to go" if row.eta() else ""
        self._line(f"{row.name}: {row.stage} epoch {row.epochs}{within}, loss {row.loss}{accuracy}{eta}")

    def say(self, text: str) -> None:
        """A line above the table, of no experiment."""
        self._line(text, beside_table=True)

    def _line(self, text: str, *, beside_table: bool = False) -> None:
        if beside_table or not self.lively:
            self.console.print(text, soft_wrap=True, highlight=False, markup=False)

    def table(self) -> Table:
        """The display as it stands."""
        titles = [title for title, width in COLUMNS.items() if self.console.width >= width]
        table = Table(box=None, pad_edge=False, caption_justify="left")
        for title in titles:
            justify = "right" if title in ("epoch", "loss", "ETA") else "left"
            table.add_column(title, no_wrap=title != "experiment", overflow="fold", justify=justify)
        shown = self._shown()
        for row in shown:
            cells = row.cells()
            table.add_row(*(cells[title] for title in titles))
        hidden = Counter(row.stage for row in self.rows if row not in shown)
        if hidden:
            table.caption = "and " + ", ".join(f"{count} {stage}" for stage, count in sorted(hidden.items()))
        return table

    def _shown(self) -> list[Row]:
        """The rows for which the terminal has lines while the display lives, those that work first; else all."""
        room = max((self.console.height - 3) // (1 if self.console.width >= WIDE else 2), 1)
        if self.over or len(self.rows) <= room:
            return self.rows
        order = sorted(range(len(self.rows)), key=lambda number: not self.rows[number].working)
        return [self.rows[number] for number in sorted(order[:room])]


class _Lines(logging.Handler):
    """Shows what the package `cluster` logs: where its workers are, what became of them."""

    def __init__(self, progress: Progress) -> None:
        super().__init__(logging.INFO)
        self._progress = progress
        self._logger = logging.getLogger("cluster")
        self._level_before = logging.NOTSET

    def open(self) -> None:
        self._level_before = self._logger.level
        self._logger.setLevel(logging.INFO)
        self._logger.addHandler(self)

    def close(self) -> None:
        self._logger.removeHandler(self)
        self._logger.setLevel(self._level_before)
        super().close()

    def emit(self, record: logging.LogRecord) -> None:
        self._progress.say(record.getMessage())


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
