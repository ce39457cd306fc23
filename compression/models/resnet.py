"""torchvision's ResNets for ImageNet and, with another stem, for small images, optionally with other widths."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from compression.choose import check_widths

STAGE_WIDTHS = (64, 128, 256, 512)
STEM_WIDTH = 64


def imagenet(depth: int, num_classes: int, stage_widths: Sequence[int] | None = None) -> nn.Module:
    """torchvision's ResNet of 18, 34 or 50 layers with random weights.

    stage_widths: channels of the four stages (a bottleneck block has four times as many outputs). The stem keeps 64
    channels, all blocks of a stage are equal, and a shortcut has a 1x1 projection exactly if its shapes differ.
    """
    from torchvision import models  # the import takes seconds, and the networks for small images do not need it

    model = getattr(models, f"resnet{depth}")(num_classes=num_classes)
    if stage_widths is not None:
        widths = check_widths("stage_widths", "stage", stage_widths, len(STAGE_WIDTHS))
        if widths != list(STAGE_WIDTHS):
            _change_widths(model, widths, num_classes)
    return model


def small_images(depth: int, num_classes: int, stage_widths: Sequence[int] | None = None) -> nn.Module:
    """The ResNet with a 3x3 stem of stride 1 and without max-pool, as used in papers for 32 and 64 pixels."""
    model: Any = imagenet(depth, num_classes, stage_widths)
    model.conv1 = nn.Conv2d(3, STEM_WIDTH, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    return model


def _change_widths(model: Any, widths: Sequence[int], num_classes: int) -> None:
    """Replace the stages by ones of `widths`, and the classifier to fit."""
    block, model.inplanes = type(model.layer1[0]), STEM_WIDTH
    for place, width in enumerate(widths, 1):
        num_blocks = len(getattr(model, f"layer{place}"))
        stage = model._make_layer(block, width, num_blocks, stride=1 if place == 1 else 2)
        for module in stage.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        setattr(model, f"layer{place}", stage)
    model.fc = nn.Linear(model.inplanes, num_classes)
