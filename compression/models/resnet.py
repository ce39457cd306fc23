"""ImageNet's ResNets from torchvision, and the one with a stem for small images."""

from __future__ import annotations

from torch import nn


def imagenet(depth: int, num_classes: int) -> nn.Module:
    """torchvision's ResNet of 18, 34 or 50 layers with random weights."""
    from torchvision import models  # takes seconds to import, and the small networks do without

    return getattr(models, f"resnet{depth}")(num_classes=num_classes)


def small_images(depth: int, num_classes: int) -> nn.Module:
    """The same with a 3x3 stem of stride 1 and no max-pool, as papers use it at 32 and 64 pixels."""
    model = imagenet(depth, num_classes)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    return model
