"""Evaluation: accuracy and loss over a split, each sample counted once whatever the number of workers."""

from __future__ import annotations

import contextlib

import torch
from torch import distributed as dist
from torch import nn
from torch.nn import functional as F

from cluster.launch import Worker
from pipelines.data.loader import Loader
from pipelines.experiment import Training


def evaluate(model: nn.Module, loader: Loader, split: str, training: Training, worker: Worker) -> dict[str, float]:
    """{"accuracy": share of 1, "loss": mean cross-entropy} of `model` on "val" or "test"; collective."""
    if not loader.info.sizes[split]:
        return {}
    sums = torch.zeros(3, dtype=torch.float64, device=worker.device)
    model.eval()
    with torch.inference_mode(), autocast(training, worker.device):
        for batch in loader.evaluation(split, training.batch_size, worker.rank, worker.world_size):
            logits = model(batch.images).float()
            correct = (logits.argmax(dim=1) == batch.labels).sum()
            loss = F.cross_entropy(logits, batch.labels, reduction="sum")
            sums += torch.stack([correct.double(), loss.double(), correct.new_tensor(len(batch)).double()])
    if worker.world_size > 1:
        dist.all_reduce(sums)
    correct, loss, count = sums.tolist()
    return {"accuracy": correct / count, "loss": loss / count}


def autocast(training: Training, device: torch.device) -> contextlib.AbstractContextManager:
    """bfloat16 where the experiment asks for it."""
    return torch.autocast(device.type, torch.bfloat16, enabled=training.precision == "bfloat16")
