"""Progress: what the driver's terminal shows while experiments run; one live display, or plain lines."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table


@dataclass
class Row:
    """What is known of one experiment."""

    name: str
    stage: str = "waiting"
    done: float = 0.0
    epochs: str = ""
    loss: str = ""
    accuracy: str = ""
    started: float | None = None
    started_at: float = 0.0
    text: str = field(default="")

    def eta(self) -> str:
        """Seconds to go, from how fast this session has gone."""
        if self.started is None or not self.started_at < self.done < 1:
            return ""
        elapsed = time.monotonic() - self.started
        return _duration(elapsed / (self.done - self.started_at) * (1 - self.done))


class Progress:
    """Takes the events of workers; a context manager around the launch."""

    def __init__(self, names: Sequence[str], console: Console | None = None) -> None:
        self.console = console or Console()
        self.rows = [Row(name) for name in names]
        self.live = Live(console=self.console, refresh_per_second=4, transient=False)
        self.lively = self.console.is_terminal

    def __enter__(self) -> Progress:
        if self.lively:
            self.live.start()
            self.live.update(self.table())
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None):
        if self.lively:
            self.live.update(self.table())
            self.live.stop()

    def __call__(self, number: int, event: dict[str, Any]) -> None:
        """One event of experiment `number`."""
        row = self.rows[number]
        kind = event["kind"]
        if kind == "stage":
            row.stage = event["stage"]
            self._line(f"{row.name}: {row.stage}")
        elif kind == "waiting":
            row.stage = "waiting"
            self._line(f"{row.name}: {event['text']}")
        elif kind in ("progress", "epoch"):
            self._training(row, event)
        elif kind == "finished":
            row.stage, row.done = "finished", 1.0
            row.accuracy = f"{event['accuracy']:.2%} test"
            self._line(f"{row.name}: finished, test accuracy {event['accuracy']:.2%}")
        elif kind == "failed":
            row.stage = "failed"
            self._line(f"{row.name}: failed: {event['error']}")
        if self.lively:
            self.live.update(self.table())

    def _training(self, row: Row, event: dict[str, Any]) -> None:
        steps = event["steps_per_epoch"]
        row.stage = event["stage"]
        row.done = (event["epoch"] - 1 + event["step"] / steps) / event["num_epochs"]
        if row.started is None:
            row.started, row.started_at = time.monotonic(), row.done
        row.epochs = f"{event['epoch']}/{event['num_epochs']}"
        metrics = event.get("metrics", {})
        row.loss = f"{event['loss']:.4f}"
        if "val/accuracy" in metrics:
            row.accuracy = f"{metrics['val/accuracy']:.2%} val"
        within = "" if event["kind"] == "epoch" else f", step {event['step']}/{steps}"
        accuracy = f", accuracy {row.accuracy}" if row.accuracy else ""
        eta = f", {row.eta()} to go" if row.eta() else ""
        self._line(f"{row.name}: {row.stage} epoch {row.epochs}{within}, loss {row.loss}{accuracy}{eta}")

    def _line(self, text: str) -> None:
        if not self.lively:
            self.console.print(text, soft_wrap=True, highlight=False, markup=False)

    def table(self) -> Table:
        """The display as it stands."""
        table = Table(box=None, pad_edge=False)
        for title in ("experiment", "stage", "epoch", "", "loss", "accuracy", "ETA"):
            table.add_column(title, overflow="fold")
        for row in self.rows:
            bar = ProgressBar(total=1.0, completed=row.done, width=20)
            table.add_row(row.name, row.stage, row.epochs, bar, row.loss, row.accuracy, row.eta())
        return table


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
