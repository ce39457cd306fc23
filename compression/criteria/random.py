"""Random: the baseline that any criterion has to beat."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compression.batch import Batch
from compression.criteria.rounds import Criterion
from compression.masks import prunable
from compression.objectives.base import Objective


def random(
    model: nn.Module, batches: Sequence[Batch] = (), objective: Objective | None = None, seed: int = 0
) -> dict[str, Tensor]:
    """Uniform in [0, 1), from `seed` alone: the same on every device. Neither batches nor the objective are looked at.

    Returns parameter name -> score of the parameter's shape, higher is kept. The model is left as it was.
    """
    draw = torch.Generator().manual_seed(seed)
    # Drawn in float64: in float32 a large network's scores would have ties, which are not random.
    return {
        name: torch.rand(weight.shape, generator=draw, dtype=torch.float64).to(weight.device)
        for name, weight in prunable(model).items()
    }


@dataclass(frozen=True)
class RandomConfig:
    """Weights drawn by lot, all layers alike."""

    seed: int = 0
    """of the draw; the experiment's own seed does not change it"""

    label = "random"
    rounds = 1

    def num_batches(self, objective: Objective) -> int:
        return 0

    @property
    def score(self) -> Criterion:
        return functools.partial(random, seed=self.seed)
