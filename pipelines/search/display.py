"""SweepProgress: what the terminal shows while a sweep runs."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipelines.progress import BAR_WIDTH, Display, duration
from pipelines.search.trial import Goal, Trial, front
from pipelines.search.words import STATES, epochs_of, most_accurate, settings_text, values_text

STYLES = {"finished": "green", "running": "cyan", "stopped": "yellow", "failed": "red"}

SECONDS_BETWEEN_LINES = 60.0
"""Between two lines about the running trials, where there is no table."""

SHOWN = 4
"""Running trials that the table names."""


class SweepProgress(Display):
    """Shows the trials of a sweep, and what the package `cluster` logs; a context manager around the sweep.

    total: number of trials that the sweep is to have.
    """

    def __init__(self, console: Console, total: int, goal: Goal) -> None:
        super().__init__(console)
        self.total, self.goal = total, goal
        self.trials: dict[int, Trial] = {}
        self._began = time.monotonic()
        self._before: int | None = None  # trials that had ended before: a sweep that goes on has not spent their time
        self._end: float | None = None  # expected, on the same clock
        self._said = -math.inf
        self._errors: set[str] = set()

    def update(self, trials: Sequence[Trial]) -> None:
        """Show all trials of the sweep as they are now."""
        known, self.trials = self.trials, {trial.number: trial for trial in trials}
        if self._before is None:
            self._before = self._num_ended()
            if self._before:
                self._line(f"{self._before} of {self.total} trials had ended before")
            known = {number: trial for number, trial in self.trials.items() if trial.state != "running"}
        new = [trial for trial in trials if trial.number not in known or known[trial.number].state != trial.state]
        if any(trial.state != "running" for trial in new):
            self._expect_end()
        for trial in new:
            self._tell(trial)
        moved = any(epochs_of(trial) > epochs_of(known.get(trial.number, trial)) for trial in trials)
        if new:
            self._said = time.monotonic()
        elif moved and time.monotonic() - self._said >= SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            self._line(f"{self._states().plain}; {self._running()}{self._to_go()}")

    def table(self) -> Table:
        """The table as it stands."""
        table = Table(box=None, pad_edge=False, show_header=False)
        table.add_column(no_wrap=True, style="dim")
        table.add_column(overflow="fold")
        bar = Table.grid(padding=(0, 2))
        bar.add_row(ProgressBar(self.total, self._num_ended(), width=BAR_WIDTH), self._states())
        table.add_row("trials", bar)
        best = most_accurate(self.trials.values())
        if best is not None:
            found = len(front(list(self.trials.values())))
            also = f"; {found} on the Pareto front" if self.goal.cost else ""
            table.add_row("best", Text(f"trial {best.number}, {values_text(best, self.goal)} (validation){also}"))
            table.add_row("", Text(settings_text(best.point)))
        if running := self._running():
            table.add_row("running", Text(running))
        table.add_row("time", Text(f"{duration(time.monotonic() - self._began)} spent{self._to_go()}"))
        return table

    def _tell(self, trial: Trial) -> None:
        """A line about a trial that has begun or ended. An error is shown at once, also above a table."""
        if trial.state == "running":
            self._line(f"trial {trial.number} begins: {settings_text(trial.point)}")
            return
        text = f"trial {trial.number} {trial.state}"
        if trial.state == "failed":
            error = (trial.error or "without an error").strip().partition("\n")[0]
            if self.interactive and error not in self._errors:
                self._say(f"{text}: {error}")
            self._errors.add(error)
            text += f": {error}"
        elif trial.values is not None:
            best = ", the best so far" if most_accurate(self.trials.values()) is trial else ""
            text += f": {values_text(trial, self.goal)} (validation){best}"
        elif trial.history:
            epoch, accuracy = trial.history[-1]
            text += f" after epoch {epoch}: {accuracy:.2%} (validation)"
        self._line(f"{text}; {self._num_ended()} of {self.total} have ended{self._to_go()}")

    def _num_ended(self) -> int:
        return sum(trial.state != "running" for trial in self.trials.values())

    def _expect_end(self) -> None:
        """The trials that are left take as long as those that this process has seen."""
        ended, now = self._num_ended(), time.monotonic()
        seen = ended - (self._before or 0)
        if seen > 0:
            self._end = now + (now - self._began) / seen * max(self.total - ended, 0)

    def _to_go(self) -> str:
        if self._end is None or self.ended or self._num_ended() >= self.total:
            return ""
        return f", {duration(max(self._end - time.monotonic(), 0.0))} to go"

    def _states(self) -> Text:
        counts = Counter(trial.state for trial in self.trials.values())
        parts = [Text(f"{counts[state]} {state}", STYLES[state]) for state in STATES if counts[state]]
        return Text(f"{self._num_ended()} of {self.total}") + Text(": " if parts else "") + Text(", ").join(parts)

    def _running(self) -> str:
        """The running trials with their last epochs, in one line."""
        running = [trial for trial in self.trials.values() if trial.state == "running"]
        texts = [f"trial {trial.number}" for trial in running]
        for number, trial in enumerate(running):
            if trial.history:
                epoch, accuracy = trial.history[-1]
                texts[number] += f" (epoch {epoch}, {accuracy:.2%})"
        more = len(texts) - SHOWN
        return ", ".join(texts[:SHOWN]) + (f" and {more} more" if more > 0 else "")
