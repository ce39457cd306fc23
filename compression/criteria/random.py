"""Random scores: the baseline for every criterion."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compression.batch import Batch
from compression.config import with_fields
from compression.criteria.base import CriterionConfig
from compression.masks import prunable
from compression.objectives.base import Objective


def random(
    model: nn.Module, batches: Sequence[Batch] = (), objective: Objective | None = None, seed: int = 0
) -> dict[str, Tensor]:
    """Uniform in [0, 1), from `seed` only: the same on every device. Batches and objective are not used.

    Returns parameter name -> score of the parameter's shape, higher is kept. The model is not changed.
    """
    generator = torch.Generator().manual_seed(seed)
    # In float64: in float32 the scores of a large network have ties, which are not random.
    return {
        name: torch.rand(weight.shape, generator=generator, dtype=torch.float64).to(weight.device)
        for name, weight in prunable(model).items()
    }


@dataclass(frozen=True)
class RandomConfig(CriterionConfig):
    """Random scores, the same distribution in every layer."""

    seed: int = 0
    """of the scores; the experiment's own seed does not change it"""

    label = "random"
    score = with_fields(random, "seed")

    def num_batches(self, objective: Objective) -> int:
        return 0
