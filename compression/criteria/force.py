"""FORCE: progressive skeletonization (de Jorge et al., ICLR 2021, arXiv 2006.09081)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from compression.batch import Batch
from compression.criteria.base import GradientCriterionConfig
from compression.criteria.chunks import mean_gradients
from compression.criteria.rounds import Rounds, in_rounds
from compression.masks import prunable
from compression.objectives.base import Objective, check_positive


@in_rounds(Rounds(pruned_return=True, num_kept=math.floor))
def force(
    model: nn.Module,
    batches: Sequence[Batch],
    objective: Objective,
    masks: Mapping[str, Tensor] | None = None,
    chunk_size: int | None = None,
) -> dict[str, Tensor]:
    """One round of |w * g|: w the dense weight, g the gradient in the network pruned by `masks`.

    g is averaged over the batches. BatchNorm uses batch statistics. A pruned weight also has a score and may return.
    The loss is the objective's; the authors' code uses the negative logit in place of cross-entropy.

    chunk_size: images scored at once, to save memory (BatchNorm then uses chunk statistics); None: a whole batch.
    Returns parameter name -> score of the parameter's shape, higher is kept. The model is not changed.
    """
    gradients = mean_gradients(model, batches, objective, masks, chunk_size)
    return {name: (w.detach() * gradients[name]).abs() for name, w in prunable(model).items()}


@dataclass(frozen=True)
class FORCEConfig(GradientCriterionConfig):
    """Connection sensitivity in rounds; pruned weights may come back."""

    rounds: int = 10
    """rounds of scoring and pruning"""

    label = "FORCE"
    function = staticmethod(force)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(rounds=self.rounds)
