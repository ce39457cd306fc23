"""SynFlow: pruning without data by conserving synaptic flow (Tanaka et al., NeurIPS 2020, arXiv 2006.05467)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from compression.batch import Batch
from compression.config import searched
from compression.criteria.base import CriterionConfig
from compression.criteria.chunks import check_batches
from compression.masks import prunable
from compression.modules import in_mode
from compression.objectives.base import Objective, check_positive
from compression.spaces import Choices


def synflow(
    model: nn.Module,
    batches: Sequence[Batch],
    objective: Objective | None = None,
    masks: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """One round of |w * dR/dw|, with R the sum of the outputs for one image of ones if every weight is |w|.

    Weights pruned by `masks` are zero in the network and have the score 0. The network runs in eval mode with the
    absolute values of all parameters and all floating-point buffers, as in the authors' code (also for BatchNorm's
    running statistics). Of batches[0], only the shape and device of an image are used. The objective is not used.

    All computations and results are float64: R is a product over all layers, which overflows or gives ties in float32.
    Returns parameter name -> score of the parameter's shape, higher is kept. The model is not changed.
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
class SynFlowConfig(CriterionConfig):
    """Synaptic flow: no data, many rounds."""

    rounds: int = searched(100, Choices((10, 30, 100)))
    """rounds of scoring and pruning"""

    label = "SynFlow"
    score = staticmethod(synflow)

    def __post_init__(self) -> None:
        check_positive(rounds=self.rounds)
