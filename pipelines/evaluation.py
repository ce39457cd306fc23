"""Evaluation: accuracy and loss over a split, each sample counted once whatever the number of workers."""

import contextlib

import torch
from torch import distributed as dist
from torch import nn

from cluster.worker import Worker
from compression.diagnostics import prediction_statistics
from pipelines.data.loader import Loader
from pipelines.experiment import Training

STATISTICS = {
    "correct": "accuracy",
    "cross_entropy": "loss",
    "entropy": "entropy",
    "max_probability": "max_probability",
}
"""Name of the sum over samples -> name of its mean."""


def evaluate(model: nn.Module, loader: Loader, split: str, training: Training, worker: Worker) -> dict[str, float]:
    """Means over the samples of "val" or "test"; an empty dict for an empty split. Collective.

    accuracy: share of 1; loss: cross-entropy; entropy: of the softmax, in nats; max_probability: its largest entry.
    """
    num = loader.info.sizes[split]
    if not num:
        return {}
    sums = torch.zeros(len(STATISTICS), dtype=torch.float64, device=worker.device)
    model.eval()
    with torch.inference_mode(), autocast(training, worker.device):
        for batch in loader.evaluation(split, training.batch_size, worker.rank, worker.world_size):
            found = prediction_statistics(model(batch.images), batch.labels)
            sums += torch.stack([found[name].double() for name in STATISTICS])
    if worker.world_size > 1:
        dist.all_reduce(sums)
    return dict(zip(STATISTICS.values(), (sums / num).tolist(), strict=True))


def autocast(training: Training, device: torch.device) -> contextlib.AbstractContextManager:
    """bfloat16 autocast if the training asks for it."""
    return torch.autocast(device.type, torch.bfloat16, enabled=training.precision == "bfloat16")
