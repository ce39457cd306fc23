"""Optimisers and learning-rate schedules: their configs, and what is built from them."""

import inspect
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import nn

from compression.choose import choose
from compression.config import searched
from compression.spaces import Choices, LogRange, Range

ELEMENTWISE = frozenset({"SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adadelta", "Adagrad", "RMSprop"})
"""Classes of torch.optim that update each weight from its own gradient alone: a masked weight stays exactly zero."""

OFFERED = {
    name: value
    for name, value in sorted(vars(torch.optim).items())
    if isinstance(value, type) and {"lr", "weight_decay"} <= inspect.signature(value).parameters.keys()
}
"""Classes of torch.optim that `TorchOptimizer` can build: those with its two values."""


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent with momentum."""

    lr: float = searched(0.1, LogRange(0.005, 2.0))
    """peak learning rate"""
    momentum: float = searched(0.9, Range(0.8, 0.98))
    """share of the previous step's direction that is kept"""
    weight_decay: float = searched(5e-4, LogRange(1e-5, 1e-2))
    """for all parameters, including BatchNorm and biases"""
    nesterov: bool = searched(False, Choices((False, True)))
    """use Nesterov momentum"""

    def __post_init__(self) -> None:
        _check_lr(self.lr)
        if self.momentum < 0 or (self.nesterov and self.momentum == 0):
            raise ValueError(f"momentum must be 0 or more, and above 0 with nesterov, not {self.momentum}")

    def build(self, groups: Sequence[dict]) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups, **asdict(self), fused=_on_gpu(groups))


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay."""

    lr: float = searched(1e-3, LogRange(1e-4, 1e-2))
    """peak learning rate"""
    beta1: float = 0.9
    """decay rate of the mean of gradients"""
    beta2: float = searched(0.999, Choices((0.95, 0.99, 0.999)))
    """decay rate of the mean of their squares"""
    weight_decay: float = searched(0.01, LogRange(1e-3, 0.3))
    """for all parameters, including BatchNorm and biases"""

    def __post_init__(self) -> None:
        _check_lr(self.lr)
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise ValueError(f"beta1 and beta2 must lie in [0, 1), not {self.beta1} and {self.beta2}")

    def build(self, groups: Sequence[dict]) -> torch.optim.Optimizer:
        betas = (self.beta1, self.beta2)
        return torch.optim.AdamW(groups, lr=self.lr, betas=betas, weight_decay=self.weight_decay, fused=_on_gpu(groups))


def _on_gpu(groups: Sequence[dict]) -> bool:
    """Whether to use torch's fused kernels. On the CPU they round the last entries of a tensor, which do not fill a
    vector register, differently: the result would depend on how ZeRO concatenates the weights."""
    return all(parameter.is_cuda for group in groups for parameter in group["params"])


@dataclass(frozen=True)
class TorchOptimizer:
    """Another optimiser of torch.optim, by the name of its class, with that class's defaults."""

    name: str = "RMSprop"
    """name of the class"""
    lr: float = searched(1e-3, LogRange(1e-4, 1e-1))
    """peak learning rate"""
    weight_decay: float = searched(0.0, Choices((0.0, 1e-4, 5e-4, 1e-3)))
    """for all parameters, including BatchNorm and biases"""

    def __post_init__(self) -> None:
        _check_lr(self.lr)
        choose("optimizer in torch.optim", self.name, OFFERED)

    def build(self, groups: Sequence[dict]) -> torch.optim.Optimizer:
        return OFFERED[self.name](groups, lr=self.lr, weight_decay=self.weight_decay)


@dataclass(frozen=True)
class MultiStep:
    """Constant learning rate that is multiplied by gamma at milestones."""

    milestones: tuple[float, ...] = (0.5, 0.75)
    """shares of the training after which the learning rate drops"""
    gamma: float = searched(0.1, Choices((0.1, 0.2)))
    """factor at each milestone"""

    def factor(self, step: int, total_steps: int, warmup_steps: float) -> float:
        return self.gamma ** sum(step >= milestone * total_steps for milestone in self.milestones)


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from the end of the warm-up to the end of the training."""

    final: float = 0.0
    """learning rate at the end, as a share of the peak"""

    def factor(self, step: int, total_steps: int, warmup_steps: float) -> float:
        progress = _progress(step, total_steps, warmup_steps)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class Linear:
    """Linear decay from the end of the warm-up to the end of the training."""

    final: float = 0.0
    """learning rate at the end, as a share of the peak"""

    def factor(self, step: int, total_steps: int, warmup_steps: float) -> float:
        return self.final + (1 - self.final) * (1 - _progress(step, total_steps, warmup_steps))


def _progress(step: int, total_steps: int, warmup_steps: float) -> float:
    """Share of the steps after the warm-up."""
    return (step - warmup_steps) / max(total_steps - warmup_steps, 1)


def factor_at(step: int, total_steps: int, warmup_steps: float, schedule: MultiStep | Cosine | Linear) -> float:
    """The factor of the peak learning rate at `step` (from 0) of `total_steps`."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    return schedule.factor(step, total_steps, warmup_steps)


def parameter_groups(model: nn.Module) -> list[dict]:
    """One group of all trainable parameters; weight decay includes BatchNorm and biases, as in the papers' code."""
    return [{"params": [p for p in model.parameters() if p.requires_grad]}]


def without_vector_decay(groups: Sequence[dict]) -> list[dict]:
    """Each group split in two: matrices and kernels as before, vectors (BatchNorm, biases) without weight decay."""
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
    """ValueError for an optimiser, or its config, that would not keep masked weights at zero."""
    name = optimizer.name if isinstance(optimizer, TorchOptimizer) else type(optimizer).__name__
    if name not in ELEMENTWISE:
        raise ValueError(
            f"{name} does not update each weight from its own gradient alone, so pruned weights would not stay zero; "
            f"use one of {', '.join(sorted(ELEMENTWISE))}"
        )
