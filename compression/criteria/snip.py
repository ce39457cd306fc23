"""SNIP: single-shot network pruning by connection sensitivity (Lee et al., ICLR 2019, arXiv 1810.02340)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compression.batch import Batch
from compression.criteria.functional import check_batches, detached_buffers, scoring_copy, total_loss, training_mode
from compression.masks import prunable
from compression.objectives.base import Objective


def snip(model: nn.Module, batches: Sequence[Batch], objective: Objective) -> dict[str, Tensor]:
    """|w * g|, g the gradient of the loss averaged over the batches. BatchNorm uses batch statistics.

    Returns parameter name -> score of the parameter's shape, not normalised (the paper divides by the sum, which leaves
    the ranking alone), higher is kept. The model is left as it was.
    """
    check_batches(batches)
    objective = scoring_copy(objective)
    parameters = {name: p.detach().requires_grad_() for name, p in model.named_parameters()}
    weights = {name: parameters[name] for name in prunable(model)}
    buffers = detached_buffers(model)
    total = [torch.zeros_like(w) for w in weights.values()]
    with training_mode(model), torch.enable_grad():
        for batch in batches:
            loss = total_loss(model, parameters, buffers, objective, batch)
            gradients = torch.autograd.grad(loss, list(weights.values()), materialize_grads=True)
            total = [t + g for t, g in zip(total, gradients, strict=True)]
    return {name: (w.detach() * (t / len(batches))).abs() for (name, w), t in zip(weights.items(), total, strict=True)}


@dataclass(frozen=True)
class SNIPConfig:
    """Connection sensitivity: weight times gradient."""

    batches: int = 1
    """how many training batches the gradient is averaged over"""

    label = "SNIP"

    def __post_init__(self) -> None:
        if self.batches < 1:
            raise ValueError(f"batches must be 1 or more, not {self.batches}")

    def num_batches(self, objective: Objective) -> int:
        return self.batches

    def score(self, model: nn.Module, batches: Sequence[Batch], objective: Objective) -> dict[str, Tensor]:
        return snip(model, batches, objective)
