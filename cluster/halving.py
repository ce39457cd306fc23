"""Halving: which trials of a search are stopped early."""

from dataclasses import dataclass
from typing import Any

FACTOR = 3
"""Of ASHA: one of so many trials goes on, to so many times as many epochs; it compares after 1, 3, 9... epochs."""


class Halving:
    """ASHA (Li et al., MLSys 2020, arXiv 1810.05934) as Ray Tune has it, for values that are to be high.

    After 1, 3, 9... epochs a trial is stopped if its value is not among the best third recorded there.
    Decisions depend only on the order of the calls, so a journal can repeat them.
    """

    def __init__(self, epochs: int) -> None:
        self._asha = None
        if epochs > 1:
            from ray.tune.schedulers import AsyncHyperBandScheduler

            limits = {"max_t": epochs - 1, "grace_period": 1, "stop_last_trials": False}
            self._asha = AsyncHyperBandScheduler("epoch", "value", "max", reduction_factor=FACTOR, **limits)
        self._known: set[int] = set()

    def stop(self, number: int, epoch: int, value: float) -> bool:
        """Record a trial's value after `epoch` epochs; True: the trial is to be stopped."""
        if self._asha is None:
            return False
        trial: Any = _Named(str(number))
        if number not in self._known:
            self._known.add(number)
            self._asha.on_trial_add(None, trial)  # pyright: ignore[reportArgumentType]  (it uses the trial's id alone)
        return self._asha.on_trial_result(None, trial, {"epoch": epoch, "value": value}) == "STOP"  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class _Named:
    trial_id: str
