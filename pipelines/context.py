"""RunContext: what one worker knows of the run that it works on. EpochRange: the training stage that it is in."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import distributed as dist

from cluster.strategy import Strategy, strategy
from cluster.worker import Worker
from cluster.zero_config import ZeroSettings
from compression.batch import Info
from pipelines.data.loader import Loader
from pipelines.experiment import Experiment, Placement, Training
from pipelines.run_folder import Record, RunFolder

T = TypeVar("T")


@dataclass(frozen=True)
class EpochRange:
    """A training stage: which epochs of a schedule are trained, and how.

    stage: its name, under which checkpoints and costs are stored.
    epochs: epochs of the schedule, counted from 0; `settings.epochs` is the length of the whole schedule.
    epochs_before: epochs that the run trained in earlier stages; metrics are recorded under the run's epoch.
    """

    stage: str
    settings: Training
    epochs: range
    steps_per_epoch: int
    epochs_before: int

    def run_epoch(self, epoch: int) -> int:
        """The run's epoch, counted from 1, when `epoch` of the schedule has ended."""
        return self.epochs_before + epoch + 1 - self.epochs.start


@dataclass(eq=False)
class RunContext:
    """One experiment on one worker: its device, data and folder, and the metrics recorded so far."""

    experiment: Experiment
    placement: Placement
    worker: Worker
    loader: Loader
    folder: RunFolder

    def __post_init__(self) -> None:
        self.strategy = self.placement.strategy or ("ddp" if self.worker.world_size > 1 else "single")
        self.seed = self.experiment.seed
        self.device = self.worker.device
        self.info: Info = self.loader.info
        self.dtype = self.experiment.training.dtype
        self.history: dict[tuple[str, int], Record] = {}

    def strategy_for(self, settings: Training) -> Strategy:
        """How the workers share a training. ValueError: this strategy does not support these settings."""
        zero = None
        if self.strategy == "deepspeed":
            stage, config = self.placement.zero_stage, self.placement.deepspeed_config
            zero = ZeroSettings(stage, settings.batch_size, settings.precision, settings.compile, config)
        return strategy(self.strategy, self.worker.world_size, zero)

    def remember(self, records: Sequence[Record]) -> None:
        """Add metrics to the run's history. A record with the same key and step replaces the earlier one."""
        self.history.update({(r["key"], r["step"]): r for r in records})

    def emit(self, **event: Any) -> None:
        """Send an event to the driver. All workers emit the same events, so only rank 0 sends them."""
        if self.worker.rank == 0:
            self.worker.emit(event)

    def note(self, text: str) -> None:
        """Show a line of text to the user."""
        self.emit(kind="note", text=text)

    def on_first_worker(self, fn: Callable[[], T]) -> T:
        """Run `fn` on rank 0 and return its result on every worker. Collective.

        An error of `fn` is raised on every worker: raised on rank 0 alone, it would leave the others waiting.
        """
        if self.worker.world_size == 1:
            return fn()
        box: list[Any] = [None, None]
        if self.worker.rank == 0:
            try:
                box[0] = fn()
            except Exception as error:
                box[1] = error
        dist.broadcast_object_list(box, src=0, group=self.worker.control)
        if box[1] is not None:
            raise box[1]
        return box[0]
