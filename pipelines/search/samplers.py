"""Samplers: where the next trial of a sweep lies. A sampler's answers depend only on its seed and the calls before."""

import logging
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from compression.spaces import Choices, IntRange, LogRange, Range, Space
from pipelines.search import spaces
from pipelines.search.trial import Goal, Point

PER_RANGE = 5
"""Points that a grid takes of a continuous range."""


class Sampler(Protocol):
    """Draws points; `index` counts its draws from 0."""

    def ask(self) -> Point | None:
        """The next point; None: there are no more."""

    def report(self, index: int, epoch: int, value: float) -> None:
        """The accuracy of a draw after `epoch` epochs."""

    def tell(self, index: int, state: str, values: Sequence[float] | None) -> None:
        """A draw has ended: "finished" with its values, "stopped" or "failed"."""


class _Fixed:
    """A sampler that learns nothing."""

    def report(self, index: int, epoch: int, value: float) -> None:
        """What a trial reaches changes nothing."""

    def tell(self, index: int, state: str, values: Sequence[float] | None) -> None:
        """What a trial reaches changes nothing."""


class Random(_Fixed):
    """Independent draws: the baseline of all search (Bergstra & Bengio, JMLR 2012)."""

    def __init__(self, space: Mapping[str, Space], goal: Goal, seed: int) -> None:
        self._space, self._draw = space, random.Random(f"{seed} random search")

    def ask(self) -> Point | None:
        return {name: space.sample(self._draw) for name, space in self._space.items()}


class Grid(_Fixed):
    """Every point once, in order; of a continuous range PER_RANGE values."""

    def __init__(self, space: Mapping[str, Space], goal: Goal, seed: int) -> None:
        self._points: Iterator[Point] = iter(spaces.grid(space, PER_RANGE))

    def ask(self) -> Point | None:
        return next(self._points, None)


class Optuna:
    """Optuna's tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011), with one or two objectives.

    Ray's OptunaSearch cannot repeat a history: its sampler would draw other points after a restart. Here the same calls
    give the same points. Trials that the scheduler stopped count with what they reached.
    """

    def __init__(self, space: Mapping[str, Space], goal: Goal, seed: int) -> None:
        import optuna

        optuna.logging.set_verbosity(logging.WARNING)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(seed=seed % 2**32, constant_liar=True)
        high, low = optuna.study.StudyDirection.MAXIMIZE, optuna.study.StudyDirection.MINIMIZE
        directions = [high, low][: len(goal.names)]
        self._study = optuna.create_study(sampler=sampler, directions=directions)
        self._space = {name: distribution(each) for name, each in space.items()}
        self._trials: list[Any] = []

    def ask(self) -> Point | None:
        trial = self._study.ask(self._space)
        self._trials.append(trial)
        return dict(trial.params)

    def report(self, index: int, epoch: int, value: float) -> None:
        if len(self._study.directions) == 1:
            self._trials[index].report(value, epoch)

    def tell(self, index: int, state: str, values: Sequence[float] | None) -> None:
        from optuna.trial import TrialState

        states = {"finished": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "failed": TrialState.FAIL}
        self._study.tell(self._trials[index], values, state=states[state])


SAMPLERS: dict[str, type[Random | Grid | Optuna]] = {"random": Random, "grid": Grid, "optuna": Optuna}


def distribution(space: Space) -> Any:
    """Optuna's form of a space."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    match space:
        case Choices():
            return CategoricalDistribution(list(space.values))
        case IntRange():
            return IntDistribution(space.low, space.high)
        case Range() | LogRange():
            return FloatDistribution(space.low, space.high, log=isinstance(space, LogRange))
