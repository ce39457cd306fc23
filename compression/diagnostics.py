"""Diagnostics: how accurate and how confident a classifier is."""

import torch
from torch import Tensor
from torch.nn import functional as F

from compression.objectives.base import full_precision


def prediction_statistics(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Sums over the batch: add them up over batches and workers, then divide by the number of samples.

    logits: (N, K). labels: (N,) int64. Returns float64 scalars on the logits' device:
    correct: samples with the largest logit on the label. cross_entropy: with the label, in nats.
    entropy: of the softmax, in nats, between 0 and log K. max_probability: the largest entry of the softmax.
    The last two show how soft a teacher's outputs are, which may regularise students (Park and No, arXiv 2109.14960).
    """
    logits = full_precision(logits)
    probabilities = F.softmax(logits, dim=1)
    per_sample = {
        "correct": logits.argmax(dim=1) == labels,
        "cross_entropy": F.cross_entropy(logits, labels, reduction="none"),
        "entropy": torch.special.entr(probabilities),
        "max_probability": probabilities.amax(dim=1),
    }
    return {name: values.sum(dtype=torch.float64) for name, values in per_sample.items()}
