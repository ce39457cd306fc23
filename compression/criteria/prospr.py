"""ProsPr: prospect pruning (Alizadeh et al., ICLR 2022, arXiv 2202.08132)."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compression.batch import Batch
from compression.config import added, searched, with_fields
from compression.criteria.base import CriterionConfig
from compression.criteria.chunks import ChunkedLoss, check_batches, check_num_images, detached_buffers, total_loss
from compression.criteria.memory import check_memory
from compression.criteria.second_order import CheapSecondOrder, fast_layout
from compression.masks import prunable
from compression.modules import in_mode
from compression.objectives.base import Objective, check_positive
from compression.spaces import IntRange, LogRange


def prospr(
    model: nn.Module,
    batches: Sequence[Batch],
    objective: Objective,
    steps: int = 3,
    lr: float = 0.1,
    first_order: bool = False,
    chunk_size: int | None = None,
) -> dict[str, Tensor]:
    """|dL(theta_steps) / dc| at c = 1, where theta_0 = c * w and theta_{k+1} = theta_k - lr * grad L(theta_k).

    All parameters take the steps; convolution and linear weights have scores. BatchNorm uses batch statistics.
    batches: one for all steps and the last loss, or steps + 1, one for each.
    first_order: treat the inner gradients as constants (no second derivatives): score = |w * grad L(theta_steps)|.
    chunk_size: with first_order, images scored at once (BatchNorm then uses chunk statistics); None: a whole batch.
    Returns parameter name -> score of the parameter's shape, higher is kept. The model is not changed.
    ValueError if the full meta-gradient, which keeps the graphs of all steps, does not fit into free memory.
    """
    check_inner(steps, lr, first_order, chunk_size)
    check_batches(batches, (1, steps + 1))
    each = [batches[step % len(batches)] for step in range(steps + 1)]
    if first_order or steps == 0:
        return _first_order(model, each, objective, lr, chunk_size)
    check_memory(model, max(batches, key=len), objective, steps)
    return _full(model, each, objective, lr)


def _full(model: nn.Module, batches: Sequence[Batch], objective: Objective, lr: float) -> dict[str, Tensor]:
    *inner, last = [batch.map_images(fast_layout) for batch in batches]
    objective, buffers = copy.deepcopy(objective), detached_buffers(model)
    mask = {name: torch.ones_like(w, requires_grad=True) for name, w in prunable(model).items()}
    start = {name: p.detach().requires_grad_() for name, p in model.named_parameters()}
    theta: dict[str, Tensor] = {name: fast_layout(mask[name] * p if name in mask else p) for name, p in start.items()}
    with in_mode(model, training=True), torch.enable_grad(), CheapSecondOrder():
        for batch in inner:
            loss = total_loss(model, theta, buffers, objective, batch)
            gradients = torch.autograd.grad(loss, list(theta.values()), create_graph=True, materialize_grads=True)
            theta = {name: p - lr * g for (name, p), g in zip(theta.items(), gradients, strict=True)}
        loss = total_loss(model, theta, buffers, objective, last)
        sensitivities = torch.autograd.grad(loss, list(mask.values()), materialize_grads=True)
    found = zip(mask.items(), sensitivities, strict=True)
    return {name: torch.empty_like(c).copy_(s.abs()).detach() for (name, c), s in found}


def _first_order(
    model: nn.Module, batches: Sequence[Batch], objective: Objective, lr: float, chunk_size: int | None
) -> dict[str, Tensor]:
    *inner, last = batches
    loss, buffers = ChunkedLoss(objective, chunk_size), detached_buffers(model)
    theta = {name: p.detach().requires_grad_() for name, p in model.named_parameters()}
    weights = prunable(model)
    with in_mode(model, training=True), torch.enable_grad():
        for batch in inner:
            gradients = loss.gradients(model, theta, buffers, batch, list(theta.values()))
            steps = zip(theta.items(), gradients, strict=True)
            theta = {name: (p.detach() - lr * g).requires_grad_() for (name, p), g in steps}
        gradients = loss.gradients(model, theta, buffers, last, [theta[name] for name in weights])
    return {name: (w.detach() * g).abs() for (name, w), g in zip(weights.items(), gradients, strict=True)}


def check_inner(steps: int, lr: float, first_order: bool, chunk_size: int | None) -> None:
    """ValueError for invalid settings of the inner steps."""
    if steps < 0:
        raise ValueError(f"the number of inner steps must be 0 or more, not {steps}")
    check_positive(**{"learning rate of the inner steps": lr})
    check_num_images(chunk_size=chunk_size)
    if chunk_size is not None and not first_order:
        raise ValueError("chunk_size needs first_order; for the full meta-gradient use a smaller scoring_batch_size")


@dataclass(frozen=True)
class ProsPrConfig(CriterionConfig):
    """Prospect pruning: scores by the meta-gradient through a few training steps."""

    steps: int = searched(3, IntRange(0, 5))
    """inner gradient steps; 0 is SNIP"""
    lr: float = searched(0.1, LogRange(0.01, 1.0))
    """learning rate of the inner steps"""
    first_order: bool = False
    """leave out second derivatives: less memory, another score"""
    chunk_size: int | None = added(None)
    """with first_order, images scored at once, for less memory; None: a whole batch"""

    label = "ProsPr"
    score = with_fields(prospr, "steps", "lr", "first_order", "chunk_size")

    def __post_init__(self) -> None:
        check_inner(self.steps, self.lr, self.first_order, self.chunk_size)

    def num_batches(self, objective: Objective) -> int:
        return objective.scoring_batches(self.steps)
