"""Compaction: a pruned network -> a smaller network with the same outputs.

It removes the channels that gates have closed or masks have made dead: they do not depend on the network's input, or
its output does not depend on them. Constants that they hold (from biases) are folded into the layers that read them.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules.batchnorm import _BatchNorm

from compression import gates, slicing
from compression.channels import TOLERANCE, difference, example_images
from compression.dependencies import Group, Member, trace
from compression.masks import PRUNABLE_LAYERS
from compression.models.resnet_cifar import ChannelShortcut
from compression.modules import is_channels_last
from compression.operators import check


def compact(model: nn.Module, input_shape: Sequence[int] | Tensor = (3, 32, 32)) -> nn.Module:
    """`model` without its closed and dead channels, as a new network of plain layers. `model` is not changed.

    input_shape: (C, H, W), or example images (N, C, H, W).
    Precision, device, memory format and train or eval mode are the model's. A group with only dead channels keeps one
    of them. The outputs are compared in eval mode and float64 before the network is returned.
    Errors: ValueError that names an unsupported operator or module, or a half-open gate, or that gives the difference
    if the outputs differ.
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
    images = example_images(small, input_shape, num=4, seed=1)
    with torch.no_grad():
        differ = difference(original(images), small(images))
    if not differ <= TOLERANCE:
        raise ValueError(
            f"{type(model).__name__} without its dead channels gives different outputs: they differ by {differ:.3g} "
            f"of the largest output, more than {TOLERANCE:g}"
        )
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
    """(inputs of the member's layer,): the constants that it reads from the channels `of`; 0 elsewhere."""
    values = torch.zeros_like(found.constant[member.layer])
    places = torch.tensor(member.indices)[of].flatten().to(values.device)
    read = found.read[member.layer][places]
    values[places] = torch.where(read, found.constant[member.layer][places], 0)
    return values.cpu()


def _folds_into_bias(layer: nn.Module) -> bool:
    """Whether a constant input adds the same value at every output position."""
    if isinstance(layer, nn.Linear):
        return True
    # A subclass may do its own padding.
    plain = type(layer) in (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return plain and (layer.padding_mode != "zeros" or not any(layer.padding))  # type: ignore[arg-type]


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


@dataclass(frozen=True)
class Liveness:
    """Which inputs of each layer depend on the network's input, and on which its output depends: name -> (inputs,).

    varies: the layer's input depends on the network's input. read: the network's output depends on it.
    constant: the value of an input that does not vary; nan if it depends on the position in space.
    """

    varies: Mapping[str, Tensor]
    read: Mapping[str, Tensor]
    constant: Mapping[str, Tensor]


def liveness(model: nn.Module, layers: Sequence[str], images: Tensor) -> Liveness:
    """The liveness of the named layers' inputs. model and images (N, C, H, W) in float64, the model in eval mode.

    It depends only on which weights are zero. In a copy in which all others are positive no paths cancel and no ReLU is
    closed, so that a tangent of the input, or a gradient of the output, reaches exactly the channels with a non-zero
    path.
    """
    probe = _positive(model)
    positive = SCALE * (1 + images.abs())
    varies: dict[str, Tensor] = {}
    with forward_ad.dual_level(), torch.no_grad():

        def record_tangent(name: str, inputs: Tensor) -> None:
            tangent = forward_ad.unpack_dual(inputs).tangent
            found = torch.zeros_like(inputs, dtype=torch.bool) if tangent is None else tangent != 0
            varies[name] = found.movedim(1, 0).flatten(1).any(dim=1)

        with _hooked(probe, layers, record_tangent):
            probe(forward_ad.make_dual(positive, 1 + images.abs()))
    leaves: dict[str, Tensor] = {}

    def add_leaf(name: str, inputs: Tensor) -> Tensor:
        leaves[name] = torch.zeros_like(inputs, requires_grad=True)
        return inputs + leaves[name]

    with torch.enable_grad(), _hooked(probe, layers, add_leaf):
        output = probe(positive).sum()
    gradients: Sequence[Tensor] = [torch.zeros_like(leaf) for leaf in leaves.values()]
    if output.requires_grad:
        gradients = torch.autograd.grad(output, list(leaves.values()), materialize_grads=True)
    found = zip(leaves, gradients, strict=True)
    read = {name: (gradient != 0).movedim(1, 0).flatten(1).any(dim=1) for name, gradient in found}
    return Liveness(varies, read, _values(model, layers, images))


SCALE, SHIFT, GAIN = 1e-2, 1e-3, 0.25
"""Of the positive copy: scale of the inputs, value of biases, sum of the weights of one output. Small, so that residual
streams grow slowly and stay far below 6, where ReLU6 saturates."""


def _positive(model: nn.Module) -> nn.Module:
    """A copy with weights that are zero where the model's are, and otherwise small and positive."""
    probe = copy.deepcopy(model).requires_grad_(False)
    for layer in probe.modules():
        if isinstance(layer, PRUNABLE_LAYERS):
            used = (layer.weight != 0).double().flatten(1)
            layer.weight.copy_((GAIN * used / used.sum(dim=1, keepdim=True).clamp(min=1)).view_as(layer.weight))
            if layer.bias is not None:
                layer.bias.copy_((layer.bias != 0) * SHIFT)
        elif isinstance(layer, _BatchNorm):
            if layer.running_mean is not None and layer.running_var is not None:
                layer.running_mean.copy_((layer.running_mean != 0) * -SHIFT)
                layer.running_var.fill_(1)
            if layer.affine:
                layer.weight.copy_(layer.weight != 0)
                layer.bias.copy_((layer.bias != 0) * SHIFT)
        else:
            for parameter in layer.parameters(recurse=False):
                parameter.abs_()
    return probe


def _values(model: nn.Module, layers: Sequence[str], images: Tensor) -> dict[str, Tensor]:
    """The value of each input of the named layers; nan if it differs between images or positions."""
    found: dict[str, Tensor] = {}

    def measure(name: str, inputs: Tensor) -> None:
        values = inputs.movedim(1, 0).flatten(1)
        low, high = values.amin(dim=1), values.amax(dim=1)
        same = high - low <= ROUNDING * high.abs().clamp(min=1)
        found[name] = torch.where(same, (low + high) / 2, torch.nan)

    with torch.no_grad(), _hooked(model, layers, measure):
        model(images)
    return found


ROUNDING = 1e-13
"""Relative difference up to which two float64 values count as equal."""


def _hooked(model: nn.Module, layers: Sequence[str], hook: Callable[[str, Tensor], Any]) -> contextlib.ExitStack:
    """Until the stack is closed, call `hook(layer name, input)` before each layer; a result replaces the input."""
    handles = contextlib.ExitStack()
    for name in layers:
        before = functools.partial(lambda name, _, inputs: hook(name, inputs[0]), name)
        handles.enter_context(model.get_submodule(name).register_forward_pre_hook(before))
    return handles
