"""OutcomeTracker: what the driver knows of each item, from its workers' reports."""

from __future__ import annotations

from collections.abc import Iterable

from cluster.worker import START_AGAIN, Outcome


class OutcomeTracker:
    """What the driver knows of each item: its workers' reports, put together to one outcome per item."""

    def __init__(self, num_items: int, world_size: int) -> None:
        self._world_size = world_size
        self._reports: list[dict[int, Outcome]] = [{} for _ in range(num_items)]
        self._settled: dict[int, Outcome] = {}

    def report(self, number: int, rank: int, outcome: Outcome) -> bool:
        """Take down one worker's outcome; True when this settles the item: all its workers have reported."""
        reports = self._reports[number]
        reports[rank] = outcome
        if len(reports) < self._world_size:
            return False
        failed = [rank for rank in sorted(reports) if reports[rank].error is not None]
        self._settled[number] = self._named(failed[0], reports[failed[0]]) if failed else reports[0]
        return True

    def begin_again(self, world_size: int) -> None:
        """Forget what was reported of items that are not settled: other workers, so many an item, take them up."""
        self._world_size = world_size
        for number in self.unsettled():
            self._reports[number].clear()

    def give_up(self, numbers: Iterable[int], notice: Outcome, killed: bool) -> None:
        """Settle items whose workers are gone: with the failure that was reported first, or else with `notice`.

        killed: a worker was ended from outside; what the others report then are only its broken connections.
        """
        for number in numbers:
            reported = (self._named(rank, report) for rank, report in self._reports[number].items() if report.error)
            self._settled.setdefault(number, notice if killed else next(reported, notice))

    def unsettled(self) -> list[int]:
        return [number for number in range(len(self._reports)) if number not in self._settled]

    def outcomes(self) -> list[Outcome]:
        """The outcomes of all items, in order."""
        return [self._settled[number] for number in range(len(self._reports))]

    def _named(self, rank: int, outcome: Outcome) -> Outcome:
        if rank == 0 or outcome.stopped:
            return outcome
        return Outcome(error=f"{outcome.error} (worker {rank} of {self._world_size})", traceback=outcome.traceback)


def death_notice(rank: int, num_workers: int, how: str) -> Outcome:
    """The outcome of items that a worker's death left unfinished."""
    who = "the worker" if num_workers == 1 else f"worker {rank} of {num_workers}"
    return Outcome(error=f"{who} died ({how}); {START_AGAIN}")
