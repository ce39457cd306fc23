"""How a model is trained by one worker or by several: single, ddp, behind one prepare / backward / step."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


class Strategy(Protocol):
    """What a training loop asks for; the optimiser holds the parameters of the unwrapped model throughout."""

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        """The module to call in training, its parameters equal on all workers. Tensor hooks that are there stay."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Fill the gradients: their mean over the workers. The model may have been called several times before."""
        ...

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Apply the gradients."""
        ...

    def unwrap(self, model: nn.Module) -> nn.Module:
        """The model that `prepare` was given."""
        ...


def strategy(name: str, world_size: int) -> Strategy:
    """The strategy of this name ("single" or "ddp") for so many workers.

    Raises ValueError for a name that is not there and for "single" with several workers.
    """
    if name == "deepspeed":
        raise ValueError("--strategy deepspeed is not available yet: use single or ddp")
    if name not in ("single", "ddp"):
        near = get_close_matches(name, ["single", "ddp", "deepspeed"], n=1, cutoff=0)[0]
        raise ValueError(f"no strategy {name!r}: did you mean --strategy {near}?")
    if world_size == 1:
        return Single()  # the mean over one worker is its own gradient
    if name == "single":
        raise ValueError(f"--strategy single trains on one worker, not {world_size}: use --strategy ddp")
    return DDP(world_size)


class Single:
    """One worker: plain torch."""

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        return model

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        optimizer.step()

    def unwrap(self, model: nn.Module) -> nn.Module:
        return model


class DDP(Single):
    """Several workers, each with the whole model: torch's DistributedDataParallel over the default group.

    bucket_mb: MiB of gradients that are reduced in one message; None for torch's choice.
    """

    def __init__(self, world_size: int, bucket_mb: float | None = None) -> None:
        self._world_size = world_size
        self._bucket_mb = bucket_mb

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        device = next(model.parameters()).device
        return DistributedDataParallel(
            model,
            device_ids=[device.index] if device.type == "cuda" else None,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
            bucket_cap_mb=self._bucket_mb,  # pyright: ignore[reportArgumentType]  (torch takes floats, and tests them)
            # DDP orders its buckets anew after the first backward, and with the bucket the order changes in which a
            # ring adds up three or more workers' gradients: a resumed run would differ in the last bit from one that
            # went through. Looking for unused parameters keeps the first buckets. Two addends have one order only.
            find_unused_parameters=self._world_size > 2,
        )

    def unwrap(self, model: nn.Module) -> nn.Module:
        assert isinstance(model, DistributedDataParallel)
        return model.module
