"""Checkpointer: where a training stands, saved and restored."""

import time
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from cluster.strategy import Strategy
from compression.batch import Batch
from compression.objectives.base import Objective
from pipelines.context import EpochRange, RunContext
from pipelines.run_folder import Record, record


@dataclass
class Position:
    """Where a training stands: the next step, and the losses summed so far in its epoch. Stored in state.json."""

    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)
    history: list[Record] = field(default_factory=list)
    finished: bool = False


class Checkpointer:
    """The checkpoints and the history of one training stage.

    `position` is where the training stands, from the last checkpoint if there is one. The weights of that checkpoint
    are loaded at once; optimizer and objective by `restore`, once the strategy has prepared them.
    """

    def __init__(
        self, context: RunContext, stage: EpochRange, model: nn.Module, objective: Objective, strategy: Strategy
    ) -> None:
        self.context, self.stage, self.model, self.objective = context, stage, model, objective
        self.strategy = strategy
        self.store = context.folder.checkpoints(stage.stage, context.placement.keep)
        self.checkpoint = self.store.latest()
        self._check_same_step()
        if self.checkpoint is None:
            self.position = Position(epoch=stage.epochs.start, finished=not stage.epochs)
        else:
            self.position = Position(**self.checkpoint.state)
            model.load_state_dict(self.checkpoint.tensors["weights"])
            context.on_first_worker(partial(self.store.remove_others, self.checkpoint.step))
            if not self.position.finished:
                context.note(f"{stage.stage} resumes from its checkpoint of step {self.checkpoint.step}")
        self.started = time.perf_counter() - self.position.seconds

    def restore(self, optimizer: torch.optim.Optimizer) -> None:
        """Load the state of optimizer and objective; without a checkpoint both start fresh.

        The objective's state is always reset: it may have served an earlier training of the same run.
        """
        stored: dict[str, Tensor] = {}
        if self.checkpoint is not None:
            self.strategy.load_state(optimizer, self.model, self.checkpoint.tensors["optimizer"])
            rank = 0 if self.objective.replicated else self.context.worker.rank
            # A worker that was added since the checkpoint has no state there.
            stored = self.checkpoint.tensors.get(f"objective.rank{rank}", {})
        state = {key: value.to(self.context.device) for key, value in stored.items()}
        loader, stage = self.context.loader, self.stage

        def batch_at(index: Tensor, epoch: int) -> Batch:
            progress = epoch / stage.settings.epochs
            return loader.batch_at(stage.stage, epoch, index, self.objective.needs, progress)

        self.objective.load_state_dict(state, batch_at)

    def due(self, steps_done: int) -> bool:
        """Whether --checkpoint-steps asks for a checkpoint after so many steps of the training."""
        every = self.context.placement.checkpoint_steps
        return bool(every) and steps_done % every == 0

    def record(self, epoch: int, metrics: dict[str, float]) -> None:
        """Add an epoch's metrics to the history."""
        run_epoch = self.stage.run_epoch(epoch)
        self.position.history += [record(key, run_epoch, value) for key, value in metrics.items()]
        self.context.remember(self.position.history)

    def save(self, optimizer: torch.optim.Optimizer, epoch: int, step: int, sums: dict[str, float]) -> None:
        """Write a checkpoint from which the next step is `step` of `epoch`. Rank 0 writes it. Collective."""
        self.objective.sync()
        objective_states = self._gather_objective_states()
        weights = self.strategy.whole(self.model).state_dict()
        optimizer_state = self.strategy.state(optimizer, self.model)
        position = self.position
        position.epoch, position.step, position.sums = epoch, step, sums
        position.seconds = time.perf_counter() - self.started

        def write() -> None:
            tensors = {"weights": weights, "optimizer": optimizer_state}
            tensors |= {f"objective.rank{rank}": state for rank, state in enumerate(objective_states)}
            self.store.save(epoch * self.stage.steps_per_epoch + step, tensors, vars(position))

        self.context.on_first_worker(write)

    def finish(self, optimizer: torch.optim.Optimizer, flops: float) -> None:
        """Write the last checkpoint, which marks the stage as finished, with its costs."""
        seconds = time.perf_counter() - self.started
        costs = {f"cost/{self.stage.stage}_seconds": seconds, f"cost/{self.stage.stage}_flops": flops}
        self.position.history += [record(key, 0, value) for key, value in costs.items()]
        self.position.finished = True
        self.context.remember(self.position.history)
        self.save(optimizer, self.stage.epochs.stop, 0, {})

    def _gather_objective_states(self) -> list[dict[str, Tensor]]:
        """The objective's state on the CPU: one if it is the same on all workers, else (on rank 0) one per worker."""
        worker = self.context.worker
        state = {key: value.cpu() for key, value in self.objective.state_dict().items()}
        if self.objective.replicated or worker.world_size == 1:
            return [state]
        states: list[Any] = [None] * worker.world_size
        dist.all_gather_object(states, state, group=worker.control)
        return states

    def _check_same_step(self) -> None:
        step = None if self.checkpoint is None else self.checkpoint.step
        first = self.context.on_first_worker(lambda: step)
        if first != step:
            raise RuntimeError(
                f"worker {self.context.worker.rank} sees checkpoint {step} in {self.store.folder}, worker 0 sees "
                f"{first}: all workers must see the same storage"
            )
