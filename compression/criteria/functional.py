"""What criteria share: the model as a function of its parameters, so that the model itself is never touched."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from compression.batch import Batch
from compression.objectives.base import Objective


@contextlib.contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Put every module into train or eval mode and give each its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def training_mode(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Put every module into train mode and give each its own mode back."""
    return in_mode(model, training=True)


def detached_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the model's buffers: running statistics are updated there and not in the model."""
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def total_loss(
    model: nn.Module,
    parameters: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    objective: Objective,
    batch: Batch,
) -> Tensor:
    """The objective's summed losses at the given parameters."""

    def call(images: Tensor) -> Tensor:
        return functional_call(model, {**parameters, **buffers}, (images,))

    return torch.stack(list(objective(call, batch).values())).sum()


def scoring_copy(objective: Objective) -> Objective:
    """A copy, so that scoring leaves the memory of the training alone."""
    return copy.deepcopy(objective)


def check_batches(batches: Sequence[Batch], allowed: Sequence[int] | None = None) -> None:
    """ValueError unless there are batches, and as many as one of `allowed`."""
    if not batches or (allowed is not None and len(batches) not in allowed):
        wanted = "at least 1" if allowed is None else " or ".join(str(n) for n in sorted(set(allowed)))
        raise ValueError(f"scoring takes {wanted} batches, not {len(batches)}")
