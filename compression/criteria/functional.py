"""The model as a function of its parameters, so that criteria do not change the model itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from compression.batch import Batch
from compression.objectives.base import Objective


def detached_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the model's buffers, so that running statistics are not updated in the model."""
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def total_loss(
    model: nn.Module,
    parameters: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    objective: Objective,
    batch: Batch,
) -> Tensor:
    """The sum of the objective's losses with the given parameters and buffers."""

    def call(images: Tensor) -> Tensor:
        return functional_call(model, {**parameters, **buffers}, (images,))

    return torch.stack(list(objective(call, batch).values())).sum()


def check_batches(batches: Sequence[Batch], allowed: Sequence[int] | None = None) -> None:
    """ValueError unless there are batches, and their number is one of `allowed`."""
    if not batches or (allowed is not None and len(batches) not in allowed):
        wanted = "at least 1" if allowed is None else " or ".join(str(n) for n in sorted(set(allowed)))
        raise ValueError(f"scoring takes {wanted} batches, not {len(batches)}")
