"""Liveness: which channels of a pruned network hold something of the input and are read on the way to the output.

Both are questions about where the zeros lie, whatever the other values are. They are asked of a copy whose other
weights are all positive: there no two paths cancel and no ReLU closes, so a tangent of the input reaches a channel
exactly if some path does, and so does a gradient from the output.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules.batchnorm import _BatchNorm

from compression.masks import PRUNABLE_LAYERS


@dataclass(frozen=True)
class Liveness:
    """Of each layer's inputs, by layer name: (inputs,) bools and values.

    varies: depends on the network's input. read: the layer's outputs depend on it, and the network's on those.
    constant: the value where it does not vary; nan where the value depends on the position in space.
    """

    varies: Mapping[str, Tensor]
    read: Mapping[str, Tensor]
    constant: Mapping[str, Tensor]


def liveness(model: nn.Module, layers: Sequence[str], images: Tensor) -> Liveness:
    """What the named layers of `model` read. model and images (N, C, H, W): in float64, the model in eval mode."""
    probe = _positive(model)
    positive = SCALE * (1 + images.abs())
    varies: dict[str, Tensor] = {}
    with forward_ad.dual_level(), torch.no_grad():

        def note_tangent(name: str, inputs: Tensor) -> None:
            tangent = forward_ad.unpack_dual(inputs).tangent
            found = torch.zeros_like(inputs, dtype=torch.bool) if tangent is None else tangent != 0
            varies[name] = _channels_first(found).flatten(1).any(dim=1)

        with _watched(probe, layers, note_tangent):
            probe(forward_ad.make_dual(positive, 1 + images.abs()))
    leaves: dict[str, Tensor] = {}

    def add_leaf(name: str, inputs: Tensor) -> Tensor:
        leaves[name] = torch.zeros_like(inputs, requires_grad=True)
        return inputs + leaves[name]

    with torch.enable_grad(), _watched(probe, layers, add_leaf):
        output = probe(positive).sum()
    gradients: Sequence[Tensor] = [torch.zeros_like(leaf) for leaf in leaves.values()]
    if output.requires_grad:
        gradients = torch.autograd.grad(output, list(leaves.values()), materialize_grads=True)
    read = {
        name: (_channels_first(gradient) != 0).flatten(1).any(dim=1)
        for name, gradient in zip(leaves, gradients, strict=True)
    }
    return Liveness(varies, read, _constants(model, layers, images))


SCALE, SHIFT, GAIN = 1e-2, 1e-3, 0.25
"""Of the positive copy: its inputs, its biases, and the sum of the weights that make one output. Small, so that
residual streams grow but slowly and stay far below 6, where ReLU6 closes."""


def _positive(model: nn.Module) -> nn.Module:
    """A copy whose weights are zero where the model's are, else positive, and small enough not to grow with depth."""
    probe = copy.deepcopy(model).requires_grad_(False)
    for layer in probe.modules():
        if isinstance(layer, PRUNABLE_LAYERS):
            used = (layer.weight != 0).double().flatten(1)
            layer.weight.copy_((GAIN * used / used.sum(dim=1, keepdim=True).clamp(min=1)).view_as(layer.weight))
            if layer.bias is not None:
                layer.bias.copy_((layer.bias != 0) * SHIFT)
        elif isinstance(layer, _BatchNorm):
            _make_positive(layer)
        else:
            for parameter in layer.parameters(recurse=False):
                parameter.abs_()
    return probe


def _make_positive(layer: _BatchNorm) -> None:
    if layer.running_mean is not None and layer.running_var is not None:
        layer.running_mean.copy_((layer.running_mean != 0) * -SHIFT)
        layer.running_var.fill_(1)
    if layer.affine:
        layer.weight.copy_(layer.weight != 0)
        layer.bias.copy_((layer.bias != 0) * SHIFT)


def _constants(model: nn.Module, layers: Sequence[str], images: Tensor) -> dict[str, Tensor]:
    """Each input of the named layers, averaged over images and positions; nan where it is not the same everywhere."""
    found: dict[str, Tensor] = {}

    def measure(name: str, inputs: Tensor) -> None:
        values = _channels_first(inputs).flatten(1)
        low, high = values.amin(dim=1), values.amax(dim=1)
        same = high - low <= ROUNDING * high.abs().clamp(min=1)
        found[name] = torch.where(same, (low + high) / 2, torch.nan)

    with torch.no_grad(), _watched(model, layers, measure):
        model(images)
    return found


ROUNDING = 1e-13
"""By how much float64 may tell apart what is the same number."""


def _channels_first(inputs: Tensor) -> Tensor:
    """(N, channels, ...) -> (channels, N, ...)."""
    return inputs.movedim(1, 0)


@contextlib.contextmanager
def _watched(model: nn.Module, layers: Sequence[str], see: Callable[[str, Tensor], Tensor | None]) -> Iterator[None]:
    """Show `see` what each layer is about to read; what it returns is read instead."""

    def show(name: str) -> Callable[..., Tensor | None]:
        return lambda _, inputs: see(name, inputs[0])

    hooks = [model.get_submodule(name).register_forward_pre_hook(show(name)) for name in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
