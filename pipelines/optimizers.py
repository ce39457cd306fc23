"""Optimisers and learning-rate schedules: their configs, and what is built from them."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

ELEMENTWISE = frozenset({"SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adadelta", "Adagrad", "RMSprop"})
"""torch.optim classes that update each weight from its own gradient alone: a masked weight stays exactly zero."""

OFFERED = sorted(
    name
    for name, value in vars(torch.optim).items()
    if isinstance(value, type) and {"lr", "weight_decay"} <= inspect.signature(value).parameters.keys()
)
"""torch.optim classes that `TorchOptimizer` takes: those with the two values that it gives them."""


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent with momentum."""

    lr: float = 0.1
    """peak learning rate"""
    momentum: float = 0.9
    """share of the last step's direction that the next one keeps"""
    weight_decay: float = 5e-4
    """of all weights, BatchNorm's and biases too"""
    nesterov: bool = False
    """look ahead along the momentum"""

    def __post_init__(self) -> None:
        _check_lr(self.lr)
        if self.momentum < 0 or (self.nesterov and self.momentum == 0):
            raise ValueError(f"momentum must be 0 or more, and above 0 with nesterov, not {self.momentum}")

    def build(self, groups: Sequence[dict]) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            groups,
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.nesterov,
            fused=_on_gpu(groups),
        )


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay."""

    lr: float = 1e-3
    """peak learning rate"""
    beta1: float = 0.9
    """decay of the mean of gradients"""
    beta2: float = 0.999
    """decay of the mean of their squares"""
    weight_decay: float = 0.01
    """of all weights, BatchNorm's and biases too"""

    def __post_init__(self) -> None:
        _check_lr(self.lr)
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise ValueError(f"beta1 and beta2 must lie in [0, 1), not {self.beta1} and {self.beta2}")

    def build(self, groups: Sequence[dict]) -> torch.optim.Optimizer:
        betas = (self.beta1, self.beta2)
        return torch.optim.AdamW(groups, lr=self.lr, betas=betas, weight_decay=self.weight_decay, fused=_on_gpu(groups))


def _on_gpu(groups: Sequence[dict]) -> bool:
    """Whether to take torch's fused kernels. Those for the CPU round the last entries of a tensor, that do not fill a
    vector, in another way: then it would matter to a weight how ZeRO lays it beside others."""
    return all(parameter.is_cuda for group in groups for parameter in group["params"])


@dataclass(frozen=True)
class TorchOptimizer:
    """Any other optimiser of torch.optim, by the name of its class, with its own defaults."""

    name: str = "RMSprop"
    """the class"""
    lr: float = 1e-3
    """peak learning rate"""
    weight_decay: float = 0.0
    """of all weights, BatchNorm's and biases too"""

    def __post_init__(self) -> None:
        _check_lr(self.lr)
        if self.name not in OFFERED:
            near = difflib.get_close_matches(self.name, OFFERED, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ValueError(
                f"there is no torch.optim.{self.name} with learning rate and weight decay; {hint}"
                f"There are: {', '.join(OFFERED)}"
            )

    def build(self, groups: Sequence[dict]) -> torch.optim.Optimizer:
        return getattr(torch.optim, self.name)(groups, lr=self.lr, weight_decay=self.weight_decay)


@dataclass(frozen=True)
class MultiStep:
    """Constant learning rate, multiplied by gamma at milestones."""

    milestones: tuple[float, ...] = (0.5, 0.75)
    """shares of the training after which it drops"""
    gamma: float = 0.1
    """what it is multiplied by at each"""

    def factor(self, step: int, total_steps: int, warmup_steps: float) -> float:
        return self.gamma ** sum(step >= milestone * total_steps for milestone in self.milestones)


@dataclass(frozen=True)
class Cosine:
    """Learning rate that falls along a half cosine from the end of the warm-up."""

    final: float = 0.0
    """share of the peak that is left at the end"""

    def factor(self, step: int, total_steps: int, warmup_steps: float) -> float:
        progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class Linear:
    """Learning rate that falls along a straight line from the end of the warm-up."""

    final: float = 0.0
    """share of the peak that is left at the end"""

    def factor(self, step: int, total_steps: int, warmup_steps: float) -> float:
        progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
        return self.final + (1 - self.final) * (1 - progress)


def factor_at(step: int, total_steps: int, warmup_steps: float, schedule: MultiStep | Cosine | Linear) -> float:
    """What the peak learning rate is multiplied by at `step` (from 0) of `total_steps`."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    return schedule.factor(step, total_steps, warmup_steps)


def parameter_groups(model: nn.Module) -> list[dict]:
    """All parameters under one set of values (weight decay on BatchNorm and biases too, as the papers' code does)."""
    return [{"params": [p for p in model.parameters() if p.requires_grad]}]


def without_vector_decay(groups: Sequence[dict]) -> list[dict]:
    """The groups, each of them in two: matrices and kernels as before, vectors (BatchNorm, biases) without decay."""
    split = []
    for group in groups:
        vectors = [p for p in group["params"] if p.ndim < 2]
        split.append({**group, "params": [p for p in group["params"] if p.ndim >= 2]})
        split.append({**group, "params": vectors, "weight_decay": 0.0})
    return [group for group in split if group["params"]]


def _check_lr(lr: float) -> None:
    if not 0 <= lr < math.inf:
        raise ValueError(f"lr must be 0 or more, not {lr}")


def check_elementwise(optimizer: torch.optim.Optimizer | SGD | AdamW | TorchOptimizer) -> None:
    """ValueError for an optimiser, or the config of one, under which masked weights would not stay zero."""
    name = optimizer.name if isinstance(optimizer, TorchOptimizer) else type(optimizer).__name__
    if name not in ELEMENTWISE:
        raise ValueError(
            f"{name} does not update each weight from its own gradient alone, so pruned weights would not stay zero; "
            f"use one of {', '.join(sorted(ELEMENTWISE))}"
        )
