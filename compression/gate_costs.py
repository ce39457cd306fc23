"""The cost of a network as a function of the number of channels in each group."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compression import slicing
from compression.cost import weight_uses
from compression.dependencies import Group, is_grouped
from compression.masks import PRUNABLE_LAYERS


def quadratic_costs(model: nn.Module, groups: Sequence[Group], images: Tensor) -> tuple[Tensor, Tensor]:
    """(MACs, parameters) of `model` as float64 matrices Q of shape (1 + num_groups, 1 + num_groups).

    A layer's cost is proportional to the product of its numbers of input and output channels. So with
    s = (1, channels of the first group, of the second...), the cost of the network is s'Qs.
    images: (N, C, H, W), for one forward pass that counts how often weights are used.
    """
    layers = dict(model.named_modules())
    sides: dict[tuple[str, str], Tensor] = {}
    for number, group in enumerate(groups, 1):
        for member in group.members:
            default = torch.zeros(len(groups) + 1, dtype=torch.float64)
            default[0] = slicing.size(layers[member.layer], member)
            side = sides.setdefault((member.layer, member.side), default)
            each = len(member.indices[0])
            side[number] += each
            side[0] -= each * group.num_channels
    one = torch.zeros(len(groups) + 1, dtype=torch.float64)
    one[0] = 1
    macs, parameters = torch.zeros(2, len(one), len(one), dtype=torch.float64)
    uses = weight_uses(model, images[:1])
    for name, layer in layers.items():
        own = sum(p.numel() for p in layer.parameters(recurse=False))
        outputs = sides.get((name, "out"))
        if isinstance(layer, PRUNABLE_LAYERS):
            outputs = slicing.width(layer, "out") * one if outputs is None else outputs
            inputs = sides.get((name, "in"), slicing.width(layer, "in") * one)
            if is_grouped(layer):
                inputs = layer.weight.shape[1] * one
            weights = torch.outer(outputs, inputs) * layer.weight[0, 0].numel()
            parameters += weights
            macs += weights * uses.get(name, 0)
            if layer.bias is not None:
                parameters += torch.outer(outputs, one)
        elif isinstance(layer, _BatchNorm) and outputs is not None:
            parameters += torch.outer(outputs, one) * (own // layer.num_features)
        else:
            parameters[0, 0] += own
    return macs, parameters
