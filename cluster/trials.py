"""Trials: what a search tries, as its caller decides it, and which of it runs. Nothing here knows Ray."""

import logging
from collections import Counter, deque
from dataclasses import dataclass
from typing import Any, Protocol

from cluster.worker import Outcome

log = logging.getLogger(__name__)

WAIT: Any = object()
"""What `Search.next` returns while nothing can be started, but something may later."""


class Search(Protocol):
    """What is tried. All its methods are called in the driver's thread, one at a time."""

    def next(self) -> tuple[int, Any] | None:
        """Number and item of the next trial; None: there are no more; WAIT: not now."""

    def report(self, number: int, event: dict[str, Any]) -> bool:
        """A running trial has emitted an event; True: stop it, without an outcome."""
        ...

    def end(self, number: int, outcome: Outcome) -> None:
        """A trial has ended by itself."""

    def lost(self, number: int, reason: str) -> None:
        """A trial cannot go on now: its process died more often than allowed, or a machine cannot store its work."""


@dataclass(frozen=True)
class Report:
    """What a trial tells the driver: an event, or its outcome. Not a dict, which Tune would flatten."""

    event: dict[str, Any] | None = None
    outcome: Outcome | None = None


class Trials:
    """The trials that Tune runs, and those that it is to run again.

    A trial whose process died is given out again. Tune itself does that only for trials that had begun to train.
    """

    def __init__(self, search: Search, max_failures: int) -> None:
        self.search, self._max_failures = search, max_failures
        self._running: dict[str, tuple[int, Any]] = {}
        self._again: deque[tuple[int, Any]] = deque()
        self._failures: Counter[int] = Counter()

    def next(self, trial_id: str) -> tuple[int, Any] | None:
        """Number and item for Tune's trial; None: there are no more; WAIT."""
        found = self._again.popleft() if self._again else self.search.next()
        if found is None and self._running:
            return WAIT  # one of them may have to run again
        if found is not None and found is not WAIT:
            self._running[trial_id] = found
        return found

    def end(self, trial_id: str, report: Report | None, died: bool) -> None:
        number, item = self._running.pop(trial_id)
        outcome = None if report is None else report.outcome
        if died:
            self._died(number, item)
        elif outcome is None:
            return  # the search has stopped it, or SIGTERM all of them
        elif outcome.external:  # what a machine lacks says nothing of the trial
            log.warning("trial %d cannot go on: %s", number, outcome.error)
            self.search.lost(number, outcome.error or "")
        else:
            self.search.end(number, outcome)

    def start_again(self, reason: str) -> None:
        """All running trials have ended with Tune."""
        log.warning("Ray Tune ended (%s) and is started again", reason)
        running, self._running = list(self._running.values()), {}
        for number, item in running:
            self._died(number, item)

    def _died(self, number: int, item: Any) -> None:
        self._failures[number] += 1
        if self._max_failures != -1 and self._failures[number] > self._max_failures:
            self.search.lost(number, f"its process died {self._failures[number]} times")
            return
        log.warning("the process of trial %d died: the trial is started again", number)
        self._again.append((number, item))
