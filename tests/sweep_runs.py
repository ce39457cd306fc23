"""Runs of a sweep that train nothing: an accuracy is a formula of the settings. And what Tune does, in one process."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cluster.records import as_record
from cluster.trials import WAIT
from cluster.worker import Outcome
from compression.methods import EPSD
from compression.spaces import Choices, LogRange, Range
from pipelines.data.config import Digits
from pipelines.experiment import Experiment, Training
from pipelines.search.journal import Entry, Journal
from pipelines.search.plan import Found, Limits, Plan, UnreadableError
from pipelines.search.study import Study
from pipelines.search.trial import Goal, Trial

EXPERIMENT = Experiment(EPSD(), "vgg3", Digits(), Training(epochs=3), seed=5)

SMALL = {
    "method.sparsity": Choices((0.5, 0.7, 0.9, 0.98)),
    "method.chunk_size": Choices((None, 32)),
    "method.first_order": Choices((False, True)),
}
"""16 points; the four with a chunk_size but without first_order are refused."""

WIDE = {"method.sparsity": Range(0.5, 0.99), "method.inner_lr": LogRange(0.01, 1.0)}

TOO_SPARSE = 0.97
"""Trials beyond it fail."""


def accuracy(experiment: Experiment, epoch: int) -> float:
    method: Any = experiment.method
    height = 1 - (method.sparsity - 0.75) ** 2 - 0.02 * (math.log10(method.inner_lr) + 1) ** 2
    return round(height * (1 - 0.5**epoch) - 0.01 * method.first_order, 6)


class FormulaRuns:
    """Runs in a storage that outlives the sweeps.

    dense_epochs: what a whole run costs. teacher: (identity, cost) of a teacher of all runs. fails: experiment -> why.
    """

    def __init__(
        self,
        goal: Goal | None = None,
        dense_epochs: float = 3.0,
        teacher: tuple[str, float] | None = None,
        fails: Callable[[Experiment], bool] = lambda experiment: False,
    ) -> None:
        self.goal, self.dense_epochs, self.fails = goal or Goal(), dense_epochs, fails
        self.teachers = dict([teacher] if teacher else [])
        self.trained: dict[str, list[float]] = {}
        self.finished: dict[str, Found] = {}
        self.damaged: set[str] = set()
        self.asked: list[str] = []
        self.ends: Counter[str] = Counter()

    def found(self, experiment: Experiment) -> Found | None:
        if experiment.identity in self.damaged:
            raise UnreadableError("result.json is damaged")
        return self.finished.get(experiment.identity)

    def history(self, experiment: Experiment) -> list[float]:
        return self.trained.get(experiment.identity, [])

    def item(self, experiment: Experiment) -> Experiment:
        assert experiment.identity not in self.finished, "a finished run is asked for again"
        self.asked.append(experiment.identity)
        return experiment

    def train(self, experiment: Experiment) -> Iterator[dict[str, Any]]:
        """Its events, also of epochs before a resume. As in a real run, what an event tells is saved before."""
        history, num_epochs = self.trained.setdefault(experiment.identity, []), experiment.training.epochs
        for epoch in range(1, num_epochs + 1):
            if epoch == 2 and self.fails(experiment):
                raise RuntimeError("the loss is nan")
            if epoch > len(history):
                history.append(accuracy(experiment, epoch))
            yield {"epoch": epoch, "value": history[epoch - 1], "last": epoch == num_epochs}
        values = (history[-1], 1e6 * (1 - getattr(experiment.method, "sparsity")))  # noqa: B009  (of any method)
        self.finished[experiment.identity] = Found(values[: len(self.goal.names)], self.dense_epochs, self.teachers)
        self.ends[experiment.identity] += 1

    def finish(self, experiment: Experiment) -> None:
        """A colleague runs it."""
        for _ in self.train(experiment):
            pass


class Killed(Exception):
    """The driver is dead."""


class DyingJournal(Journal):
    """The driver dies with `left` entries written: "after" the last one, "before" the next one, or in it ("torn")."""

    def __init__(self, path: Path, left: int, moment: str) -> None:
        super().__init__(path)
        self.left, self.moment = left, moment

    def append(self, entry: Entry) -> None:
        if self.left == 0:
            if self.moment == "torn":
                line = as_record(entry)
                with self.path.open("ab") as file:
                    file.write(line[: len(line) // 2])
            raise Killed
        super().append(entry)
        self.left -= 1
        if self.left == 0 and self.moment == "after":
            raise Killed


def ignore(number: int) -> None:
    return None


def plan(space: Any = None, search: str = "random", scheduler: str = "none", cost: str | None = None) -> Plan:
    return Plan(EXPERIMENT, space or WIDE, search, scheduler, Goal(cost))


def open_study(path: Path | Journal, runs: Any, of: Plan | None = None, trials: int = 6, **limits: Any) -> Study:
    journal = Journal(path / "journal.jsonl") if isinstance(path, Path) else path
    return Study(of or plan(), Limits(trials, **limits), journal, runs, ignore)


def play(study: Study, runs: FormulaRuns, parallel: int = 1) -> list[Trial]:
    """Run trials until there are no more, each one epoch further in turn."""
    running: dict[int, Iterator[dict[str, Any]]] = {}
    while True:
        found = None
        while len(running) < parallel and (found := study.next()) not in (None, WAIT):
            number, experiment = found
            running[number] = runs.train(experiment)
        if not running:
            assert found is not WAIT, "it waits, but nothing runs"
            return study.trials()
        for number, events in list(running.items()):
            if step(study, number, events):
                del running[number]


def step(study: Study, number: int, events: Iterator[dict[str, Any]]) -> bool:
    """One epoch of a trial; whether the trial has ended."""
    try:
        event = next(events, None)
    except RuntimeError as error:
        study.end(number, Outcome(error=str(error)))
        return True
    if event is None:
        study.end(number, Outcome())
        return True
    return study.report(number, event)


def entries(folder: Path) -> list[Entry]:
    """What a journal says, but for the times."""
    found = list(Journal(folder / "journal.jsonl").read())
    return [{key: value for key, value in entry.items() if key != "time_ms"} for entry in found]
