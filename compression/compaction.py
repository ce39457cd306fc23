"""Compaction: a pruned network -> a really smaller one with the same outputs.

Removed are the channels that gates have closed, and those that masks left dead: channels that hold nothing of the
input, or that nothing on the way to the output reads. A channel that holds nothing of the input may still hold a
constant, from a bias or a BatchNorm's shift; it is folded into the layers that read it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from compression import gates, slicing
from compression.channels import TOLERANCE, difference, example_images
from compression.dependencies import Group, Member, trace
from compression.liveness import Liveness, liveness
from compression.models.resnet_cifar import ChannelShortcut
from compression.operators import check


def compact(model: nn.Module, input_shape: Sequence[int] | Tensor = (3, 32, 32)) -> nn.Module:
    """`model` without its closed and its dead channels, as a new network of plain layers; `model` stays as it was.

    input_shape: (C, H, W), or example images (N, C, H, W).
    Precision, device, memory format and train or eval mode are the model's. A group whose channels are all dead keeps
    one of them. The outputs are compared, in eval mode and float64, before the network is returned.
    Errors: ValueError that names an operator or module through which channels cannot be followed, a gate that is half
    open, and the difference if the outputs differ.
    """
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
    if "arch" in vars(model):
        layers = {**vars(model)["arch"].get("layers", {}), **slicing.changed_layers(small, slicing.shapes(model))}
        vars(small)["arch"] = {**vars(model)["arch"], **({"layers": layers} if layers else {})}
    return small


def _alive(group: Group, model: nn.Module, found: Liveness) -> Tensor:
    """bool (num_channels,): the channels that must stay as they are."""
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
    """Hand the constants of the channels that are about to go to the layers that read them.

    Where zeros are padded to what a convolution reads, a constant is none at the border and no bias replaces it. There
    one channel of constants stays (in `kept`), and its weights take over the others', scaled.
    """
    constants = {
        member.layer: _constants(member, found, ~kept)
        for member in group.consumers
        if not isinstance(model.get_submodule(member.layer), ChannelShortcut)
    }
    merged = {}
    for member in group.consumers:
        values = constants.get(member.layer)
        if values is not None and values.any() and not _folds_into_bias(model.get_submodule(member.layer)):
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
    """(inputs of the member's layer,): what it reads of the channels chosen by `of`; 0 elsewhere."""
    values = torch.zeros_like(found.constant[member.layer])
    places = torch.tensor(member.indices)[of].flatten().to(values.device)
    read = found.read[member.layer][places]
    values[places] = torch.where(read, found.constant[member.layer][places], 0)
    return values.cpu()


def _folds_into_bias(layer: nn.Module) -> bool:
    """Whether a constant input adds the same to every output position."""
    if isinstance(layer, nn.Linear):
        return True
    # A subclass may pad by itself.
    plain = type(layer) in (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return plain and (layer.padding_mode != "zeros" or not any(layer.padding))  # type: ignore[arg-type]


def _compare(original: nn.Module, small: nn.Module, input_shape: Sequence[int] | Tensor) -> None:
    """ValueError if the outputs differ on new images; both networks in float64 and eval mode."""
    images = example_images(small, input_shape, num=4, seed=1)
    with torch.no_grad():
        found = difference(original(images), small(images))
    if not found <= TOLERANCE:
        raise ValueError(
            f"{type(original).__name__} without its dead channels gives other outputs: they differ by {found:.3g} "
            f"of the largest, more than {TOLERANCE:g}"
        )


def _restore(small: nn.Module, model: nn.Module) -> None:
    """Give `small`, in place, the precision, the memory format and the modes of `model`."""
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
    if any(is_channels_last(weight) for weight in weights.values()):
        small.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def is_channels_last(weight: Tensor) -> bool:
    """Whether a convolution's weight lies in memory channels last, and could lie otherwise."""
    return weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
