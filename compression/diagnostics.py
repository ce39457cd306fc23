"""Diagnostics: how right a classifier is, and how sure of it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from compression.objectives.base import full_precision


def prediction_statistics(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Sums over the batch, so that batches and workers can be added up before they are divided by the samples.

    logits: (N, K). labels: (N,) int64. Returns float64 scalars on the logits' device:
    correct: samples whose largest logit is the label's. cross_entropy: with the label, in nats.
    entropy: of the softmax, in nats, between 0 and log K. max_probability: the largest entry of the softmax.

    The last two tell how soft a teacher is: one reading of why a pruned teacher may teach better (Park and No, arXiv
    2109.14960) is that its softer answers regularise; they are recorded so that it can be looked at.
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
