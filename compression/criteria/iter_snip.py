"""Iter-SNIP: SNIP in rounds (de Jorge et al., Progressive Skeletonization, ICLR 2021, arXiv 2006.09081)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from compression.batch import Batch
from compression.criteria.force import FORCEConfig, force
from compression.criteria.rounds import Rounds, in_rounds
from compression.objectives.base import Objective


@in_rounds(Rounds(num_kept=math.floor))
def iter_snip(
    model: nn.Module,
    batches: Sequence[Batch],
    objective: Objective,
    masks: Mapping[str, Tensor] | None = None,
    chunk_size: int | None = None,
) -> dict[str, Tensor]:
    """One round of |w * g| in the network pruned by `masks`. Pruned weights have the score 0 and never return.

    g is averaged over the batches. BatchNorm uses batch statistics. The loss is the objective's; the authors' code uses
    the negative logit in place of cross-entropy.

    chunk_size: images scored at once, to save memory (BatchNorm then uses chunk statistics); None: a whole batch.
    Returns parameter name -> score of the parameter's shape, higher is kept. The model is not changed.
    """
    scores = force(model, batches, objective, masks, chunk_size)
    if masks is None:
        return scores
    return {name: s.masked_fill(~masks[name].to(s.device), 0) for name, s in scores.items()}


@dataclass(frozen=True)
class IterSNIPConfig(FORCEConfig):
    """Connection sensitivity in rounds; what is pruned stays pruned."""

    label = "Iter-SNIP"
    function = staticmethod(iter_snip)
