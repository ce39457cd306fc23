"""The training loop: one, for every method, objective and number of workers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from cluster.stopping import Stopped, StopRequest, Vote
from cluster.stragglers import MUCH_SLOWER, StragglerDetector
from cluster.strategy import Strategy
from compression import cost
from compression.masks import Masks
from compression.objectives.base import Objective
from pipelines.checkpointer import Checkpointer, Part
from pipelines.data.loading.draws import stream
from pipelines.evaluation import autocast, evaluate
from pipelines.experiment import Training
from pipelines.optimizers import check_elementwise, factor_at, parameter_groups, without_vector_decay

if TYPE_CHECKING:
    from pipelines.session import Run

LOG_STEPS = 100
"""Training steps between the points where numbers leave the device."""

VOTE_STEPS = 10
"""Training steps between the points where the workers agree whether they were asked to save, or to stop."""


def train(
    run: Run,
    name: str,
    model: nn.Module,
    objective: Objective,
    masks: Masks | None,
    part: Part,
    param_groups: Sequence[dict[str, Any]] | None = None,
) -> nn.Module:
    """Train `model` in place by a part of a schedule and return it; goes on from the stage's last checkpoint."""
    settings, worker = part.settings, run.worker
    strategy = run.strategy_for(settings)
    keeper = Checkpointer(run, name, model, objective, part, strategy)
    if keeper.position.finished:
        run.remember(keeper.position.history)
        return model
    steps_per_epoch = part.steps_per_epoch
    total_steps, warmup_steps = settings.epochs * steps_per_epoch, settings.warmup_epochs * steps_per_epoch
    objective.setup(run.info, run.device)
    keeper.flops = run.on_first_worker(lambda: part_flops(run, name, model, objective, part))
    groups = param_groups or parameter_groups(model)
    optimizer = settings.optimizer.build(groups if settings.decay_vectors else without_vector_decay(groups))
    if masks is not None:
        check_elementwise(optimizer)
    hooks = (masks or Masks({})).attach(model)
    if settings.compile:
        model.compile()
    network = strategy.prepare(model, optimizer)
    keeper.restore(optimizer)
    at, vote, pace = (
        keeper.position,
        Vote(worker.stop_signal, worker.world_size, worker.control),
        StragglerDetector(worker),
    )
    with hooks:
        for epoch in range(at.epoch, part.epochs.stop):
            train_mode(model, settings)
            objective.begin_epoch(epoch, settings.epochs)
            objective.sync()
            sums = LossSums(run, at.sums, steps_per_epoch * epoch + at.step)
            shard, progress = (worker.rank, worker.world_size, at.step), epoch / settings.epochs
            batches = run.loader.epoch(name, epoch, settings.batch_size, objective.needs, *shard, progress)
            for step, batch in enumerate(keeper.waiting(batches), start=at.step):
                now = epoch * steps_per_epoch + step
                torch.manual_seed(stream(run.seed, name, now, worker.rank))  # dropout and its like, the same on resume
                factor = factor_at(now, total_steps, warmup_steps, settings.schedule)
                for group in optimizer.param_groups:
                    group["lr"] = settings.optimizer.lr * factor * group.get("lr_scale", 1.0)
                with pace.own_work(), autocast(settings, run.device):
                    losses = objective(network, batch)
                apply(strategy, optimizer, losses)
                sums.add(losses)
                inside = step + 1 < steps_per_epoch
                wish = vote() if inside and (now + 1) % VOTE_STEPS == 0 else StopRequest.NOTHING
                if keeper.due(now + 1, inside) or wish:
                    keeper.save(optimizer, epoch, step + 1, sums.check())
                elif (now + 1) % LOG_STEPS == 0 and inside:
                    keeper.report(epoch, step + 1, sums.check())
                if wish == StopRequest.STOP:
                    raise Stopped
            end_epoch(run, keeper, model, masks, optimizer, epoch, sums.check(), pace)
            if epoch + 1 < part.epochs.stop and vote() == StopRequest.STOP:
                raise Stopped
        return strategy.unwrap(network)


def train_mode(model: nn.Module, settings: Training) -> None:
    """Train mode, but for BatchNorm where its statistics are frozen."""
    model.train()
    if settings.freeze_batchnorm:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def part_flops(run: Run, name: str, model: nn.Module, objective: Objective, part: Part) -> float:
    """Floating-point operations of a part of a training, whose images may grow."""
    epochs = part.settings.epochs
    progress = {run.loader.size_at(epoch / epochs): epoch / epochs for epoch in part.epochs}
    per_step = {size: step_flops(run, name, model, objective, part.settings, at) for size, at in progress.items()}
    return sum(per_step[run.loader.size_at(epoch / epochs)] for epoch in part.epochs) * part.steps_per_epoch


def step_flops(
    run: Run, name: str, model: nn.Module, objective: Objective, settings: Training, progress: float = 1.0
) -> float:
    """Floating-point operations of one training step over the global batch, counted in a step on two images."""
    [batch] = run.loader.batches(name, 1, 2, objective.needs, progress)
    with autocast(settings, run.device):
        return cost.training_flops(model, objective, batch) * settings.batch_size


def apply(strategy: Strategy, optimizer: torch.optim.Optimizer, losses: dict[str, Tensor]) -> None:
    """One step down the sum of the losses."""
    strategy.backward(torch.stack(list(losses.values())).sum())
    strategy.step(optimizer)
    optimizer.zero_grad(set_to_none=True)


def end_epoch(
    run: Run,
    keeper: Checkpointer,
    model: nn.Module,
    masks: Masks | None,
    optimizer: torch.optim.Optimizer,
    epoch: int,
    sums: dict[str, float],
    pace: StragglerDetector,
) -> None:
    """Agree on BatchNorm's statistics, check the masks, evaluate, record, checkpoint."""
    speed = keeper.speed() | slowest_worker(run, pace)
    share_buffers(model, run.worker.world_size)
    whole, settings = keeper.strategy.whole(model), keeper.part.settings
    if masks is not None:
        masks.verify(whole)
    metrics = {f"train/{key}": value / keeper.part.steps_per_epoch for key, value in sums.items()}
    metrics["train/loss"] = sum(metrics.values())
    metrics |= {f"val/{key}": value for key, value in evaluate(whole, run.loader, "val", settings, run.worker).items()}
    metrics |= {f"train/{key}": value for key, value in speed.items()}
    keeper.record(epoch, metrics)
    keeper.save(optimizer, epoch + 1, 0, {}, finished=epoch + 1 == keeper.part.epochs.stop)
    keeper.report(epoch, keeper.part.steps_per_epoch, sums, metrics)


def slowest_worker(run: Run, pace: StragglerDetector) -> dict[str, float]:
    """Of this epoch: how many times as long as the others the slowest worker took, of several. Much is said, once."""
    slowest = pace.slowest()
    if slowest is None:
        return {}
    if slowest.ratio > MUCH_SLOWER and slowest.rank not in pace.named:
        pace.named.add(slowest.rank)
        run.note(
            f"worker {slowest.rank} of {run.worker.world_size}, on {slowest.host}, takes {slowest.ratio:.1f} times as "
            "long as the others for the same work, and they wait for it: see what else runs there"
        )
    return {"slowest_worker": slowest.ratio}


class LossSums:
    """The epoch's losses, summed on the device; a loss that is not finite is found with its step."""

    def __init__(self, run: Run, so_far: dict[str, float], first_step: int) -> None:
        self.worker = run.worker
        self.step = first_step
        self.sums = {k: torch.tensor(v, dtype=torch.float64, device=run.device) for k, v in so_far.items()}
        self.bad_step = torch.tensor(math.inf, dtype=torch.float64, device=run.device)

    def add(self, losses: dict[str, Tensor]) -> None:
        total = torch.zeros((), dtype=torch.float64, device=self.bad_step.device)
        for key, value in losses.items():
            value = value.detach().double()
            total = total + value
            self.sums[key] = self.sums.get(key, torch.zeros_like(value)) + value
        here = torch.where(torch.isfinite(total), math.inf, float(self.step))
        self.bad_step = torch.minimum(self.bad_step, here)
        self.step += 1

    def check(self) -> dict[str, float]:
        """The sums as numbers, the mean over workers; FloatingPointError that names the first step gone wrong."""
        # Every worker sees the same losses by name, so the same tensor has the same meaning everywhere.
        values = torch.stack([*self.sums.values()]) if self.sums else self.bad_step.new_zeros(0)
        bad_step = self.bad_step
        if self.worker.world_size > 1:
            dist.all_reduce(values)
            values = values / self.worker.world_size
            bad_step = bad_step.clone()
            dist.all_reduce(bad_step, op=dist.ReduceOp.MIN)
        if math.isfinite(bad_step):
            raise FloatingPointError(
                f"the loss is not finite at step {int(bad_step)} (counted from 0): lower --training.optimizer.lr, or "
                "give the training a warm-up"
            )
        return dict(zip(self.sums, values.tolist(), strict=True))


def share_buffers(model: nn.Module, world_size: int) -> None:
    """Rank 0's buffers (BatchNorm's running statistics) become everybody's."""
    if world_size > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)
