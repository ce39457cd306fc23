"""How one or several workers train a model: single, ddp or deepspeed, behind one small interface."""

from difflib import get_close_matches

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cluster.zero import Zero
from cluster.zero_config import ZeroSettings

NAMES = ("single", "ddp", "deepspeed")


class Single:
    """One worker: plain torch. The other strategies have the same methods.

    A training loop calls `prepare`, then `backward` and `step` for each batch, then `unwrap`. It sets learning rates in
    `optimizer.param_groups`; a strategy may replace the parameters in there.
    """

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        """The module to call in training, with equal parameters on all workers. Existing tensor hooks are kept."""
        return model

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients' mean over the workers. The model may have been called several times before."""
        loss.backward()

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Apply the gradients."""
        optimizer.step()

    def whole(self, model: nn.Module) -> nn.Module:
        """`model` (the argument of `prepare`) with all its weights on this worker, for evaluation and checkpoints.

        Collective. The model itself if it has all weights, else a copy that is valid until the next step.
        """
        return model

    def state(self, optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
        """ "parameter name/key" -> full tensor, of the optimiser's state; collective.

        The same for every strategy, stage and number of workers, so that a training can resume with another.
        """
        names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
        return {
            f"{names[parameter]}/{key}": torch.as_tensor(value)
            for parameter, state in optimizer.state.items()
            for key, value in state.items()
            if value is not None
        }

    def load_state(self, optimizer: torch.optim.Optimizer, model: nn.Module, stored: dict[str, Tensor]) -> None:
        """The inverse of `state`, after `prepare` and before the first step."""
        parameters = dict(model.named_parameters())
        fused = optimizer.defaults.get("fused")
        for full_name, value in stored.items():
            name, key = full_name.rsplit("/", 1)
            parameter = parameters[name]
            if value.shape == parameter.shape:
                # In the parameter's memory layout: fused kernels iterate over both together.
                value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
            elif fused:
                value = value.to(parameter.device)  # step counters: unfused optimisers keep them on the CPU
            optimizer.state[parameter][key] = value

    def unwrap(self, model: nn.Module) -> nn.Module:
        """The model that `prepare` was given, without wrappers; `model` is what `prepare` returned. Collective."""
        return model


class DDP(Single):
    """Several workers, each with the full model: torch's DistributedDataParallel over the default group.

    bucket_mb: MiB of gradients per all-reduce; None for torch's default.
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
            # DDP rebuilds its buckets after the first backward. That changes the order in which a ring sums the
            # gradients of three or more workers: a resumed run would differ in the last bit from an uninterrupted one.
            # find_unused_parameters keeps the first buckets. The sum of two gradients has only one order.
            find_unused_parameters=self._world_size > 2,
            # No static_graph: a step of ResNet-20 is not faster with it (two workers on two cores, medians of 5
            # alternations: 138 ms without, 159 ms with), and some objectives call the model once, then twice.
        )

    def unwrap(self, model: nn.Module) -> nn.Module:
        assert isinstance(model, DistributedDataParallel)
        return model.module


Strategy = Single | Zero


def strategy(name: str, world_size: int, zero: ZeroSettings | None = None) -> Strategy:
    """The strategy of this name for `world_size` workers; `zero` is for "deepspeed".

    ValueError for an unknown name, for "single" with several workers, and if DeepSpeed is not installed.
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
