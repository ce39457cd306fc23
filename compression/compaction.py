"""Compaction: a pruned network -> a smaller network with the same outputs.

It removes the channels that gates have closed or masks have made dead: they do not depend on the network's input, or
its output does not depend on them. Constants that they hold (from biases) are folded into the layers that read them.
"""

import contextlib
import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from compression import gates, slicing
from compression.channels import TOLERANCE, difference, example_images
from compression.dependencies import Group, Member, trace
from compression.liveness import Liveness, liveness, pads_with_zeros
from compression.models.resnet_cifar import ChannelShortcut
from compression.modules import is_channels_last
from compression.operators import check


def compact(model: nn.Module, input_shape: Sequence[int] | Tensor | None = None) -> nn.Module:
    """`model` without its closed and dead channels, as a new network of plain layers. `model` is not changed.

    input_shape: (C, H, W), or example images (N, C, H, W); None: that with which the gates were attached.
    Precision, device, memory format and train or eval mode are the model's. A group with only dead channels keeps one
    of them. What is removed does not depend on the size of the images: the outputs are the same for each size that the
    network accepts. They are compared in eval mode and float64, on this size and on another, before it is returned.
    Errors: ValueError that names an unsupported operator or module, or a half-open gate, or that gives the difference
    if the outputs differ.
    """
    if input_shape is None:
        if (attached := gates.of(model)) is None:
            raise ValueError(f"give the input_shape (C, H, W) of {type(model).__name__}: it has no gates to tell it")
        input_shape = attached.input_shape
    original = copy.deepcopy(model).double().eval()
    original.zero_grad()
    small = copy.deepcopy(original)
    gates.remove(small)
    images = example_images(small, input_shape)
    check(small, images)
    groups = trace(small, images)
    found = liveness(small, sorted({member.layer for group in groups for member in group.consumers}), images)
    kept = {group.name: _alive(group, small, found) for group in groups}
    for group in groups:
        _fold(group, small, found, kept[group.name])
    slicing.slice_channels(small, groups, kept)
    _compare(original, small, input_shape)
    _restore(small, model)
    if arch := vars(model).get("arch"):
        before = slicing.shapes(model)
        changed = {name: shape for name, shape in slicing.shapes(small).items() if shape != before[name]}
        layers = {**arch.get("layers", {}), **changed}
        vars(small)["arch"] = {**arch, **({"layers": layers} if layers else {})}
    return small


def _alive(group: Group, model: nn.Module, found: Liveness) -> Tensor:
    """bool (num_channels,): the channels that must stay."""
    alive = torch.zeros(group.num_channels, dtype=torch.bool)
    for member in group.consumers:
        values = found.constant[member.layer].cpu()
        needed = found.varies[member.layer].cpu() | values.isnan()
        if isinstance(model.get_submodule(member.layer), ChannelShortcut):
            needed = needed | (values != 0)
        needed = needed & found.read[member.layer].cpu()
        alive |= needed[torch.tensor(member.indices)].any(dim=1)
    return alive


def _fold(group: Group, model: nn.Module, found: Liveness, kept: Tensor) -> None:
    """Fold the constants of the channels to be removed into the layers that read them.

    A convolution with zero padding reads zeros at the border in place of a constant, so a bias cannot replace it.
    There one constant channel stays (in `kept`, changed in place), and the scaled weights of the others are added to
    its weights.
    """
    constants = {
        member.layer: _constants(member, found, ~kept)
        for member in group.consumers
        if not isinstance(model.get_submodule(member.layer), ChannelShortcut)
    }
    merged = {}
    for member in group.consumers:
        values = constants.get(member.layer)
        if values is not None and values.any() and pads_with_zeros(model.get_submodule(member.layer)):
            merged[member.layer] = int(values.abs().argmax())
            kept |= (torch.tensor(member.indices) == merged[member.layer]).any(dim=1)
    if not kept.any():
        kept[0] = True
    for member in group.consumers:
        if member.layer not in constants:
            continue
        layer = model.get_submodule(member.layer)
        weight = layer.get_parameter("weight").detach()
        going = torch.zeros(weight.shape[1], dtype=torch.bool)
        going[torch.tensor(member.indices)[~kept].flatten()] = True
        values = (constants[member.layer] * going).to(weight.device)
        if not values.any():
            continue
        if member.layer in merged:
            place = merged[member.layer]
            ratios = values / constants[member.layer][place]
            weight[:, place] += torch.einsum("oi...,i->o...", weight, ratios)
        else:
            slicing.add_bias(layer, torch.einsum("oi...,i->o...", weight, values).reshape(len(weight), -1).sum(dim=1))


def _constants(member: Member, found: Liveness, of: Tensor) -> Tensor:
    """(inputs of the member's layer,): the constants that it reads from the channels `of`; 0 elsewhere."""
    values = torch.zeros_like(found.constant[member.layer])
    places = torch.tensor(member.indices)[of].flatten().to(values.device)
    read = found.read[member.layer][places]
    values[places] = torch.where(read, found.constant[member.layer][places], 0)
    return values.cpu()


def _compare(original: nn.Module, small: nn.Module, input_shape: Sequence[int] | Tensor) -> None:
    """ValueError if the outputs differ on new images of this size or of another; both in float64 and eval mode."""
    images = example_images(small, input_shape, num=4, seed=1)
    height, width = (side // 2 + 1 if side > SMALL else side * 3 // 2 + 1 for side in images.shape[2:])
    others = example_images(small, (images.shape[1], height, width), num=1, seed=2)
    with torch.no_grad():
        pairs = [(images, original(images))]
        with contextlib.suppress(RuntimeError, ValueError, AssertionError):  # the network has a fixed size
            pairs.append((others, original(others)))
        for given, expected in pairs:
            found = difference(expected, small(given))
            if not found <= TOLERANCE:
                raise ValueError(
                    f"{type(original).__name__} without its dead channels gives different outputs for images of "
                    f"{tuple(given.shape[2:])} pixels: they differ by {found:.3g} of the largest output, more than "
                    f"{TOLERANCE:g}"
                )


SMALL = 96
"""Height or width in pixels up to which the other size, on which outputs are compared, is larger."""


def _restore(small: nn.Module, model: nn.Module) -> None:
    """Give `small`, in place, the precision, memory format and modes of `model`."""
    modes: Mapping[str, nn.Module] = dict(model.named_modules())
    weights = {name.replace(".parametrizations.weight.original", ".weight"): p for name, p in model.named_parameters()}
    tensors = {**weights, **dict(model.named_buffers())}
    for name, module in small.named_modules():
        module.training = modes[name].training
        own = {**module._parameters, **module._buffers}
        for key, tensor in own.items():
            like = tensors.get(f"{name}.{key}" if name else key, tensors.get(f"{name}.weight" if name else "weight"))
            if tensor is not None and tensor.is_floating_point() and like is not None:
                tensor.data = tensor.data.to(like.dtype)
    if is_channels_last(model):
        small.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
