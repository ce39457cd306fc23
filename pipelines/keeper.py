"""Keeper: the durable side of one training: its checkpoints, its history, its reports to the driver."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from compression.objectives.base import Objective
from pipelines.experiment import Training
from pipelines.folder import Record, record

if TYPE_CHECKING:
    from pipelines.stages import Run


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


class Keeper:
    """The durable side of one training: its checkpoints, its history, its reports to the driver."""

    def __init__(self, run: Run, name: str, model: nn.Module, objective: Objective, part: Part) -> None:
        self.run, self.name, self.model, self.objective, self.part = run, name, model, objective, part
        self.flops = 0.0
        self.store = run.folder.checkpoints(name, run.placement.keep)
        self.checkpoint = self.store.latest()
        self._check_same_step()
        begin = Position(epoch=part.epochs.start, finished=not part.epochs)
        self.position = begin if self.checkpoint is None else Position(**self.checkpoint.state)
        self.started = time.perf_counter() - self.position.seconds
        self.epoch_started, self.epoch_first = time.perf_counter(), self.position.step
        if self.checkpoint is not None:
            model.load_state_dict(self.checkpoint.tensors["weights"])

    def restore(self, optimizer: torch.optim.Optimizer) -> None:
        """Optimiser and objective as the checkpoint left them, or as new where there is none.

        An objective that trained before forgets that: a run which goes on here would not know it.
        """
        stored: dict[str, Tensor] = {}
        if self.checkpoint is not None:
            load_optimizer_state(optimizer, self.model, self.checkpoint.tensors["optimizer"])
            rank = 0 if self.objective.replicated else self.run.worker.rank
            # Where the run goes on with more workers, the new ones have nothing to remember.
            stored = self.checkpoint.tensors.get(f"objective.rank{rank}", {})
        state = {key: value.to(self.run.device) for key, value in stored.items()}
        needs = self.objective.needs
        self.objective.load_state_dict(state, lambda i, epoch: self.run.loader.batch_at(self.name, epoch, i, needs))

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
        at.epoch, at.step, at.sums, at.finished = epoch, step, sums, finished
        at.seconds = time.perf_counter() - self.started
        if finished:
            steps = len(self.part.epochs) * self.part.steps_per_epoch
            at.history.append(record(f"cost/{self.name}_seconds", 0, at.seconds))
            at.history.append(record(f"cost/{self.name}_flops", 0, self.flops * steps))
            run.remember(at.history)

        def write() -> None:
            tensors = {"weights": self.model.state_dict(), "optimizer": optimizer_state(optimizer, self.model)}
            tensors |= {f"objective.rank{rank}": state for rank, state in enumerate(objective_states)}
            self.store.save(epoch * self.part.steps_per_epoch + step, tensors, vars(at))

        run.on_first_worker(write)
        if step == 0:
            self.epoch_started, self.epoch_first = time.perf_counter(), 0

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

    def images_per_second(self) -> float:
        """Of this epoch so far, global."""
        steps = self.part.steps_per_epoch - self.epoch_first
        seconds = time.perf_counter() - self.epoch_started
        return steps * self.part.settings.batch_size / seconds


def gather_states(objective: Objective, run: Run) -> list[dict[str, Tensor]]:
    """What the objective remembers, on the CPU: one state, or on rank 0 one a worker where each has its own."""
    state = {key: value.cpu() for key, value in objective.state_dict().items()}
    if objective.replicated or run.worker.world_size == 1:
        return [state]
    states: list[Any] = [None] * run.worker.world_size
    dist.all_gather_object(states, state, group=run.worker.control)
    return states


def optimizer_state(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """ "parameter name/key" -> tensor, for everything the optimiser remembers of a parameter."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}/{key}": torch.as_tensor(value)
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
        if value is not None
    }


def load_optimizer_state(optimizer: torch.optim.Optimizer, model: nn.Module, stored: dict[str, Tensor]) -> None:
    """The inverse of `optimizer_state`, onto each parameter's device."""
    parameters = dict(model.named_parameters())
    fused = optimizer.defaults.get("fused")
    for full_name, value in stored.items():
        name, key = full_name.rsplit("/", 1)
        parameter = parameters[name]
        if value.shape == parameter.shape:
            # The parameter's own memory layout: fused kernels walk both side by side.
            value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        elif fused:
            value = value.to(parameter.device)  # counters of steps: elsewhere torch keeps them on the CPU
        optimizer.state[parameter][key] = value
