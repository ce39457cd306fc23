"""ProsPr: prospect pruning (Alizadeh et al., ICLR 2022, arXiv 2202.08132)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compression.batch import Batch
from compression.criteria.functional import check_batches, detached_buffers, scoring_copy, total_loss, training_mode
from compression.masks import prunable
from compression.objectives.base import Objective, check_positive


def prospr(
    model: nn.Module,
    batches: Sequence[Batch],
    objective: Objective,
    steps: int = 3,
    lr: float = 0.1,
    first_order: bool = False,
) -> dict[str, Tensor]:
    """|dL(theta_steps) / dc| at c = 1, where theta_0 = c * w and theta_{k+1} = theta_k - lr * grad L(theta_k).

    How much removing a weight now changes the loss after `steps` steps of plain gradient descent. All parameters take
    the steps; convolution and linear weights get scores. BatchNorm uses batch statistics.

    batches: one, used at every step and for the last loss, or steps + 1, one each.
    first_order: take the inner gradients as constants, so no second derivatives: score = |w * grad L(theta_steps)|.
    Returns parameter name -> score of the parameter's shape, higher is kept. The model is left as it was.
    """
    check_inner(steps, lr)
    check_batches(batches, (1, steps + 1))
    objective = scoring_copy(objective)
    weights = prunable(model)
    mask = {name: torch.ones_like(w, requires_grad=True) for name, w in weights.items()}
    start = {name: p.detach().requires_grad_() for name, p in model.named_parameters()}
    theta: dict[str, Tensor] = {name: mask[name] * p if name in mask else p for name, p in start.items()}
    buffers = detached_buffers(model)

    with training_mode(model), torch.enable_grad():
        for step in range(steps):
            loss = total_loss(model, theta, buffers, objective, batches[step % len(batches)])
            gradients = torch.autograd.grad(loss, list(theta.values()), create_graph=not first_order, allow_unused=True)
            theta = {
                name: p if gradient is None else p - lr * gradient
                for (name, p), gradient in zip(theta.items(), gradients, strict=True)
            }
        loss = total_loss(model, theta, buffers, objective, batches[steps % len(batches)])
        sensitivities = torch.autograd.grad(loss, list(mask.values()), materialize_grads=True)
    return {name: s.detach().abs() for name, s in zip(mask, sensitivities, strict=True)}


def check_inner(steps: int, lr: float) -> None:
    """ValueError for inner steps that cannot be."""
    if steps < 0:
        raise ValueError(f"the number of inner steps must be 0 or more, not {steps}")
    check_positive(**{"learning rate of the inner steps": lr})


@dataclass(frozen=True)
class ProsPrConfig:
    """Prospect pruning: scores by the meta-gradient through a few training steps."""

    steps: int = 3
    """inner gradient steps; 0 is SNIP"""
    lr: float = 0.1
    """learning rate of the inner steps"""
    first_order: bool = False
    """leave out second derivatives: less memory, another score"""

    label = "ProsPr"

    def __post_init__(self) -> None:
        check_inner(self.steps, self.lr)

    def num_batches(self, objective: Objective) -> int:
        return objective.scoring_batches(self.steps)

    def score(self, model: nn.Module, batches: Sequence[Batch], objective: Objective) -> dict[str, Tensor]:
        return prospr(model, batches, objective, self.steps, self.lr, self.first_order)
