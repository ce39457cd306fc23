"""FLOP count: floating-point operations of a training, from one step on two images."""

from torch import nn

from compression import cost
from compression.objectives.base import Objective
from pipelines.context import EpochRange, RunContext
from pipelines.evaluation import autocast
from pipelines.experiment import Training


def stage_flops(context: RunContext, stage: EpochRange, model: nn.Module, objective: Objective) -> float:
    """Of all epochs of a training stage. Images may grow from epoch to epoch."""
    size_at, num_epochs = context.loader.size_at, stage.settings.epochs
    progress = {size_at(epoch / num_epochs): epoch / num_epochs for epoch in stage.epochs}
    per_step = {
        size: step_flops(context, stage.stage, model, objective, stage.settings, at) for size, at in progress.items()
    }
    return sum(per_step[size_at(epoch / num_epochs)] for epoch in stage.epochs) * stage.steps_per_epoch


def step_flops(
    context: RunContext, stage: str, model: nn.Module, objective: Objective, settings: Training, progress: float = 1.0
) -> float:
    """Of one training step on the global batch. progress: share of the training done, which decides the image size."""
    [batch] = context.loader.batches(stage, 1, 2, objective.needs, progress)
    with autocast(settings, context.device):
        return cost.training_flops(model, objective, batch) * settings.batch_size
