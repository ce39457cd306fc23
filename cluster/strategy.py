"""How a model is trained by one worker or by several: single, ddp, deepspeed, behind one small interface."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cluster.zero import Zero
from cluster.zero_config import ZeroSettings

NAMES = ("single", "ddp", "deepspeed")


class Strategy(Protocol):
    """What a training loop asks for: prepare, then backward and step as often as it likes, then unwrap.

    The loop sets learning rates in `optimizer.param_groups`, whatever the strategy makes of the parameters in there.
    """

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        """The module to call in training, its parameters equal on all workers. Tensor hooks that are there stay."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Fill the gradients: their mean over the workers. The model may have been called several times before."""
        ...

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Apply the gradients."""
        ...

    def whole(self, model: nn.Module) -> nn.Module:
        """`model` (what `prepare` was given) with all its weights on this worker: to evaluate, to check, to store.

        Collective; the model itself where it has them, else a copy that holds until the next step.
        """
        ...

    def state(self, optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
        """ "parameter name/key" -> whole tensor, for everything the optimiser remembers of a parameter; collective.

        The same under every strategy, stage and number of workers, so that a training may go on under another.
        """
        ...

    def load_state(self, optimizer: torch.optim.Optimizer, model: nn.Module, stored: dict[str, Tensor]) -> None:
        """The inverse of `state`, after `prepare` and before the first step."""
        ...

    def unwrap(self, model: nn.Module) -> nn.Module:
        """The model that `prepare` was given, plain again; `model` is what `prepare` returned. Collective."""
        ...


def strategy(name: str, world_size: int, zero: ZeroSettings | None = None) -> Strategy:
    """The strategy of this name for so many workers; `zero` is for "deepspeed".

    Raises ValueError for a name that is not there, for "single" with several workers, and where DeepSpeed is missing.
    """
    if name not in NAMES:
        near = get_close_matches(name, NAMES, n=1, cutoff=0)[0]
        raise ValueError(f"no strategy {name!r}: did you mean --strategy {near}?")
    if name == "deepspeed":
        return Zero(world_size, zero or ZeroSettings())
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

    def whole(self, model: nn.Module) -> nn.Module:
        return model

    def state(self, optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
        names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
        return {
            f"{names[parameter]}/{key}": torch.as_tensor(value)
            for parameter, state in optimizer.state.items()
            for key, value in state.items()
            if value is not None
        }

    def load_state(self, optimizer: torch.optim.Optimizer, model: nn.Module, stored: dict[str, Tensor]) -> None:
        parameters = dict(model.named_parameters())
        fused = optimizer.defaults.get("fused")
        for full_name, value in stored.items():
            name, key = full_name.rsplit("/", 1)
            parameter = parameters[name]
            if value.shape == parameter.shape:
                # The parameter's own memory layout: fused kernels walk both side by side.
                value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
            elif fused:
                value = value.to(parameter.device)  # counters of steps: elsewhere torch keeps them on the CPU
            optimizer.state[parameter][key] = value

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
            # static_graph stays off: a step of ResNet-20 takes as long with it (two workers on two cores, medians of 5
            # alternations: 138 ms without, 159 ms with), and objectives that remember call the model once, then twice.
        )

    def unwrap(self, model: nn.Module) -> nn.Module:
        assert isinstance(model, DistributedDataParallel)
        return model.module
