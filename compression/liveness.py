"""Liveness: which channels of a pruned network depend on its input, and on which of them its output depends.

Both depend only on which kernels are zero. In a copy in which all others are positive no paths cancel and no ReLU is
closed, so that a tangent of the input, or a gradient of the output, reaches exactly the channels with a non-zero path.

What is found holds for images of every size. A kernel with one non-zero weight counts as a path, although a small map
may use only the centre of the kernel. And a constant that meets zero padding depends on the position from there on,
although a small map may show the same value everywhere.
"""

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
from torch.nn.modules.conv import _ConvNd

from compression.masks import PRUNABLE_LAYERS


@dataclass(frozen=True)
class Liveness:
    """For each layer's inputs, by layer name: (inputs,) bools and values.

    varies: the layer's input depends on the network's input, or on the position in space. read: the network's output
    depends on it.
    constant: the value of an input that does not vary; nan if it depends on the position in space.
    """

    varies: Mapping[str, Tensor]
    read: Mapping[str, Tensor]
    constant: Mapping[str, Tensor]


def liveness(model: nn.Module, layers: Sequence[str], images: Tensor) -> Liveness:
    """The liveness of the named layers' inputs. model and images (N, C, H, W) in float64, the model in eval mode."""
    padded = [name for name, module in model.named_modules() if pads_with_zeros(module)]
    constants = _constants(model, list(dict.fromkeys([*layers, *padded])), images)
    probe = _positive(model)
    positive = SCALE * (1 + images.abs())
    varies: dict[str, Tensor] = {}
    with forward_ad.dual_level(), torch.no_grad():

        def record_tangent(name: str, inputs: Tensor) -> None:
            tangent = forward_ad.unpack_dual(inputs).tangent
            found = torch.zeros_like(inputs, dtype=torch.bool) if tangent is None else tangent != 0
            varies[name] = found.movedim(1, 0).flatten(1).any(dim=1)

        def vary_with_position(name: str, inputs: Tensor) -> Tensor:
            value, tangent = forward_ad.unpack_dual(inputs)
            nonzero = (constants[name] != 0).to(value.dtype).view(-1, *[1] * (value.dim() - 2)).expand_as(value)
            return forward_ad.make_dual(value, nonzero if tangent is None else tangent + nonzero)

        with _hooked(probe, layers, record_tangent), _hooked(probe, padded, vary_with_position):
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
    return Liveness(varies, read, {name: constants[name] for name in layers})


def pads_with_zeros(layer: nn.Module) -> bool:
    """Whether a constant input can give another value at the border of the output than inside."""
    if isinstance(layer, nn.AvgPool2d):
        return layer.count_include_pad and layer.padding not in (0, (0, 0))
    if not isinstance(layer, _ConvNd):
        return False
    # A subclass may do its own padding.
    plain = type(layer) in (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return not plain or (layer.padding_mode == "zeros" and layer.padding != "valid" and any(layer.padding))


SCALE, SHIFT, GAIN = 1e-2, 1e-3, 0.25
"""Of the positive copy: scale of the inputs, value of biases, sum of the weights of one output. Small, so that residual
streams grow slowly and stay far below 6, where ReLU6 saturates."""


def _positive(model: nn.Module) -> nn.Module:
    """A copy with weights that are zero where the model's are, and otherwise small and positive."""
    probe = copy.deepcopy(model).requires_grad_(False)
    for layer in probe.modules():
        if isinstance(layer, PRUNABLE_LAYERS):
            kernels = layer.weight.flatten(2) if layer.weight.dim() > 2 else layer.weight[..., None]
            used = (kernels != 0).any(dim=2, keepdim=True).expand_as(kernels).double().flatten(1)
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
    for name, layer in model.named_modules():
        if isinstance(layer, nn.GroupNorm):
            probe.set_submodule(name, _MixedGroups(layer))
    return probe


class _MixedGroups(nn.Module):
    """In place of a GroupNorm: each channel depends on all of its group, and nothing cancels."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self._groups = norm.num_groups
        self._gain = (norm.weight != 0).to(norm.weight.dtype) if norm.affine else None
        self._shift = (norm.bias != 0).to(norm.bias.dtype) * SHIFT if norm.affine and norm.bias is not None else None

    def forward(self, x: Tensor) -> Tensor:
        groups = x.view(len(x), self._groups, -1)
        y = x / 2 + (groups / 2).mean(dim=2, keepdim=True).expand_as(groups).reshape(x.shape)
        per_channel = (1, -1, *[1] * (x.dim() - 2))
        y = y if self._gain is None else y * self._gain.view(per_channel)
        return y if self._shift is None else y + self._shift.view(per_channel)


def _constants(model: nn.Module, layers: Sequence[str], images: Tensor) -> dict[str, Tensor]:
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
