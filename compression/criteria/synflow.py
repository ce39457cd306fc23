"""SynFlow: pruning without data by conserving synaptic flow (Tanaka et al., NeurIPS 2020, arXiv 2006.05467)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from compression.batch import Batch
from compression.criteria.functional import check_batches
from compression.criteria.rounds import Criterion
from compression.masks import prunable
from compression.modules import in_mode
from compression.objectives.base import Objective, check_positive


def synflow(
    model: nn.Module,
    batches: Sequence[Batch],
    objective: Objective | None = None,
    masks: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """One round of |w * dR/dw|, R the sum of the outputs for one image of ones when every weight is |w|.

    Weights that `masks` prunes are zero in the network and score 0. The network runs in eval mode with the absolute
    values of all parameters and of all floating-point buffers, BatchNorm's running statistics too, as in the authors'
    code. Of batches[0] only shape and device of an image count; the objective is not looked at.

    Everything is computed and returned in float64, whatever the weights are: R is a product over all layers, and in
    float32 that of a deep network overflows, or its scores round to ties.
    Returns parameter name -> score of the parameter's shape, higher is kept. The model is left as it was.
    """
    check_batches(batches)
    weights = {name: w.detach().double().abs() for name, w in prunable(model).items()}
    if masks is not None:
        weights = {name: w * masks[name].to(w.device) for name, w in weights.items()}
    weights = {name: w.requires_grad_() for name, w in weights.items()}
    state = {name: t.detach() for name, t in (*model.named_parameters(), *model.named_buffers())}
    state = {name: t.double().abs() if t.is_floating_point() else t for name, t in state.items()}
    images = torch.ones_like(batches[0].images[:1], dtype=torch.float64)
    with in_mode(model, training=False), torch.enable_grad():
        flow = functional_call(model, {**state, **weights}, (images,)).sum()
        gradients = torch.autograd.grad(flow, list(weights.values()), materialize_grads=True)
    return {name: (w.detach() * g).abs() for (name, w), g in zip(weights.items(), gradients, strict=True)}


@dataclass(frozen=True)
class SynFlowConfig:
    """Synaptic flow: no data, many rounds."""

    rounds: int = 100
    """of scoring and pruning a little more"""

    label = "SynFlow"

    def __post_init__(self) -> None:
        check_positive(rounds=self.rounds)

    def num_batches(self, objective: Objective) -> int:
        return 1

    @property
    def score(self) -> Criterion:
        return synflow
