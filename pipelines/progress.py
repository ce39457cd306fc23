"""Progress: what the driver's terminal shows while experiments run: one live table, or plain lines."""

from __future__ import annotations

import functools
import logging
import math
import os
import select
import sys
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any, ParamSpec, Self

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

P = ParamSpec("P")

WAITING, FINISHED, FAILED = "waiting", "finished", "failed"
STYLES = {WAITING: "dim", FINISHED: "green", FAILED: "red"}
"""Of the states without work; every other stage is work."""

COLUMNS = {"experiment": 0, "stage": 0, "epoch": 55, "": 75, "loss": 90, "accuracy": 45, "ETA": 65}
"""Title -> smallest terminal width, in characters, that shows the column: the name must stay readable beside it."""

BAR_WIDTH = 14

SECONDS_BETWEEN_LINES = 10.0
"""Between two lines inside an epoch, where there is no table."""

WIDE = 120
"""Terminal width, in characters, from which on a name fits into one line."""


def say(console: Console, text: str, style: str | None = None) -> None:
    """Print `text` as it is: without markup, highlighting or line breaks of our own."""
    console.print(text, style=style, soft_wrap=True, highlight=False, markup=False)


def complain(text: str, style: str = "red") -> None:
    """A coloured line on standard error."""
    say(Console(stderr=True), text, style)


def refusing(*errors: type[Exception]) -> Callable[[Callable[P, int]], Callable[P, int]]:
    """Decorates the main function of a command: for `errors`, which the user can correct, it says why and returns 2.

    It returns 1, without a word, when the reader of its output has gone.
    """

    def decorated(main: Callable[P, int]) -> Callable[P, int]:
        @functools.wraps(main)
        def run(*args: P.args, **options: P.kwargs) -> int:
            try:
                try:
                    return main(*args, **options)
                finally:
                    sys.stdout.flush()
            except (*errors, BrokenPipeError) as error:
                if isinstance(error, BrokenPipeError) and _reader_is_gone():  # `--help | head`
                    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                    return 1
                if not isinstance(error, errors):
                    raise
                complain(f"error: {error}")
                return 2

        return run

    return decorated


def _reader_is_gone() -> bool:
    """Whether standard output is a pipe that nobody reads any more."""
    try:
        output = select.poll()
        output.register(sys.stdout.fileno(), 0)
        return any(event & select.POLLERR for _, event in output.poll(0))
    except (OSError, ValueError):  # it has no file
        return False


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
    """time and share done at the first event of this training; a resumed training does not start at 0"""
    said: float = -math.inf
    """time of the last line about this training, where there is no table"""
    end: float | None = None
    """expected end of the training, on the same clock"""

    @property
    def working(self) -> bool:
        return self.stage not in STYLES

    def train(self, stage: str, done: float) -> None:
        """The training `stage` has done this share of its work."""
        now = time.monotonic()
        if stage != self.stage:
            self.first, self.end = (now, done), None
        since, before = self.first
        if done > before:
            self.end = now + (now - since) / (done - before) * (1 - done)
        self.stage, self.done = stage, done

    def eta(self) -> str:
        """Time left at the speed since `first`; empty if not known."""
        if self.end is None or not self.working or self.done >= 1:
            return ""
        return duration(max(self.end - time.monotonic(), 0.0))

    def cells(self) -> dict[str, Text | ProgressBar]:
        """Column title -> content."""
        total = None if self.working and self.done == 0 else 1.0  # without a total the bar pulses
        return {
            "experiment": Text(self.name),
            "stage": Text(self.stage, STYLES.get(self.stage, "cyan")),
            "epoch": Text(self.epochs),
            "": ProgressBar(total=total, completed=self.done, width=BAR_WIDTH, animation_time=time.monotonic()),
            "loss": Text(self.loss),
            "accuracy": Text(self.accuracy),
            "ETA": Text(self.eta()),
        }


class Display(logging.Handler, ABC):
    """A live table on a terminal, lines with the time elsewhere, and above it what the package `cluster` logs.

    A context manager around the work. Each kind of display defines its `table`.
    """

    def __init__(self, console: Console | None = None) -> None:
        super().__init__(logging.INFO)
        self.console = console or Console()
        self.interactive = self.console.is_interactive
        self.ended = False
        self.live: Live | None = None
        self._log = logging.getLogger("cluster")
        self._level_before = self._log.level

    def __enter__(self) -> Self:
        self._level_before = self._log.level
        self._log.setLevel(logging.INFO)
        self._log.addHandler(self)
        if self.interactive:
            self.live = Live(console=self.console, get_renderable=self.table, refresh_per_second=4)
            self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None):
        self.ended = True
        if self.live is not None:
            self.live.stop()
        self._log.removeHandler(self)
        self._log.setLevel(self._level_before)

    @abstractmethod
    def table(self) -> Table:
        """The table as it stands."""

    def emit(self, record: logging.LogRecord) -> None:
        """A log message of the package `cluster`, above the table."""
        self._say(record.getMessage())

    def _line(self, text: str) -> None:
        """A line in place of the table, where there is none."""
        if not self.interactive:
            self._say(text)

    def _say(self, text: str) -> None:
        """A line above the table; where there is none, with the time."""
        say(self.console, text if self.interactive else f"{datetime.now():%Y-%m-%d %H:%M:%S}  {text}")


class Progress(Display):
    """Shows the events of workers; a context manager around the launch."""

    def __init__(self, names: Sequence[str], console: Console | None = None) -> None:
        super().__init__(console)
        self.rows = [Row(name) for name in names]

    def __call__(self, number: int, event: dict[str, Any]) -> None:
        """One event of experiment `number`."""
        row, kind = self.rows[number], event["kind"]
        if kind == "stage":
            row.stage = event["stage"]
            self._line(f"{row.name}: {row.stage}")
        elif kind in ("waiting", "note"):
            if kind == "waiting":
                row.stage = WAITING
            self._say(f"{row.name}: {event['text']}")
        elif kind in ("progress", "epoch"):
            self._training(row, event)
        elif kind == "finished":
            row.stage, row.done = FINISHED, 1.0
            row.accuracy = f"{event['accuracy']:.2%} test"
            self._line(f"{row.name}: finished, test accuracy {event['accuracy']:.2%}")
        elif kind == "failed":
            row.stage = FAILED  # the report names the error, once

    def _training(self, row: Row, event: dict[str, Any]) -> None:
        step, steps = event["step"], event["steps_per_epoch"]
        row.train(event["stage"], (event["epoch"] - 1 + step / steps) / event["num_epochs"])
        row.epochs = f"{event['epoch']}/{event['num_epochs']}"
        if event["loss"] is not None:  # the workers have not added up their losses
            row.loss = f"{event['loss']:.4f}"
        if "val/accuracy" in event["metrics"]:
            row.accuracy = f"{event['metrics']['val/accuracy']:.2%} val"
        inside, now = event["kind"] == "progress", time.monotonic()
        if inside and now - row.said < SECONDS_BETWEEN_LINES:
            return
        row.said, within = now, f", step {step}/{steps}" if inside else ""
        loss = f", loss {row.loss}" if row.loss else ""
        accuracy = f", accuracy {row.accuracy}" if row.accuracy else ""
        eta = f", {row.eta()} to go" if row.eta() else ""
        self._line(f"{row.name}: {row.stage} epoch {row.epochs}{within}{loss}{accuracy}{eta}")

    def table(self) -> Table:
        """The table as it stands."""
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
        """As many rows as the terminal has lines, those with work first; all rows at the end."""
        room = max((self.console.height - 3) // (1 if self.console.width >= WIDE else 2), 1)
        if self.ended or not self.interactive or len(self.rows) <= room:
            return self.rows
        order = sorted(range(len(self.rows)), key=lambda number: not self.rows[number].working)
        return [self.rows[number] for number in sorted(order[:room])]


def duration(seconds: float) -> str:
    """A time in seconds as people read it: 1:05, or from an hour on 2:00:07."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
