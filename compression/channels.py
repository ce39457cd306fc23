"""Channels: the groups of a network's channels that can be removed, verified by removing some."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compression import operators, slicing
from compression.dependencies import Group, trace

TOLERANCE = 1e-9
"""Largest allowed difference of outputs in float64, relative to the largest output or 1."""


def channel_groups(model: nn.Module, input_shape: Sequence[int] | Tensor) -> list[Group]:
    """The groups of channels of `model`, which is not changed. The logits are in no group.

    input_shape: (C, H, W), or example images (N, C, H, W).
    The groups are verified by `prove`. Errors: ValueError that names the operator, module or group that is not
    supported, or says that there is nothing to remove.
    """
    images = example_images(model, input_shape)
    operators.check(model, images)
    groups = trace(model, images)
    prove(model, groups, images)
    return groups


def example_images(model: nn.Module, input_shape: Sequence[int] | Tensor, num: int = 2, seed: int = 0) -> Tensor:
    """`num` random images in the model's precision and on its device; the same seed gives the same images."""
    shape = input_shape.shape[1:] if isinstance(input_shape, Tensor) else input_shape
    if len(shape) != 3:
        raise ValueError(f"input_shape is (C, H, W) of one image, or images (N, C, H, W), not {tuple(input_shape)}")
    weight = next(model.parameters(), torch.empty(0))
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(num, *shape, generator=draw).to(weight.device, weight.dtype)


def prove(model: nn.Module, groups: Sequence[Group], images: Tensor) -> None:
    """ValueError that names the groups that are wrong.

    Two copies with the same random weights (zeros in the model's own weights could hide a mistake) must give the same
    outputs: one in which no layer reads about half of each group's channels, and one without these channels.
    """
    draw = torch.Generator().manual_seed(0)
    probe = _randomised(model, draw)
    images = torch.randn(images.shape, generator=draw, dtype=torch.float64).to(images.device)
    kept = {group.name: torch.rand(group.num_channels, generator=draw) < 0.5 for group in groups}
    for stays in kept.values():
        stays[-1] = False
        stays[0] = True
    if _removable(probe, groups, kept, images):
        return
    wrong = [group.name for group in groups if not _removable(probe, [group], kept, images)]
    raise ValueError(
        f"the channels of {type(model).__name__} cannot be removed one by one: without some of those made by "
        f"{', '.join(wrong) or 'all its layers'} its outputs are wrong. Choose another network, or prune weights "
        "without removing channels"
    )


def _removable(probe: nn.Module, groups: Sequence[Group], kept: slicing.Kept, images: Tensor) -> bool:
    whole, small = copy.deepcopy(probe), copy.deepcopy(probe)
    slicing.stop_reading(whole, groups, kept)
    slicing.slice_channels(small, groups, kept)
    try:
        with torch.no_grad():
            return difference(whole(images), small(images)) <= TOLERANCE
    except (RuntimeError, IndexError):  # the shapes do not fit
        return False


def _randomised(model: nn.Module, draw: torch.Generator) -> nn.Module:
    """A copy in float64 and eval mode with random weights, so that every channel changes the outputs."""
    probe = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        for name, parameter in probe.named_parameters():
            noise = torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
            if parameter.dim() > 1:
                parameter.copy_(noise * (2 / parameter[0].numel()) ** 0.5)
            else:
                parameter.copy_(0.1 * noise if name.endswith("bias") else 1 + 0.1 * noise)
        for module in probe.modules():
            if isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None:
                module.running_mean.copy_(0.1 * torch.randn(module.num_features, generator=draw, dtype=torch.float64))
                module.running_var.copy_(0.5 + torch.rand(module.num_features, generator=draw, dtype=torch.float64))
    return probe


def difference(outputs: Tensor, others: Tensor) -> float:
    """The largest difference, relative to the largest of `outputs` or 1; infinite for different shapes or nan."""
    if outputs.shape != others.shape:
        return float("inf")
    found = float((outputs - others).abs().max() / outputs.abs().max().clamp(min=1))
    return found if found == found else float("inf")
