"""GraSP: gradient signal preservation (Wang et al., ICLR 2020, arXiv 2002.07376)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compression.batch import Batch
from compression.config import searched, with_fields
from compression.criteria.base import GradientCriterionConfig
from compression.criteria.chunks import ChunkedLoss, check_batches, detached_buffers
from compression.criteria.second_order import CheapSecondOrder
from compression.masks import prunable
from compression.modules import in_mode
from compression.objectives.base import Objective, check_positive
from compression.spaces import Choices, LogRange


class _Tempered(nn.Module):
    """A network with its logits divided by a temperature."""

    def __init__(self, model: nn.Module, temperature: float) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images) / self.temperature


def grasp(
    model: nn.Module,
    batches: Sequence[Batch],
    objective: Objective,
    temperature: float = 200.0,
    chunk_size: int | None = None,
) -> dict[str, Tensor]:
    """+w * (H g): to first order, half of the decrease of the gradient's squared norm when a weight is removed.

    batches: the parts (in the paper two halves of the data), each with its own forward pass and BatchNorm statistics.
    g is the sum of their gradients, a constant; H the sum of their Hessians; both for prunable weights only. The
    authors' code stores the negative and removes the highest, which gives the same order.
    chunk_size: images scored at once, to save memory (BatchNorm then uses chunk statistics); None: a whole part.
    Returns parameter name -> score of the parameter's shape, higher is kept. The model is not changed.
    """
    check_batches(batches)
    check_positive(temperature=temperature)
    tempered = _Tempered(model, temperature)
    weights = {f"model.{name}": weight.detach().requires_grad_() for name, weight in prunable(model).items()}
    parameters = {**{name: p.detach() for name, p in tempered.named_parameters()}, **weights}
    inputs, buffers = list(weights.values()), detached_buffers(tempered)
    with in_mode(model, training=True), torch.enable_grad(), CheapSecondOrder():
        # Two passes: the second one multiplies by the whole gradient, which the first one computes.
        first, second = ChunkedLoss(objective, chunk_size), ChunkedLoss(objective, chunk_size)
        parts = [first.gradients(tempered, parameters, buffers, part, inputs) for part in batches]
        total = [torch.stack(gradients).sum(dim=0) for gradients in zip(*parts, strict=True)]
        products = [torch.zeros_like(weight) for weight in inputs]
        for part in batches:
            for loss in second.parts(tempered, parameters, buffers, part):
                with_graph = torch.autograd.grad(loss, inputs, create_graph=True, materialize_grads=True)
                inner = torch.stack([(g * t).sum() for g, t in zip(with_graph, total, strict=True)]).sum()
                found = torch.autograd.grad(inner, inputs, materialize_grads=True)
                products = [p + f for p, f in zip(products, found, strict=True)]
    found = zip(weights.items(), products, strict=True)
    return {name.removeprefix("model."): weight.detach() * product for (name, weight), product in found}


@dataclass(frozen=True)
class GraSPConfig(GradientCriterionConfig):
    """Gradient signal preservation: weight times Hessian-gradient product."""

    batches: int = searched(2, Choices((2, 4, 10)))
    """parts over which gradient and Hessian are summed"""
    temperature: float = searched(200.0, LogRange(10.0, 1000.0))
    """divides the logits"""

    label = "GraSP"
    score = with_fields(grasp, "temperature", "chunk_size")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(temperature=self.temperature)
