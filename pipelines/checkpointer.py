"""Checkpointer: the durable side of one training: its checkpoints, its history, its reports to the driver."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from cluster.strategy import Strategy
from compression.batch import Batch
from compression.objectives.base import Objective
from pipelines.experiment import Training
from pipelines.run_folder import Record, record

if TYPE_CHECKING:
    from pipelines.session import Run


@dataclass(frozen=True)
class Part:
    """What a training stage does: some epochs of a schedule."""

    settings: Training
    epochs: range
    steps_per_epoch: int
    first_step: int
    """epochs of the run before this stage: the numbers of an epoch are recorded under how many the run has had"""


@dataclass
class Position:
    """Where a training stands: the next step, and what the epoch has summed up so far."""

    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)
    history: list[Record] = field(default_factory=list)
    finished: bool = False


class Checkpointer:
    """The durable side of one training: its checkpoints, its history, its reports to the driver."""

    def __init__(
        self, run: Run, name: str, model: nn.Module, objective: Objective, part: Part, strategy: Strategy
    ) -> None:
        self.run, self.name, self.model, self.objective, self.part = run, name, model, objective, part
        self.strategy = strategy
        self.flops = 0.0
        self.store = run.folder.checkpoints(name, run.placement.keep)
        self.checkpoint = self.store.latest()
        self._check_same_step()
        begin = Position(epoch=part.epochs.start, finished=not part.epochs)
        self.position = begin if self.checkpoint is None else Position(**self.checkpoint.state)
        self.started = time.perf_counter() - self.position.seconds
        self.epoch_started, self.epoch_first, self.seconds_waited = time.perf_counter(), self.position.step, 0.0
        if self.checkpoint is not None:
            model.load_state_dict(self.checkpoint.tensors["weights"])
            if not self.position.finished:
                run.note(f"{name} goes on from its checkpoint of step {self.checkpoint.step}")

    def restore(self, optimizer: torch.optim.Optimizer) -> None:
        """Optimiser (which the strategy has prepared) and objective as the checkpoint left them, or else as new.

        An objective that trained before forgets that: a run which goes on here would not know it.
        """
        stored: dict[str, Tensor] = {}
        if self.checkpoint is not None:
            self.strategy.load_state(optimizer, self.model, self.checkpoint.tensors["optimizer"])
            rank = 0 if self.objective.replicated else self.run.worker.rank
            # Where the run goes on with more workers, the new ones have nothing to remember.
            stored = self.checkpoint.tensors.get(f"objective.rank{rank}", {})
        state = {key: value.to(self.run.device) for key, value in stored.items()}
        needs, epochs = self.objective.needs, self.part.settings.epochs

        def batch_at(index: Tensor, epoch: int) -> Batch:
            return self.run.loader.batch_at(self.name, epoch, index, needs, epoch / epochs)

        self.objective.load_state_dict(state, batch_at)

    def _check_same_step(self) -> None:
        step = None if self.checkpoint is None else self.checkpoint.step
        first = self.run.on_first_worker(lambda: step)
        if first != step:
            raise RuntimeError(
                f"worker {self.run.worker.rank} sees checkpoint {step} in {self.store.folder}, the first worker sees "
                f"{first}: all workers must see the same storage"
            )

    def due(self, steps_done: int, inside_epoch: bool) -> bool:
        """Whether a checkpoint is to be written here, inside an epoch."""
        every = self.run.placement.checkpoint_steps
        return bool(every) and inside_epoch and steps_done % every == 0

    def record(self, epoch: int, metrics: dict[str, float]) -> None:
        """Numbers of the epoch of the schedule that has ended; in the history the run's epochs are counted from 1."""
        done = self.part.first_step + epoch + 1 - self.part.epochs.start
        self.position.history += [record(key, done, value) for key, value in metrics.items()]
        self.run.remember(self.position.history)

    def save(
        self, optimizer: torch.optim.Optimizer, epoch: int, step: int, sums: dict[str, float], finished: bool = False
    ) -> None:
        """A checkpoint from which the next step is `step` of `epoch`; written by the first worker; collective."""
        run, at = self.run, self.position
        self.objective.sync()
        objective_states = gather_states(self.objective, run)
        weights = self.strategy.whole(self.model).state_dict()
        optimizer_state = self.strategy.state(optimizer, self.model)
        at.epoch, at.step, at.sums, at.finished = epoch, step, sums, finished
        at.seconds = time.perf_counter() - self.started
        if finished:
            at.history.append(record(f"cost/{self.name}_seconds", 0, at.seconds))
            at.history.append(record(f"cost/{self.name}_flops", 0, self.flops))
            run.remember(at.history)

        def write() -> None:
            tensors = {"weights": weights, "optimizer": optimizer_state}
            tensors |= {f"objective.rank{rank}": state for rank, state in enumerate(objective_states)}
            self.store.save(epoch * self.part.steps_per_epoch + step, tensors, vars(at))

        run.on_first_worker(write)
        if step == 0:
            self.epoch_started, self.epoch_first, self.seconds_waited = time.perf_counter(), 0, 0.0

    def report(self, epoch: int, step: int, sums: dict[str, float], metrics: dict[str, float] | None = None) -> None:
        """Tell the driver how far the training is; with `metrics` where an epoch has ended."""
        self.run.emit(
            kind="epoch" if metrics else "progress",
            stage=self.name,
            epoch=epoch + 1,
            num_epochs=self.part.settings.epochs,
            step=step,
            steps_per_epoch=self.part.steps_per_epoch,
            loss=sum(sums.values()) / max(step, 1),
            metrics=metrics or {},
        )

    def waiting(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches; how long the training waits for each is added up."""
        iterator = iter(batches)
        while True:
            before = time.perf_counter()
            batch = next(iterator, None)
            self.seconds_waited += time.perf_counter() - before
            if batch is None:
                return
            yield batch

    def speed(self) -> dict[str, float]:
        """Of this epoch: global images_per_second, and data_wait, the share of its time in which it waited for data."""
        steps = self.part.steps_per_epoch - self.epoch_first
        seconds = time.perf_counter() - self.epoch_started
        images = steps * self.part.settings.batch_size
        return {"images_per_second": images / seconds, "data_wait": self.seconds_waited / seconds}


def gather_states(objective: Objective, run: Run) -> list[dict[str, Tensor]]:
    """What the objective remembers, on the CPU: one state, or on rank 0 one a worker where each has its own."""
    state = {key: value.cpu() for key, value in objective.state_dict().items()}
    if objective.replicated or run.worker.world_size == 1:
        return [state]
    states: list[Any] = [None] * run.worker.world_size
    dist.all_gather_object(states, state, group=run.worker.control)
    return states
