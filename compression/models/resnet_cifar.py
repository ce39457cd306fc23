"""ResNet-20 to 110 for small images (He et al., CVPR 2016, arXiv 1512.03385, section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compression.choose import check_widths

STAGE_WIDTHS = (16, 32, 64)


class ChannelShortcut(nn.Module):
    """Option A: a shortcut without parameters that subsamples in space and pads channels with zeros.

    Input channel source[i] is copied to output channel target[i]; a network with removed channels has shorter lists.
    (N, in, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride)).
    """

    source: Tensor
    target: Tensor

    def __init__(self, out_channels: int, stride: int, source: Sequence[int], target: Sequence[int]) -> None:
        super().__init__()
        assert len(source) == len(target)
        self.out_channels = out_channels
        self.stride = stride
        self.register_buffer("source", torch.tensor(source, dtype=torch.int64), persistent=False)
        self.register_buffer("target", torch.tensor(target, dtype=torch.int64), persistent=False)

    @classmethod
    def padded(cls, in_channels: int, out_channels: int, stride: int) -> ChannelShortcut:
        """The paper's shortcut: all input channels in the middle of the output channels, zeros on both sides.

        If the output has fewer channels: the channels in the middle of the input.
        """
        num = min(in_channels, out_channels)
        source, target = (in_channels - num) // 2, (out_channels - num) // 2
        return cls(out_channels, stride, range(source, source + num), range(target, target + num))

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride].index_select(1, self.source)
        zeros = x.new_zeros(x.shape[0], self.out_channels, *x.shape[2:])
        return zeros.index_copy(1, self.target, x)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        unchanged = stride == 1 and in_channels == channels
        self.shortcut = nn.Identity() if unchanged else ChannelShortcut.padded(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNetCIFAR(nn.Module):
    """A 3x3 stem and three stages of 16, 32 and 64 channels: (N, in_channels, H, W) -> logits (N, num_classes).

    stage_widths: channels of the three stages. The stem has as many as the first stage, since it feeds its shortcut.
    """

    def __init__(
        self, depth: int, num_classes: int, in_channels: int = 3, stage_widths: Sequence[int] = STAGE_WIDTHS
    ) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth must be 6 n + 2 (20, 32, 44, 56, 110...), not {depth}")
        first, second, third = check_widths("stage_widths", "stage", stage_widths, len(STAGE_WIDTHS))
        blocks_per_stage = (depth - 2) // 6
        self.conv1 = nn.Conv2d(in_channels, first, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.stage1 = self._stage(first, first, 1, blocks_per_stage)
        self.stage2 = self._stage(first, second, 2, blocks_per_stage)
        self.stage3 = self._stage(second, third, 2, blocks_per_stage)
        self.fc = nn.Linear(third, num_classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)

    @staticmethod
    def _stage(in_channels: int, channels: int, stride: int, num_blocks: int) -> nn.Sequential:
        first = BasicBlock(in_channels, channels, stride)
        return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(num_blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.stage3(self.stage2(self.stage1(x)))
        return self.fc(x.mean(dim=(2, 3)))
