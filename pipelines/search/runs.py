"""The runs behind a sweep's trials: how one is executed, and what is read of it, never anything of the test split."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cluster.worker import Worker
from pipelines import reuse
from pipelines.execute import Work, execute
from pipelines.experiment import Experiment, Placement
from pipelines.run_folder import RunFolder
from pipelines.search.plan import Found, UnreadableError
from pipelines.search.trial import COSTS, Goal
from pipelines.teachers import closure

LAST_STAGE = "train"
"""The name that every method gives its last training."""

ACCURACY = "val/accuracy"


def run_trial(work: Work, worker: Worker) -> None:
    """Execute a trial's experiment; the driver hears of each epoch of its last training, also of those before a resume.

    Collective, where several workers share the trial.
    """
    folder, num_epochs = RunFolder(work.storage, work.experiment.identity), 0

    def tell(accuracy: float, last: bool) -> None:
        nonlocal num_epochs
        num_epochs += 1
        worker.emit({"epoch": num_epochs, "value": accuracy, "last": last})

    def emit(event: dict[str, Any]) -> None:
        if event["kind"] == "epoch" and event["stage"] == LAST_STAGE:
            tell(event["metrics"][ACCURACY], event["epoch"] == event["num_epochs"])

    if worker.rank == 0:
        expected = work.experiment.method.trainings(work.experiment.training)[-1].epochs
        for epoch, accuracy in enumerate(stored_accuracies(folder), start=1):
            tell(accuracy, epoch == expected)
    execute(work, replace(worker, emit=emit))


def stored_accuracies(folder: RunFolder) -> list[float]:
    """The validation accuracy after each epoch of a run's last training, as far as its checkpoints have it."""
    return [record["value"] for record in folder.read_stage_history(LAST_STAGE) if record["key"] == ACCURACY]


@dataclass(frozen=True)
class StoredRuns:
    """The runs of a sweep in its storage.

    placement, tags: of the runs that it starts. since_ms: when the sweep began, in milliseconds since 1970.
    note: is told what a reader of the terminal should know.
    """

    storage: Path
    placement: Placement
    tags: Mapping[str, str]
    goal: Goal
    since_ms: int
    note: Callable[[str], None]

    def folder(self, experiment: Experiment) -> RunFolder:
        return RunFolder(self.storage, experiment.identity)

    def item(self, experiment: Experiment) -> Work:
        seen_by_workers = replace(self.placement, tracking_uri=None)  # it may hold a password
        return Work(experiment, seen_by_workers, self.storage, self.tags)

    def history(self, experiment: Experiment) -> Sequence[float]:
        return stored_accuracies(self.folder(experiment))

    def found(self, experiment: Experiment) -> Found | None:
        folder = self.folder(experiment)
        try:
            result = reuse.read_finished(experiment, folder, self.note)
        except ValueError as error:
            raise UnreadableError(str(error)) from error
        if result is None:
            return None
        metrics = result["metrics"]
        values = [metrics[ACCURACY]]
        if self.goal.cost is not None:
            values.append(cost_of(metrics, self.goal.cost))
        return Found(tuple(values), metrics["cost/own_dense_epochs"], self._teachers(folder, metrics))

    def _teachers(self, folder: RunFolder, metrics: Mapping[str, float]) -> dict[str, float]:
        """What the teachers cost that were trained since the sweep began, in dense epochs of the student."""
        dense_epoch = metrics["cost/own_training_flops"] / metrics["cost/own_dense_epochs"]
        costs: dict[str, float] = {}
        for teacher in closure(folder, lambda name: RunFolder(self.storage, name)):
            result: dict[str, Any] = teacher.read_result() or {}
            if result.get("finished_ms", 0) >= self.since_ms:
                costs[result["identity"]] = result["metrics"]["cost/own_training_flops"] / dense_epoch
        return costs


def cost_of(metrics: Mapping[str, float], cost: str) -> float:
    """The cost of a finished run. ValueError: the run could not measure it."""
    key = COSTS[cost].metric
    if key in metrics:
        return metrics[key]
    if cost == "compacted_macs" and metrics["cost/effective_macs"] == metrics["cost/macs"]:
        return metrics["cost/macs"]  # there is nothing to remove
    raise ValueError(f"the run has no {key}: its network cannot be compacted; choose another cost for --objective")
