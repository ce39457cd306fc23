"""The training loop: one for every method, objective, strategy and number of workers. Read `Trainer` from the top."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from cluster.stopping import Stopped, StopRequest, Vote
from cluster.stragglers import MUCH_SLOWER, StragglerDetector
from cluster.strategy import Strategy
from compression.masks import Masks
from compression.objectives.base import Objective
from pipelines.checkpointer import Checkpointer
from pipelines.context import EpochRange, RunContext
from pipelines.data.loading.draws import stream
from pipelines.evaluation import autocast, evaluate
from pipelines.experiment import Training
from pipelines.flops import stage_flops
from pipelines.meter import ThroughputMeter
from pipelines.optimizers import check_elementwise, factor_at, parameter_groups, without_vector_decay

LOG_STEPS = 100
"""Training steps between progress reports. Each report copies the losses from the device."""

LOG_SECONDS = 30.0
"""Seconds without one after which the first worker reports its step, without losses: those of all are not added up."""

VOTE_STEPS = 10
"""Training steps between the points where the workers agree whether to save, or to save and stop."""


class Trainer:
    """One training stage on one worker. All workers run it together."""

    def __init__(
        self,
        context: RunContext,
        stage: EpochRange,
        model: nn.Module,
        objective: Objective,
        masks: Masks | None = None,
        param_groups: Sequence[dict[str, Any]] | None = None,
    ) -> None:
        self.context, self.stage, self.settings = context, stage, stage.settings
        self.model, self.objective, self.masks = model, objective, masks
        self.param_groups = param_groups
        worker = context.worker
        self.strategy = context.strategy_for(stage.settings)
        self.checkpointer = Checkpointer(context, stage, model, objective, self.strategy)
        self.meter = ThroughputMeter(stage.settings.batch_size)
        self.stragglers = StragglerDetector(worker)
        self.vote = Vote(worker.stop_signal, worker.world_size, worker.control)

    def train(self) -> nn.Module:
        """Train the model in place and return it. Resumes from the stage's last checkpoint."""
        position = self.checkpointer.position
        if position.finished:
            self.context.remember(position.history)
            return self.model
        self.objective.setup(self.context.info, self.context.device)
        self.flops = self.context.on_first_worker(
            lambda: stage_flops(self.context, self.stage, self.model, self.objective)
        )
        self.optimizer = self.build_optimizer()
        with (self.masks or Masks({})).attach(self.model):  # gradients of pruned weights are zero inside
            if self.settings.compile:
                self.model.compile()
            self.network = self.strategy.prepare(self.model, self.optimizer)
            self.checkpointer.restore(self.optimizer)
            first_step, sums = position.step, position.sums
            for epoch in range(position.epoch, self.stage.epochs.stop):
                self.train_epoch(epoch, first_step, LossSums(self.context, sums, self.global_step(epoch, first_step)))
                if epoch + 1 < self.stage.epochs.stop and self.vote() == StopRequest.STOP:
                    raise Stopped
                first_step, sums = 0, {}
            return self.strategy.unwrap(self.network)

    def train_epoch(self, epoch: int, first_step: int, sums: LossSums) -> None:
        """Train one epoch of the schedule from `first_step` on, evaluate, and write a checkpoint."""
        settings, stage, worker = self.settings, self.stage, self.context.worker
        self.meter.begin_epoch()
        self.reported = time.monotonic()
        set_train_mode(self.model, settings)
        self.objective.begin_epoch(epoch, settings.epochs)
        self.objective.sync()
        shard, progress = (worker.rank, worker.world_size, first_step), epoch / settings.epochs
        batches = self.context.loader.epoch(
            stage.stage, epoch, settings.batch_size, self.objective.needs, *shard, progress
        )
        for step, batch in enumerate(self.meter.timed(batches), start=first_step):
            global_step = self.global_step(epoch, step)
            # Dropout and the like draw the same numbers after a resume.
            torch.manual_seed(stream(self.context.seed, stage.stage, global_step, worker.rank))
            self.set_learning_rate(global_step)
            with self.stragglers.own_work(), autocast(settings, self.context.device):
                losses = self.objective(self.network, batch)
            optimizer_step(self.strategy, self.optimizer, losses)
            sums.add(losses)
            if step + 1 < stage.steps_per_epoch:
                self.after_step(epoch, step + 1, sums)
        self.end_epoch(epoch, sums.means_over_workers())

    def set_learning_rate(self, global_step: int) -> None:
        settings, steps_per_epoch = self.settings, self.stage.steps_per_epoch
        total_steps, warmup_steps = settings.epochs * steps_per_epoch, settings.warmup_epochs * steps_per_epoch
        factor = factor_at(global_step, total_steps, warmup_steps, settings.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.optimizer.lr * factor * group.get("lr_scale", 1.0)

    def after_step(self, epoch: int, steps_done: int, sums: LossSums) -> None:
        """Inside an epoch, after `steps_done` of its steps: checkpoint, progress report, or stop, where due."""
        total_done = self.global_step(epoch, steps_done)
        request = self.vote() if total_done % VOTE_STEPS == 0 else StopRequest.NOTHING
        if self.checkpointer.due(total_done) or request:
            self.checkpointer.save(self.optimizer, epoch, steps_done, sums.means_over_workers())
        elif total_done % LOG_STEPS == 0:
            self.report(epoch, steps_done, sums.means_over_workers())
        elif time.monotonic() - self.reported > LOG_SECONDS:
            self.report(epoch, steps_done, {})
        if request == StopRequest.STOP:
            raise Stopped

    def end_epoch(self, epoch: int, sums: dict[str, float]) -> None:
        """Synchronise BatchNorm, verify the masks, evaluate, record the metrics, write a checkpoint."""
        steps, worker = self.stage.steps_per_epoch, self.context.worker
        speed = self.meter.epoch_metrics() | self.slowest_worker()
        share_buffers(self.model, worker.world_size)
        whole = self.strategy.whole(self.model)
        if self.masks is not None:
            self.masks.verify(whole)
        metrics = {f"train/{key}": value / steps for key, value in sums.items()}
        metrics["train/loss"] = sum(metrics.values())
        validation = evaluate(whole, self.context.loader, "val", self.settings, worker)
        metrics |= {f"val/{key}": value for key, value in validation.items()}
        metrics |= {f"train/{key}": value for key, value in speed.items()}
        self.checkpointer.record(epoch, metrics)
        if epoch + 1 == self.stage.epochs.stop:
            self.checkpointer.finish(self.optimizer, self.flops)
        else:
            self.checkpointer.save(self.optimizer, epoch + 1, 0, {})
        self.report(epoch, steps, sums, metrics)

    def build_optimizer(self) -> torch.optim.Optimizer:
        groups = self.param_groups or parameter_groups(self.model)
        optimizer = self.settings.optimizer.build(
            groups if self.settings.decay_vectors else without_vector_decay(groups)
        )
        if self.masks is not None:
            check_elementwise(optimizer)
        return optimizer

    def global_step(self, epoch: int, step: int) -> int:
        """Steps of the schedule before `step` of `epoch`."""
        return epoch * self.stage.steps_per_epoch + step

    def slowest_worker(self) -> dict[str, float]:
        """How many times as long as the others the slowest worker took; a worker that is much slower is named once."""
        slowest = self.stragglers.slowest()
        if slowest is None:
            return {}
        if slowest.ratio > MUCH_SLOWER and slowest.rank not in self.stragglers.named:
            self.stragglers.named.add(slowest.rank)
            self.context.note(
                f"worker {slowest.rank} of {self.context.worker.world_size}, on {slowest.host}, takes "
                f"{slowest.ratio:.1f} times as long as the others for the same work, and they wait for it: check what "
                "else runs there"
            )
        return {"slowest_worker": slowest.ratio}

    def report(
        self, epoch: int, steps_done: int, sums: dict[str, float], metrics: dict[str, float] | None = None
    ) -> None:
        """Send the progress to the driver; with `metrics` at the end of an epoch. sums: empty if they are not known."""
        self.reported = time.monotonic()
        self.context.emit(
            kind="epoch" if metrics else "progress",
            stage=self.stage.stage,
            epoch=epoch + 1,
            num_epochs=self.settings.epochs,
            step=steps_done,
            steps_per_epoch=self.stage.steps_per_epoch,
            loss=sum(sums.values()) / max(steps_done, 1) if sums else None,
            metrics=metrics or {},
        )


def optimizer_step(strategy: Strategy, optimizer: torch.optim.Optimizer, losses: dict[str, Tensor]) -> None:
    """One step on the sum of the losses."""
    strategy.backward(torch.stack(list(losses.values())).sum())
    strategy.step(optimizer)
    optimizer.zero_grad(set_to_none=True)


def set_train_mode(model: nn.Module, settings: Training) -> None:
    """Train mode; BatchNorm stays in eval mode if its statistics are frozen."""
    model.train()
    if settings.freeze_batchnorm:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def share_buffers(model: nn.Module, world_size: int) -> None:
    """Copy rank 0's buffers (BatchNorm's running statistics) to all workers. Collective."""
    if world_size > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


class LossSums:
    """The sums of an epoch's losses, kept on the device. A loss that is not finite is found later, with its step."""

    def __init__(self, context: RunContext, so_far: dict[str, float], first_step: int) -> None:
        self.world_size = context.worker.world_size
        self.step = first_step
        self.sums = {k: torch.tensor(v, dtype=torch.float64, device=context.device) for k, v in so_far.items()}
        self.bad_step = torch.tensor(math.inf, dtype=torch.float64, device=context.device)

    def add(self, losses: dict[str, Tensor]) -> None:
        total = torch.zeros((), dtype=torch.float64, device=self.bad_step.device)
        for key, value in losses.items():
            value = value.detach().double()
            total = total + value
            self.sums[key] = self.sums.get(key, torch.zeros_like(value)) + value
        here = torch.where(torch.isfinite(total), math.inf, float(self.step))
        self.bad_step = torch.minimum(self.bad_step, here)
        self.step += 1

    def means_over_workers(self) -> dict[str, float]:
        """The sums, averaged over the workers. Collective. FloatingPointError names the first step that went wrong."""
        # All workers have the same losses in the same order, so entry i means the same everywhere.
        values = torch.stack([*self.sums.values()]) if self.sums else self.bad_step.new_zeros(0)
        bad_step = self.bad_step
        if self.world_size > 1:
            dist.all_reduce(values)
            values = values / self.world_size
            bad_step = bad_step.clone()
            dist.all_reduce(bad_step, op=dist.ReduceOp.MIN)
        if math.isfinite(bad_step):
            raise FloatingPointError(
                f"the loss is not finite at step {int(bad_step)} (counted from 0): lower --training.optimizer.lr, or "
                "give the training a warm-up"
            )
        return dict(zip(self.sums, values.tolist(), strict=True))
