"""Label smoothing (Szegedy et al., Rethinking the Inception Architecture, CVPR 2016, arXiv 1512.00567)."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from compression.batch import Batch
from compression.config import searched, with_fields
from compression.objectives.base import Model, Objective, full_precision
from compression.objectives.config import ObjectiveConfig
from compression.spaces import Range

Spread = Literal["all", "others"]


class LabelSmoothing(Objective):
    """Cross-entropy with a target of 1 - epsilon on the label; epsilon is spread over classes.

    spread "all" (the paper and PyTorch): epsilon / K on each of the K classes, including the label.
    spread "others" (Tf-KD's code): epsilon / (K - 1) on each other class.
    """

    def __init__(self, epsilon: float = 0.1, spread: Spread = "all") -> None:
        if not 0 <= epsilon < 1:
            raise ValueError(f"epsilon must lie in [0, 1), not {epsilon}")
        if spread not in ("all", "others"):
            raise ValueError(f'spread must be "all" or "others", not {spread!r}')
        self.epsilon = epsilon
        self.spread = spread

    def __call__(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        logits = full_precision(model(batch.images))
        num_classes = logits.shape[1]
        # Epsilon spread over the K - 1 other classes equals epsilon K / (K - 1) spread over all K classes.
        epsilon = self.epsilon * (num_classes / (num_classes - 1) if self.spread == "others" else 1.0)
        return {"label_smoothing": F.cross_entropy(logits, batch.labels, label_smoothing=epsilon)}


@dataclass(frozen=True)
class LabelSmoothingConfig(ObjectiveConfig):
    """Cross-entropy with smoothed labels."""

    epsilon: float = searched(0.1, Range(0.02, 0.3))
    """share of the target that is spread over classes"""
    spread: Spread = "all"
    """all: over all classes (the paper); others: over the other classes only (Tf-KD's code)"""

    label = "LS"
    objective = with_fields(LabelSmoothing, "epsilon", "spread")
