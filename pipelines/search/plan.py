"""Plan: what a sweep searches, how much, and what it needs to know of the runs behind its trials."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from compression.methods import name_of
from compression.spaces import Space
from pipelines.experiment import Experiment
from pipelines.search.trial import Goal


@dataclass(frozen=True)
class Found:
    """What a finished run says: a value for each objective, and what its training cost in dense epochs.

    teachers: identity -> what the training of a teacher of the run cost, in dense epochs of the run's own network.
    """

    values: tuple[float, ...]
    dense_epochs: float
    teachers: Mapping[str, float] = field(default_factory=dict)


class UnreadableError(Exception):
    """A finished run cannot be used as it is now: it is damaged, or was made of other data."""


class Runs(Protocol):
    """The runs behind the trials."""

    def found(self, experiment: Experiment) -> Found | None:
        """Of its finished run; None: there is none. ValueError: it lacks a cost. UnreadableError."""

    def history(self, experiment: Experiment) -> Sequence[float]:
        """The accuracy after each epoch of its last training, as far as it is stored."""
        ...

    def item(self, experiment: Experiment) -> Any:
        """What a worker needs to run it."""


@dataclass(frozen=True)
class Plan:
    """What is searched: everything that decides which trials are drawn and stopped, but their number."""

    experiment: Experiment
    space: dict[str, Space]
    search: str = "optuna"
    scheduler: str = "asha"
    goal: Goal = field(default_factory=Goal)

    @property
    def title(self) -> str:
        """One readable line, without the values that vary."""
        experiment = self.experiment
        method, objective = name_of(experiment.method).replace("_", " "), experiment.method.objective.label
        return f"{method} ({objective}), {experiment.model} on {experiment.data.label}, seed {experiment.seed}"

    @property
    def epochs(self) -> int:
        """Of the last training of a trial."""
        return self.experiment.method.trainings(self.experiment.training)[-1].epochs


@dataclass(frozen=True)
class Limits:
    """How much is searched. More of it continues the same sweep.

    dense_epochs: no trial is started that would exceed this cost, in epochs of dense training; None: any.
    """

    trials: int = 20
    dense_epochs: float | None = None
