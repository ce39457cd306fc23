"""CS-KD: class-wise self-knowledge distillation (Yun et al., CVPR 2020, arXiv 2003.13964)."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from compression.batch import Batch
from compression.config import searched, with_fields
from compression.objectives.base import Model, Objective, check_positive, distillation_divergence, full_precision
from compression.objectives.config import ObjectiveConfig
from compression.spaces import LogRange


class CSKD(Objective):
    """CE(f(x), y) + weight * T^2 * KL(softmax(f(x') / T) || softmax(f(x) / T)) with x' another image of the class.

    The logits of x' come from a separate forward pass without a graph (in train mode with separate BatchNorm
    statistics), as in the authors' code.
    """

    needs = frozenset({"paired"})

    def __init__(self, temperature: float = 4.0, weight: float = 1.0) -> None:
        check_positive(temperature=temperature)
        self.temperature = temperature
        self.weight = weight

    def __call__(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        if batch.paired is None:
            raise ValueError("CS-KD needs batch.paired: for each image another one of the same class")
        logits = full_precision(model(batch.images))
        with torch.no_grad():
            partner = model(batch.paired)
        return {
            "cross_entropy": F.cross_entropy(logits, batch.labels),
            "cs_kd": self.weight * distillation_divergence(partner, logits, self.temperature),
        }


@dataclass(frozen=True)
class CSKDConfig(ObjectiveConfig):
    """Self-distillation between two images of one class."""

    temperature: float = searched(4.0, LogRange(1.0, 20.0))
    """divides the logits before the softmax"""
    weight: float = searched(1.0, LogRange(0.1, 10.0))
    """weight of the distillation term; cross-entropy has weight 1"""

    label = "CS-KD"
    objective = with_fields(CSKD, "temperature", "weight")
