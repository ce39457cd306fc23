"""Networks whose channels can be followed by hand, and ways of pruning any network."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compression import channels, gates
from compression.masks import Masks, prunable

SMALL = (3, 8, 8)
M = TypeVar("M", bound=nn.Module)


def sequence(*, padding: int = 1, bias: bool = False) -> nn.Sequential:
    """Two convolutions and a classifier that sees 2x2 positions of each of 5 channels."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 5, 3, padding=padding, bias=bias),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(20, 7),
    )


class Block(nn.Module):
    """A stem, a convolution in 2 groups, squeeze and excitation, and a shortcut round all of it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 1)
        self.expand = nn.Conv2d(6, 8, 1)
        self.grouped = nn.Conv2d(8, 4, 3, padding=1, groups=2)
        self.reduce = nn.Linear(4, 2)
        self.excite = nn.Linear(2, 4)
        self.project = nn.Conv2d(4, 6, 1)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.stem(x))
        y = F.relu(self.grouped(F.relu(self.expand(x))))
        scale = self.excite(F.relu(self.reduce(y.mean(dim=(2, 3))))).sigmoid()
        y = y * scale[:, :, None, None]
        return self.fc((x + self.project(y)).mean(dim=(2, 3)))


def settle(model: M, shape: tuple[int, int, int], seed: int = 0) -> M:
    """The model in float64 and eval mode, with all kinds of biases and scales, after passes in train mode."""
    draw = torch.Generator().manual_seed(seed)
    model.double().train()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=draw, dtype=torch.float64))
        for _ in range(2):
            model(1 + torch.randn(4, *shape, generator=draw, dtype=torch.float64))
    return model.eval()


def images(shape: tuple[int, int, int], num: int = 3, seed: int = 5) -> Tensor:
    return torch.randn(num, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close_half(model: nn.Module, shape: tuple[int, int, int], seed: int = 0) -> gates.Gates:
    """Gates of which about half are closed."""
    gated = gates.attach(model, channels.channel_groups(model, shape), shape)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for m in gates.gate_parameters(model):
            m.copy_(torch.rand(m.shape, generator=draw) - 0.5)
    return gated


def half_of_the_filters(model: nn.Module, seed: int = 0) -> Masks:
    """Masks that keep about half of the filters of each layer but the last, and the first of each."""
    draw = torch.Generator().manual_seed(seed)
    masks = {}
    for name, weight in prunable(model).items():
        kept = torch.rand(len(weight), generator=draw) < 0.5
        kept[0] = True
        masks[name] = kept.view(-1, *[1] * (weight.dim() - 1)).expand(weight.shape).clone()
    last = list(masks)[-1]
    masks[last] = torch.ones_like(masks[last])
    return Masks(masks)
