"""Every architecture under one name, and the description from which an artefact builds it again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from compression.choose import choose
from compression.models import resnet
from compression.models.resnet_cifar import ResNetCIFAR

MODELS: dict[str, Callable[..., nn.Module]] = {
    "resnet20": lambda num_classes, **kw: ResNetCIFAR(20, num_classes, **kw),
    "resnet32": lambda num_classes, **kw: ResNetCIFAR(32, num_classes, **kw),
    "resnet56": lambda num_classes, **kw: ResNetCIFAR(56, num_classes, **kw),
    "resnet18_small": lambda num_classes: resnet.small_images(18, num_classes),
    "resnet18": lambda num_classes: resnet.imagenet(18, num_classes),
    "resnet34": lambda num_classes: resnet.imagenet(34, num_classes),
    "resnet50": lambda num_classes: resnet.imagenet(50, num_classes),
}


def build(name: str, num_classes: int, **arguments: Any) -> nn.Module:
    """The named architecture with random weights (from torch's global generator).

    The model carries its description as `model.arch`: {"name", "num_classes", and the arguments}.
    """
    model = choose("model", name, MODELS)(num_classes, **arguments)
    vars(model)["arch"] = {"name": name, "num_classes": num_classes, **arguments}
    return model
