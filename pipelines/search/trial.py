"""Trial: one point of a sweep's space, and what is known of its run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

State = Literal["running", "finished", "stopped", "failed"]
"""stopped: the scheduler ended it early, because others were better after as many epochs."""

Point = Mapping[str, Any]
"""Dotted name of a value of the experiment -> value."""


@dataclass(frozen=True)
class Trial:
    """One trial of a sweep. All its numbers are of the validation split, or costs.

    number: from 0, in the order in which trials were drawn. identity: of the trial's experiment.
    values: one for each objective of the sweep, None unless it is finished. A stopped trial has its last accuracy in
        `history` only.
    history: (epoch, accuracy) of each epoch of the last training stage, epochs counted from 1.
    dense_epochs: cost of the trial's training and of the teachers that it was the first to need, in epochs of dense
        training of its network.
    error: why it failed.
    """

    number: int
    point: Point
    identity: str
    state: State = "running"
    values: tuple[float, ...] | None = None
    history: Sequence[tuple[int, float]] = ()
    dense_epochs: float = 0.0
    error: str | None = None


@dataclass(frozen=True)
class Goal:
    """What a sweep looks for: the highest validation accuracy, and with `cost` also the lowest cost.

    cost: a key of COSTS; None: accuracy alone.
    """

    cost: str | None = None

    @property
    def names(self) -> list[str]:
        """Of the entries of `Trial.values`."""
        return ["accuracy", self.cost] if self.cost else ["accuracy"]


@dataclass(frozen=True)
class Cost:
    """What a sweep can minimise. metric: of a run. name: in tables. meaning: in the help."""

    metric: str
    name: str
    meaning: str


COSTS = {
    "effective_macs": Cost(
        "cost/effective_macs", "effective MACs", "multiply-accumulates of an image with weights that are not zero"
    ),
    "compacted_macs": Cost(
        "cost/compacted_macs",
        "compacted MACs",
        "multiply-accumulates of an image after channels without weights are removed",
    ),
    "latency": Cost(
        "cost/latency_seconds_batch_1",
        "latency",
        "seconds of a forward pass of one image, measured where the trial ran",
    ),
    "parameters": Cost("cost/nonzero_parameters", "parameters", "parameters that are not zero"),
}


def front(trials: Sequence[Trial]) -> list[Trial]:
    """The finished trials that no other one beats: the best one; with two objectives the Pareto front by its cost.

    Values: the first is to be high, the second low. Among equal ones the trial that was drawn first.
    """
    done = [trial for trial in trials if trial.values is not None]
    found: list[Trial] = []
    for trial in sorted(done, key=lambda trial: (*_losses(trial)[::-1], trial.number)):
        if not found or _losses(trial)[0] < _losses(found[-1])[0]:
            found.append(trial)
    return found if done and len(_losses(done[0])) > 1 else found[:1]


def _losses(trial: Trial) -> tuple[float, ...]:
    """The values, each to be low."""
    assert trial.values is not None
    accuracy, *costs = trial.values
    return (-accuracy, *costs)
