"""Dependencies: which channels of a network must be removed together, from torch-pruning's dependency graph.

Some layers make a channel (outputs), others carry it (norms, grouped convolutions) or read it (inputs). Channels
that are added or multiplied, as in a residual stream, count as one (Fang et al., CVPR 2023, arXiv 2301.12900).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compression import operators
from compression.models.resnet_cifar import ChannelShortcut

Side = Literal["in", "out"]
At = tuple[str, Side]
"""(layer name, one of its two sides)."""
Layers = Mapping[str, nn.Module]


@dataclass(frozen=True)
class Member:
    """The channels of a group on one side of a layer.

    layer: the module's name. side: its inputs or its outputs (for norms always "out").
    indices: for each channel of the group, its positions on that side; several after flattening, in a grouped
    convolution or in a group of GroupNorm.
    carried: the layer maps each channel to itself (norms, grouped convolutions).
    """

    layer: str
    side: Side
    indices: tuple[tuple[int, ...], ...]
    carried: bool


@dataclass(frozen=True)
class Group:
    """Channels that the same layers make, carry and read. Each of them can be removed by itself.

    name: the first of the layers that make the channels (with a "+" if an earlier group has that name).
    """

    name: str
    members: tuple[Member, ...]

    @property
    def num_channels(self) -> int:
        return len(self.members[0].indices)

    @property
    def producers(self) -> list[Member]:
        """Outputs of the layers that make the channels: convolutions, linear layers, option A's shortcuts."""
        return [member for member in self.members if member.side == "out" and not member.carried]

    @property
    def consumers(self) -> list[Member]:
        """Inputs of the layers that read the channels."""
        return [member for member in self.members if member.side == "in" and not member.carried]

    def __deepcopy__(self, memo: dict[int, Any]) -> Group:
        return self  # long and immutable


def trace(model: nn.Module, images: Tensor) -> list[Group]:
    """The groups as torch-pruning finds them, not yet verified. ValueError if there is none."""
    model = copy.deepcopy(model).eval().requires_grad_()
    layers: Layers = {n: module for n, module in model.named_modules() if isinstance(module, operators.LAYERS)}
    links = _Links()
    _join_coupled(links, model, layers, images[:1])
    for name, module in layers.items():
        if is_grouped(module):
            _join_blocks(links, name, module)
        elif isinstance(module, nn.GroupNorm):  # the channels of a group are normalised together
            size = module.num_channels // module.num_groups
            first = torch.arange(0, module.num_channels, size).repeat_interleave(size)
            links.join((name, "out"), first, (name, "out"), range(module.num_channels))
    groups = _gather(links, layers)
    if not groups:
        raise ValueError(f"{type(model).__name__} has no channel that can be removed: only its inputs and logits")
    return groups


def is_grouped(module: nn.Module) -> bool:
    """Whether the module is a grouped (or depthwise) convolution."""
    return isinstance(module, nn.modules.conv._ConvNd) and module.groups > 1


def is_norm(module: nn.Module) -> bool:
    """Whether the module is a BatchNorm or GroupNorm, which maps channels to themselves."""
    return isinstance(module, (_BatchNorm, nn.GroupNorm))


OUTPUT: At = ("", "out")
"""The logits."""


def _join_coupled(links: _Links, model: nn.Module, layers: Layers, images: Tensor) -> None:
    """Join the positions that hold the same channel."""
    import torch_pruning
    from torch_pruning.ops import _OutputOp

    class ShortcutPruner(torch_pruning.function.BasePruningFunc):
        """Declares option A's shortcut as a layer: its element-wise operators would couple unrelated channels."""

        TARGET_MODULES = ChannelShortcut  # type: ignore[assignment]

        def prune_out_channels(self, layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
            return layer

        def prune_in_channels(self, layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
            return layer

        def get_out_channels(self, layer: Any) -> int:
            return layer.out_channels

        def get_in_channels(self, layer: Any) -> int:
            return max(layer.source.tolist(), default=0) + 1

    graph = torch_pruning.DependencyGraph()
    with torch.enable_grad():
        pruners: Any = {ChannelShortcut: ShortcutPruner()}
        graph.build_dependency(
            model, images, lambda model, images: model(images), customized_pruners=pruners, verbose=False
        )
    names = {module: name for name, module in layers.items()}
    for name, module in layers.items():
        if module not in graph.module2node or is_norm(module):
            continue
        pruner: Any = graph.get_pruner_of_module(module)
        channels = range(pruner.get_out_channels(module))
        for item in graph.get_pruning_group(module, pruner.prune_out_channels, channels):
            target, handler = item.dep.target.module, item.dep.handler
            is_output = isinstance(target, _OutputOp)
            if target not in names and not is_output:
                continue
            side: Side = "out" if graph.is_out_channel_pruning_fn(handler) else "in"
            at = OUTPUT if is_output else (names[target], side)
            links.join((name, "out"), item.root_idxs, at, item.idxs)


def _join_blocks(links: _Links, name: str, module: Any) -> None:
    """The inputs and outputs of each group of a convolution are removed together."""
    first = torch.arange(module.groups) * (module.in_channels // module.groups)
    sides: dict[Side, int] = {"in": module.in_channels, "out": module.out_channels}
    for side, num in sides.items():
        links.join((name, "in"), first.repeat_interleave(num // module.groups), (name, side), range(num))


def _gather(links: _Links, layers: Layers) -> list[Group]:
    """Channels with the same layers form a group. Channels that are logits, or that no layer reads, are left out."""
    order = {name: number for number, name in enumerate(layers)}
    families: dict[tuple[tuple[str, Side, int], ...], list[dict[At, list[int]]]] = {}
    for channel in links.sets():
        if OUTPUT in channel:
            continue
        family = tuple((*at, len(channel[at])) for at in sorted(channel, key=lambda at: (order[at[0]], at[1])))
        families.setdefault(family, []).append(channel)
    groups: dict[str, Group] = {}
    for family, channels in families.items():
        channels.sort(key=lambda channel: [channel[layer, side][0] for layer, side, _ in family])
        members: tuple[Member, ...] = ()
        for layer, side, _ in family:
            indices = tuple(tuple(channel[layer, side]) for channel in channels)
            carried = is_grouped(layers[layer]) or is_norm(layers[layer])
            members = (*members, Member(layer, side, indices, carried))
        name = next((m.layer for m in members if m.side == "out" and not m.carried), "")
        while name in groups:  # a layer's outputs may belong to several groups
            name += "+"
        group = Group(name, members)
        if group.producers and group.consumers:
            groups[name] = group
    return sorted(groups.values(), key=lambda group: order[group.producers[0].layer])


class _Links:
    """A union-find over positions on the sides of layers: which of them hold the same channel."""

    def __init__(self) -> None:
        self.sides: dict[At, int] = {}
        self.pairs: list[tuple[Tensor, Tensor]] = []

    def join(self, at: At, places: Sequence[int] | Tensor, other: At, others: Sequence[int] | Tensor) -> None:
        """Each of `places` on one side holds the same channel as its counterpart in `others` on the other side."""
        self.pairs.append((self._numbers(at, places), self._numbers(other, others)))

    def _numbers(self, at: At, places: Sequence[int] | Tensor) -> Tensor:
        return self.sides.setdefault(at, len(self.sides)) * MOST + torch.as_tensor(places, dtype=torch.int64)

    def sets(self) -> list[dict[At, list[int]]]:
        """The channels: each as its positions on each side."""
        ones, others = (torch.cat(numbers) for numbers in zip(*self.pairs, strict=True))
        numbers, places = torch.unique(torch.cat([ones, others]), return_inverse=True)
        ones, others = places.chunk(2)
        label, before = torch.arange(len(numbers)), None
        while before is None or not torch.equal(label, before):
            before = label
            low = torch.minimum(label[ones], label[others])
            label = label.scatter_reduce(0, ones, low, "amin").scatter_reduce(0, others, low, "amin")
            label = label[label]
        sides = list(self.sides)
        found: dict[int, dict[At, list[int]]] = {}
        for number, channel in zip(numbers.tolist(), label.tolist(), strict=True):
            found.setdefault(channel, {}).setdefault(sides[number // MOST], []).append(number % MOST)
        return list(found.values())


MOST = 1 << 32
"""More positions than a layer has on one side."""
