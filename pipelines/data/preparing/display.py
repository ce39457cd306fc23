"""The progress of preparing a data set: a bar in a terminal, otherwise plain lines."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from pipelines.progress import say

BETWEEN_LINES, BETWEEN_UPDATES = 10.0, 0.1
"""Seconds, without a terminal and in one."""


class Display:
    """Shows messages and progress; a context manager around the work."""

    def __init__(self, console: Console) -> None:
        self._console = console
        speed = TextColumn("{task.fields[speed]}")
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), speed, TimeRemainingColumn())
        self._bars = Progress(*columns, console=console, disable=not console.is_interactive)
        self._task = TaskID(0)
        self._what = ""
        self._start = self._last = 0.0
        self._done = 0

    def __enter__(self) -> Display:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def say(self, text: str) -> None:
        say(self._console, text)

    def step(self, what: str, done: int, total: int) -> None:
        """`done` of `total` items of `what` are done."""
        now = time.monotonic()
        if what != self._what:
            self._what, self._start, self._last, self._done = what, now, now, 0
            self._task = self._bars.add_task(what, total=total, speed="")
        interval = BETWEEN_UPDATES if self._console.is_interactive else BETWEEN_LINES
        if done == self._done or (done < total and now - self._last < interval):
            return
        self._last, self._done = now, done
        speed = f"{done / max(now - self._start, 1e-3):,.0f}/s"
        self._bars.update(self._task, completed=done, speed=speed)  # shows nothing without a terminal
        if not self._console.is_interactive:
            self.say(f"{what}: {done:,} of {total:,} ({speed})")
