"""OutcomeTracker: what the driver knows of each item, from the reports of its workers."""

from collections.abc import Iterable
from dataclasses import replace

from cluster.stopping import RESUME
from cluster.worker import Outcome


class OutcomeTracker:
    """Collects one outcome per item from the workers that share it."""

    def __init__(self, num_items: int, world_size: int) -> None:
        self._world_size = world_size
        self._reports: list[dict[int, Outcome]] = [{} for _ in range(num_items)]
        self._final: dict[int, Outcome] = {}

    def report(self, number: int, rank: int, outcome: Outcome) -> bool:
        """Record one worker's outcome of item `number`. True if the item has ended: all its workers have reported."""
        reports = self._reports[number]
        reports[rank] = outcome
        if len(reports) < self._world_size:
            return False
        failed = [rank for rank in sorted(reports) if reports[rank].error is not None]
        self._final[number] = self._with_rank(failed[0], reports[failed[0]]) if failed else reports[0]
        return True

    def restart(self, world_size: int) -> None:
        """New workers, `world_size` per item, start the pending items again: forget what was reported of them."""
        self._world_size = world_size
        for number in self.pending():
            self._reports[number].clear()

    def fail(self, numbers: Iterable[int], notice: Outcome, killed: bool) -> None:
        """End items whose workers are gone, with the error that was reported first, or else with `notice`.

        killed: a worker was killed from outside. What the others report are then only their broken connections.
        """
        for number in numbers:
            reported = (self._with_rank(rank, report) for rank, report in self._reports[number].items() if report.error)
            self._final.setdefault(number, notice if killed else next(reported, notice))

    def pending(self) -> list[int]:
        return [number for number in range(len(self._reports)) if number not in self._final]

    def outcomes(self) -> list[Outcome]:
        """The outcomes of all items, in order."""
        return [self._final[number] for number in range(len(self._reports))]

    def _with_rank(self, rank: int, outcome: Outcome) -> Outcome:
        if rank == 0 or outcome.stopped:
            return outcome
        return replace(outcome, error=f"{outcome.error} (worker {rank} of {self._world_size})")


def death_notice(rank: int, num_workers: int, how: str) -> Outcome:
    """The outcome of items that did not finish because a worker died."""
    who = "the worker" if num_workers == 1 else f"worker {rank} of {num_workers}"
    return Outcome(error=f"{who} died ({how}); {RESUME}", external=True)
