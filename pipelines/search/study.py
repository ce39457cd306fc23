"""Study: what a sweep knows. It draws trials, hears what they reach, and decides which are stopped.

Everything that happens is an entry of the journal first. A study that is opened again applies the entries to a fresh
sampler and scheduler, in their order, and is then the study that it was.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cluster.halving import Halving
from cluster.trials import WAIT
from cluster.worker import Outcome
from compression.spaces import LogRange, Range, Space
from pipelines.experiment import Experiment
from pipelines.search import spaces
from pipelines.search.journal import Entry, Journal
from pipelines.search.plan import Found, Limits, Plan, Runs, UnreadableError
from pipelines.search.samplers import SAMPLERS, Sampler
from pipelines.search.trial import Point, State, Trial

DIGITS = 6
"""Significant digits of a drawn number: more tell trials apart that are the same, and nobody writes them by hand."""

MOST_REPEATS = 200
"""Draws in a row of points that were drawn before, after which nothing new is expected."""


@dataclass
class _Known:
    """What the entries say of one trial.

    draw: its number among all draws of the sampler. began: whether the sweep itself has trained it.
    dense_epochs: of its own training. teachers: of the teachers that it was the first to need.
    """

    draw: int
    point: Point
    identity: str
    state: State = "running"
    values: tuple[float, ...] | None = None
    history: list[tuple[int, float]] = field(default_factory=list)
    dense_epochs: float | None = None
    teachers: float = 0.0
    began: bool = False
    new: bool = True
    error: str | None = None


class Study:
    """The trials of one sweep; what `cluster.tuning.tune` calls.

    on_change: is called with the number of each trial that began, reached an epoch or ended.
    """

    def __init__(
        self, plan: Plan, limits: Limits, journal: Journal, runs: Runs, on_change: Callable[[int], None]
    ) -> None:
        self.plan, self.limits, self._journal = plan, limits, journal
        self._runs, self._on_change = runs, on_change
        self._sampler: Sampler = SAMPLERS[plan.search](plan.space, plan.goal, plan.experiment.seed)
        self._halving = Halving(plan.epochs) if plan.scheduler == "asha" else None
        self._known: list[_Known] = []
        self._numbers: dict[str, int] = {}
        self._num_draws, self._repeats = 0, 0
        self._teachers: set[str] = set()
        self.exhausted = ""
        """Why there are fewer trials than asked for."""
        self.losses: dict[int, str] = {}
        """Trials that a machine ended: number -> how. The same command resumes them."""
        for entry in journal.read():
            self._apply(entry)
        self._resuming = deque(number for number, known in enumerate(self._known) if known.state == "running")

    @property
    def complete(self) -> bool:
        """Whether all trials that were asked for have ended."""
        return not self._resuming and len(self._known) >= self.limits.trials

    def trials(self) -> list[Trial]:
        """All trials, in the order in which they were drawn."""
        price = self._price()
        return [
            Trial(
                number,
                known.point,
                known.identity,
                known.state,
                known.values,
                tuple(known.history),
                len(known.history) * price if known.dense_epochs is None else known.dense_epochs + known.teachers,
                known.error,
            )
            for number, known in enumerate(self._known)
        ]

    def experiment(self, number: int) -> Experiment:
        return spaces.at(self.plan.experiment, self._known[number].point)

    def next(self) -> Any:
        """Number and item of the next trial to run: first those that a killed sweep left, then new ones.

        None: there is none now. It may be asked again while trials run: what they cost is then known better.
        """
        self.exhausted = ""
        while self._resuming:
            number = self._resuming.popleft()
            if item := self._start(number):
                return number, item
        while len(self._known) < self.limits.trials and self._repeats < MOST_REPEATS:
            if (wait := self._budget()) is not True:
                return wait
            point = self._draw()
            if point is None:
                break
            identity = self._identity(point)
            if (key := _key(identity, point)) in self._numbers:
                self._repeat(self._numbers[key], point)
                continue
            number = len(self._known)
            self._record({"kind": "draw", "point": dict(point), "identity": identity})
            if item := self._start(number):
                return number, item
        if len(self._known) < self.limits.trials:
            self.exhausted = "the space has no more points that were not tried"
        return None

    def report(self, number: int, event: dict[str, Any]) -> bool:
        """A trial reached {"epoch": counted from 1, "value": its accuracy, "last": whether it is the last epoch}."""
        known = self._known[number]
        if known.state == "running" and event["epoch"] > len(known.history):
            self._record({"kind": "epoch", "number": number, **event})
            self._on_change(number)
        return known.state != "running"

    def end(self, number: int, outcome: Outcome) -> None:
        """A trial ended by itself: it failed, was stopped with the whole command, or left a finished run."""
        if outcome.stopped or self._known[number].state != "running":
            return
        if outcome.error is not None:
            self._end(number, "failed", error=outcome.error)
            return
        try:
            found = self._runs.found(self.experiment(number))
        except UnreadableError as error:
            self.lost(number, str(error))
            return
        except ValueError as error:
            self._end(number, "failed", error=str(error))
            return
        assert found is not None, f"trial {number} ended without an error and without a result"
        self._finish(number, found, new=True)

    def lost(self, number: int, reason: str) -> None:
        """A trial cannot go on now, see `Search`. One that was not stopped before stays unfinished."""
        if self._known[number].state == "running":
            self.losses[number] = reason

    def _identity(self, point: Point) -> str:
        """Of the experiment at a point; "": there is none, its values are refused."""
        try:
            return spaces.at(self.plan.experiment, point).identity
        except ValueError:
            return ""

    def _start(self, number: int) -> Any:
        """The item of a trial that is to run; None: its run is finished already, impossible or unreadable."""
        try:
            experiment = self.experiment(number)
            found = self._runs.found(experiment)
            history = self._runs.history(experiment) if found else []
        except UnreadableError as error:
            self.lost(number, str(error))
            return None
        except ValueError as error:
            self._end(number, "failed", error=str(error))
            return None
        if found is None:
            self._on_change(number)
            return self._runs.item(experiment)
        for epoch in range(len(self._known[number].history), len(history)):
            at = {"number": number, "epoch": epoch + 1, "value": history[epoch], "last": epoch + 1 == len(history)}
            # It is finished: nothing is saved by stopping it, but others are compared with it.
            self._record({"kind": "epoch", **at, "keep": True})
        # A sweep that was killed at its trial's end finds the run too: its cost is the sweep's.
        self._finish(number, found, new=self._known[number].began)
        return None

    def _finish(self, number: int, found: Found, new: bool) -> None:
        """new: the run was not there before, so that its cost counts for the budget, with teachers not yet counted."""
        teachers = {name: cost for name, cost in found.teachers.items() if new and name not in self._teachers}
        cost = {"dense_epochs": found.dense_epochs, "teachers": teachers, "new": new}
        self._end(number, "finished", values=list(found.values), **cost)

    def _end(self, number: int, state: State, **more: Any) -> None:
        self._record({"kind": "end", "number": number, "state": state, **more})
        self._on_change(number)

    def _repeat(self, number: int, point: Point) -> None:
        """The sampler drew a trial again: it is told the result, as far as known, and nothing runs."""
        known = self._known[number]
        state = "failed" if known.state == "running" else known.state
        self._record({"kind": "repeat", "point": dict(point), "number": number, "state": state})

    def _record(self, entry: Entry) -> None:
        entry = {**entry, "time_ms": time.time_ns() // 1_000_000}
        self._journal.append(entry)
        self._apply(entry, drawn=True)

    def _draw(self) -> Point | None:
        point = self._sampler.ask()
        return None if point is None else {name: tidy(value, self.plan.space[name]) for name, value in point.items()}

    def _apply(self, entry: Entry, drawn: bool = False) -> None:
        """Let an entry have its effect. drawn: the sampler has just made the draw that the entry tells of."""
        kind = entry["kind"]
        if kind in ("draw", "repeat"):
            if not drawn and (again := self._draw()) != entry["point"]:
                raise ValueError(
                    f"{self._journal.path}: the search would now draw {again}, but had drawn {entry['point']}: it was "
                    "made with another version of its sampler. Install that version (sweep.json names it), or delete "
                    f"{self._journal.path.parent} to search anew; finished trials cost nothing again"
                )
            self._num_draws += 1
            self._repeats = self._repeats + 1 if kind == "repeat" else 0
        if kind == "draw":
            self._numbers[_key(entry["identity"], entry["point"])] = len(self._known)
            self._known.append(_Known(self._num_draws - 1, entry["point"], entry["identity"]))
        elif kind == "repeat":
            known = self._known[entry["number"]]
            if entry["state"] == "stopped":
                for epoch, value in known.history:
                    self._sampler.report(self._num_draws - 1, epoch, value)
            self._sampler.tell(self._num_draws - 1, entry["state"], known.values)
        elif kind == "epoch":
            self._apply_epoch(entry)
        else:
            known = self._known[entry["number"]]
            known.state, known.error, known.new = entry["state"], entry.get("error"), entry.get("new", True)
            known.values = tuple(entry["values"]) if "values" in entry else None
            known.dense_epochs, teachers = entry.get("dense_epochs"), entry.get("teachers", {})
            known.teachers = sum(teachers.values())
            self._teachers |= teachers.keys()
            self._sampler.tell(known.draw, known.state, known.values)

    def _apply_epoch(self, entry: Entry) -> None:
        number, epoch, value = entry["number"], entry["epoch"], entry["value"]
        known = self._known[number]
        known.history.append((epoch, value))
        known.began = known.began or not entry.get("keep", False)
        self._sampler.report(known.draw, epoch, value)
        # After its last epoch a trial is whole: there is nothing to stop.
        if self._halving is None or entry["last"]:
            return
        if self._halving.stop(number, epoch, value) and not entry.get("keep"):
            known.state = "stopped"
            self._sampler.tell(known.draw, "stopped", None)

    def _price(self) -> float:
        """Dense epochs that an epoch of a trial costs, by the finished trials; 1 before there is any."""
        done = [known for known in self._known if known.dense_epochs is not None and known.history]
        epochs = sum(len(known.history) for known in done)
        return sum(known.dense_epochs or 0.0 for known in done) / epochs if epochs else 1.0

    def _budget(self) -> Any:
        """True: another trial can be paid; WAIT: perhaps when one that runs has ended; None: no more."""
        if self.limits.dense_epochs is None:
            return True
        whole = self.plan.epochs * self._price()
        ended = [each for each in zip(self._known, self.trials(), strict=True) if each[0].state != "running"]
        spent = sum(trial.dense_epochs for known, trial in ended if known.new)
        running = len(self._known) - len(ended)
        if spent + (running + 1) * whole <= self.limits.dense_epochs:
            return True
        if running > len(self.losses) and spent + (len(self.losses) + 1) * whole <= self.limits.dense_epochs:
            return WAIT
        self.exhausted = f"the budget of {self.limits.dense_epochs:g} dense epochs is spent ({spent:.4g})"
        return None


def _key(identity: str, point: Point) -> str:
    """The same for draws of the same trial."""
    return identity or repr(sorted(point.items()))


def tidy(value: Any, space: Space) -> Any:
    """A drawn value with at most DIGITS digits, inside its space."""
    if isinstance(space, (Range, LogRange)):
        return min(max(float(f"{value:.{DIGITS}g}"), float(space.low)), float(space.high))
    return value
