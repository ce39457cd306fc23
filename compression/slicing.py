"""Slicing: layers with fewer channels, and the description of their shapes in an artefact."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from compression.dependencies import Group, Member, is_grouped
from compression.models.resnet_cifar import ChannelShortcut
from compression.operators import LAYERS

Kept = Mapping[str, Tensor]
"""Group name -> bool (num_channels,), True where the channel stays."""


def shape_of(layer: nn.Module) -> dict[str, Any]:
    """The settings that determine the shapes of a layer's tensors, as JSON values."""
    if isinstance(layer, _ConvNd):
        names = ("in_channels", "out_channels", "groups")
        return {name: getattr(layer, name) for name in names} | {"bias": layer.bias is not None}
    if isinstance(layer, nn.Linear):
        bias = layer.bias is not None
        return {"in_features": layer.in_features, "out_features": layer.out_features, "bias": bias}
    if isinstance(layer, _BatchNorm):
        return {"num_features": layer.num_features}
    if isinstance(layer, nn.GroupNorm):
        return {"num_channels": layer.num_channels, "num_groups": layer.num_groups}
    assert isinstance(layer, ChannelShortcut)
    return {"out_channels": layer.out_channels, "source": layer.source.tolist(), "target": layer.target.tolist()}


def resize(layer: nn.Module, shape: Mapping[str, Any]) -> None:
    """Give `layer` the shape of `shape_of`. Its tensors keep precision and device, but not their values."""
    if set(shape) != set(shape_of(layer)):
        raise ValueError(f"a {type(layer).__name__} is described by {sorted(shape_of(layer))}, not {sorted(shape)}")
    for name, value in shape.items():
        if name in ("source", "target"):
            setattr(layer, name, getattr(layer, name).new_tensor(value))
        elif name != "bias":
            setattr(layer, name, value)
    if isinstance(layer, _ConvNd):
        inputs = shape["in_channels"] // shape["groups"]
        _reallocate(layer, "weight", (shape["out_channels"], inputs, *layer.kernel_size))
        _set_bias(layer, shape["out_channels"], shape["bias"])
    elif isinstance(layer, nn.Linear):
        _reallocate(layer, "weight", (shape["out_features"], shape["in_features"]))
        _set_bias(layer, shape["out_features"], shape["bias"])
    elif isinstance(layer, _BatchNorm):
        for name in ("weight", "bias", "running_mean", "running_var"):
            _reallocate(layer, name, (shape["num_features"],))
    elif isinstance(layer, nn.GroupNorm):
        for name in ("weight", "bias"):
            _reallocate(layer, name, (shape["num_channels"],))


def _reallocate(layer: nn.Module, name: str, shape: Sequence[int]) -> None:
    old: Tensor | None = getattr(layer, name)
    if old is None:
        return
    new = old.detach().new_empty(shape)
    setattr(layer, name, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)


def _set_bias(layer: nn.Module, num: int, present: bool) -> None:
    like = layer.get_parameter("weight" if layer.bias is None else "bias")
    new = nn.Parameter(like.detach().new_zeros(num), like.requires_grad)
    layer.register_parameter("bias", new if present else None)


def add_bias(layer: nn.Module, values: Tensor) -> None:
    """Add `values` (outputs,) to a layer's bias, which is created if there is none."""
    weight = layer.get_parameter("weight")
    if layer.bias is None:
        layer.register_parameter("bias", nn.Parameter(torch.zeros_like(values), weight.requires_grad))
    with torch.no_grad():
        layer.get_parameter("bias").add_(values)


def slice_channels(model: nn.Module, groups: Sequence[Group], kept: Kept) -> None:
    """Remove from `model`, in place, the channels that are not in `kept`, from all layers."""
    layers = dict(model.named_modules())
    stays: dict[str, dict[str, Tensor]] = {}
    for group in groups:
        gone = ~kept[group.name].cpu()
        for member in group.members:
            sides = stays.setdefault(member.layer, {})
            side = sides.setdefault(member.side, torch.ones(size(layers[member.layer], member), dtype=torch.bool))
            side[torch.tensor(member.indices)[gone].flatten()] = False
    for name, sides in stays.items():
        if not all(side.all() for side in sides.values()):
            _slice(layers[name], sides.get("in"), sides.get("out"))


def size(layer: nn.Module, member: Member) -> int:
    """The number of channels on the member's side of its layer."""
    if isinstance(layer, ChannelShortcut) and member.side == "in":
        # A shortcut does not store its number of inputs, and may not read the last ones.
        return 1 + max(*layer.source.tolist(), *itertools.chain(*member.indices))
    return width(layer, member.side)


def width(layer: nn.Module, side: str) -> int:
    """Channels or features on a side ("in", "out") of a layer; not for the inputs of a shortcut."""
    shape = shape_of(layer)
    [found] = [
        shape[name]
        for name in (f"{side}_channels", f"{side}_features", "num_features", "num_channels")
        if name in shape
    ]
    return found


def _slice(layer: nn.Module, stays_in: Tensor | None, stays_out: Tensor | None) -> None:
    if isinstance(layer, ChannelShortcut):
        _slice_shortcut(layer, stays_in, stays_out)
        return
    rows = None if stays_out is None else stays_out.nonzero().flatten()
    columns = None if stays_in is None else stays_in.nonzero().flatten()
    shape = shape_of(layer)
    if isinstance(layer, _BatchNorm):
        assert rows is not None
        shape["num_features"] = len(rows)
    elif isinstance(layer, nn.GroupNorm):
        assert rows is not None
        assert stays_out is not None
        shape["num_channels"] = len(rows)
        # Groups are removed as a whole.
        shape["num_groups"] = int(stays_out.view(shape["num_groups"], -1).any(dim=1).sum())
    else:
        kind = "features" if isinstance(layer, nn.Linear) else "channels"
        if rows is not None:
            shape[f"out_{kind}"] = len(rows)
        if columns is not None:
            shape[f"in_{kind}"] = len(columns)
        if is_grouped(layer):
            assert stays_in is not None
            # Groups are removed as a whole, so the weight's second dimension stays.
            shape["groups"] = int(stays_in.view(shape["groups"], -1).any(dim=1).sum())
            columns = None
    found = {name: getattr(layer, name, None) for name in ("weight", "bias", "running_mean", "running_var")}
    old = {name: tensor.detach() for name, tensor in found.items() if isinstance(tensor, Tensor)}
    resize(layer, shape)
    for name, values in old.items():
        if rows is not None:
            values = values.index_select(0, rows.to(values.device))
        if columns is not None and name == "weight":
            values = values.index_select(1, columns.to(values.device))
        with torch.no_grad():
            getattr(layer, name).copy_(values)


def _slice_shortcut(layer: ChannelShortcut, stays_in: Tensor | None, stays_out: Tensor | None) -> None:
    pairs = list(zip(layer.source.tolist(), layer.target.tolist(), strict=True))
    shape = shape_of(layer)
    if stays_out is not None:
        place = (stays_out.cumsum(0) - 1).tolist()
        pairs = [(source, place[target]) for source, target in pairs if stays_out[target]]
        shape["out_channels"] = int(stays_out.sum())
    if stays_in is not None:
        place = (stays_in.cumsum(0) - 1).tolist()
        pairs = [(place[source], target) for source, target in pairs if stays_in[source]]
    resize(layer, {**shape, "source": [s for s, _ in pairs], "target": [t for _, t in pairs]})


def stop_reading(model: nn.Module, groups: Sequence[Group], kept: Kept) -> None:
    """Change `model`, in place, so that no layer reads the channels that are not in `kept`. Equals removing them."""
    layers = dict(model.named_modules())
    for group in groups:
        gone = ~kept[group.name].cpu()
        for member in group.consumers:
            layer, places = layers[member.layer], torch.tensor(member.indices)[gone].flatten()
            if isinstance(layer, ChannelShortcut):
                stays = torch.isin(layer.source.cpu(), places, invert=True).to(layer.source.device)
                layer.source, layer.target = layer.source[stays], layer.target[stays]
            else:
                with torch.no_grad():
                    layer.get_parameter("weight")[:, places.to(layer.get_parameter("weight").device)] = 0


def shapes(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Module name -> `shape_of` for every layer that can be made smaller."""
    return {name: shape_of(module) for name, module in model.named_modules() if isinstance(module, LAYERS)}
