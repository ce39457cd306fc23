"""SNIP: single-shot network pruning by connection sensitivity (Lee et al., ICLR 2019, arXiv 1810.02340)."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from compression.batch import Batch
from compression.config import with_fields
from compression.criteria.base import GradientCriterionConfig
from compression.criteria.chunks import mean_gradients
from compression.masks import prunable
from compression.objectives.base import Objective


def snip(
    model: nn.Module, batches: Sequence[Batch], objective: Objective, chunk_size: int | None = None
) -> dict[str, Tensor]:
    """|w * g|, with g the gradient of the loss averaged over the batches. BatchNorm uses batch statistics.

    chunk_size: images scored at once, to save memory (BatchNorm then uses chunk statistics); None: a whole batch.
    Returns parameter name -> score of the parameter's shape, higher is kept, not normalised (the paper divides by the
    sum, which does not change the ranking). The model is not changed.
    """
    gradients = mean_gradients(model, batches, objective, chunk_size=chunk_size)
    return {name: (w.detach() * gradients[name]).abs() for name, w in prunable(model).items()}


@dataclass(frozen=True)
class SNIPConfig(GradientCriterionConfig):
    """Connection sensitivity: weight times gradient."""

    label = "SNIP"
    score = with_fields(snip, "chunk_size")
