"""Magnitude: large weights matter (Han et al., NeurIPS 2015, arXiv 1506.02626)."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from compression.batch import Batch
from compression.criteria.base import CriterionConfig
from compression.masks import prunable
from compression.objectives.base import Objective


def magnitude(model: nn.Module, batches: Sequence[Batch] = (), objective: Objective | None = None) -> dict[str, Tensor]:
    """|w|. Batches and objective are not used.

    Returns parameter name -> score of the parameter's shape, higher is kept. The model is not changed.
    """
    return {name: weight.detach().abs() for name, weight in prunable(model).items()}


@dataclass(frozen=True)
class MagnitudeConfig(CriterionConfig):
    """Absolute value of the weight; at initialisation a baseline without any data."""

    label = "magnitude"
    score = staticmethod(magnitude)

    def num_batches(self, objective: Objective) -> int:
        return 0
