"""GraSP: gradient signal preservation (Wang et al., ICLR 2020, arXiv 2002.07376)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compression.batch import Batch
from compression.criteria.functional import check_batches, detached_buffers, scoring_copy, total_loss, training_mode
from compression.masks import prunable
from compression.objectives.base import Objective, check_positive


class _Tempered(nn.Module):
    """A network with its logits divided by a temperature."""

    def __init__(self, model: nn.Module, temperature: float) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images) / self.temperature


def grasp(
    model: nn.Module, batches: Sequence[Batch], objective: Objective, temperature: float = 200.0
) -> dict[str, Tensor]:
    """+w * (H g): to first order, half of what removing a weight takes from the gradient's squared norm.

    batches: the parts (in the paper two halves of the data), each with a forward and BatchNorm statistics of its own.
    g is the sum of their gradients, a constant; H the sum of their Hessians; both over prunable weights alone. The
    authors' code stores the negative and removes the highest: the same order.
    Returns parameter name -> score of the parameter's shape, higher is kept. The model is left as it was.
    """
    check_batches(batches)
    check_positive(temperature=temperature)
    tempered = _Tempered(model, temperature)
    weights = {f"model.{name}": weight.detach().requires_grad_() for name, weight in prunable(model).items()}
    others = {name: p.detach() for name, p in tempered.named_parameters() if name not in weights}
    buffers = detached_buffers(tempered)

    def gradients(part: Batch, scoring: Objective, create_graph: bool) -> list[Tensor]:
        loss = total_loss(tempered, {**others, **weights}, buffers, scoring, part)
        found = torch.autograd.grad(loss, list(weights.values()), create_graph=create_graph, materialize_grads=True)
        return list(found)

    with training_mode(model), torch.enable_grad():
        # Two passes: the second multiplies by the whole gradient, which is known only after the first.
        first, second = scoring_copy(objective), scoring_copy(objective)
        parts = [gradients(part, first, create_graph=False) for part in batches]
        total = [torch.stack(grads).sum(dim=0) for grads in zip(*parts, strict=True)]
        products = [torch.zeros_like(weight) for weight in weights.values()]
        for part in batches:
            with_graph = gradients(part, second, create_graph=True)
            inner = torch.stack([(g * t).sum() for g, t in zip(with_graph, total, strict=True)]).sum()
            found = torch.autograd.grad(inner, list(weights.values()), materialize_grads=True)
            products = [p + f for p, f in zip(products, found, strict=True)]
    return {
        name.removeprefix("model."): weight.detach() * product
        for (name, weight), product in zip(weights.items(), products, strict=True)
    }


@dataclass(frozen=True)
class GraSPConfig:
    """Gradient signal preservation: weight times Hessian-gradient product."""

    batches: int = 2
    """parts over which gradient and Hessian are summed"""
    temperature: float = 200.0
    """divides the logits"""

    label = "GraSP"

    def __post_init__(self) -> None:
        check_positive(batches=self.batches, temperature=self.temperature)

    def num_batches(self, objective: Objective) -> int:
        return self.batches

    def score(self, model: nn.Module, batches: Sequence[Batch], objective: Objective) -> dict[str, Tensor]:
        return grasp(model, batches, objective, self.temperature)
