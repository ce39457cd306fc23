"""FORCE and Iter-SNIP: progressive skeletonization (de Jorge et al., ICLR 2021, arXiv 2006.09081)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from compression.batch import Batch
from compression.config import searched, with_fields
from compression.criteria.base import GradientCriterionConfig, Rounds
from compression.criteria.chunks import mean_gradients
from compression.masks import prunable
from compression.objectives.base import Objective
from compression.spaces import Choices


@Rounds(pruned_return=True, num_kept=math.floor)
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

    rounds: int = searched(10, Choices((5, 10, 20, 60)))
    """rounds of scoring and pruning"""

    label = "FORCE"
    score = with_fields(force, "chunk_size")


@Rounds(num_kept=math.floor)
def iter_snip(
    model: nn.Module,
    batches: Sequence[Batch],
    objective: Objective,
    masks: Mapping[str, Tensor] | None = None,
    chunk_size: int | None = None,
) -> dict[str, Tensor]:
    """SNIP in rounds: as `force`, but weights pruned by `masks` have the score 0 and never return."""
    scores = force(model, batches, objective, masks, chunk_size)
    if masks is None:
        return scores
    return {name: s.masked_fill(~masks[name].to(s.device), 0) for name, s in scores.items()}


@dataclass(frozen=True)
class IterSNIPConfig(FORCEConfig):
    """Connection sensitivity in rounds; what is pruned stays pruned."""

    label = "Iter-SNIP"
    score = with_fields(iter_snip, "chunk_size")
