"""Cross-entropy: the baseline objective."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from compression.batch import Batch
from compression.objectives.base import Model, Objective, full_precision
from compression.objectives.config import ObjectiveConfig


class CrossEntropy(Objective):
    """Mean cross-entropy of the logits (N, K) with the labels (N,)."""

    def __call__(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        return {"cross_entropy": F.cross_entropy(full_precision(model(batch.images)), batch.labels)}


@dataclass(frozen=True)
class CrossEntropyConfig(ObjectiveConfig):
    """Plain cross-entropy."""

    label = "CE"
    objective = staticmethod(CrossEntropy)
