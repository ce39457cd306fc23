"""Every architecture under one name, and the description from which an artefact builds it again."""

import difflib
import json
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from torch import nn

from compression.choose import choose
from compression.models import hubs, own, resnet, vgg_cifar
from compression.models.resnet_cifar import ResNetCIFAR
from compression.models.vgg_cifar import VGG

MODELS: dict[str, Callable[..., nn.Module]] = {
    **{f"resnet{depth}": partial(ResNetCIFAR, depth) for depth in (20, 32, 44, 56, 110)},
    **{name: partial(VGG, layout) for name, layout in vgg_cifar.LAYOUTS.items()},
    **{f"resnet{depth}_small": partial(resnet.small_images, depth) for depth in (18, 34, 50)},
    "resnet18_small_double": partial(resnet.small_images, 18, stage_widths=[128, 256, 512, 1024]),
    **{f"resnet{depth}": partial(resnet.imagenet, depth) for depth in (18, 34, 50)},
    "mobilenet_v2": hubs.mobilenet_v2,
    "mobilenet_v2_small": hubs.mobilenet_v2_small,
}


class Hub(NamedTuple):
    """A library of classifiers: all their names, and the function that builds one."""

    names: Callable[[], list[str]]
    build: Callable[..., nn.Module]


HUBS: dict[str, Hub] = {
    "timm": Hub(hubs.timm_names, hubs.timm_classifier),
    "torchvision": Hub(hubs.torchvision_names, hubs.torchvision_classifier),
}
"""The part of a name before its slash ("timm/convnext_tiny") -> whose classifiers the rest names."""


def check_name(name: str) -> None:
    """ValueError if no architecture has this name. Builds nothing; imports a hub or your module only for its names."""
    if own.is_own(name):
        own.find(name)
        return
    prefix, slash, rest = name.partition("/")
    if not slash:
        choose("model", name, MODELS)
        return
    among = choose("hub of models", prefix, HUBS).names()
    if rest not in among:
        near = difflib.get_close_matches(rest, among, n=5, cutoff=0.4)
        hint = f"the nearest are: {', '.join(f'{prefix}/{one}' for one in near)}" if near else "nothing is like it"
        raise ValueError(f"{prefix} has no classifier {rest!r}; {hint}")


def build(name: str, num_classes: int, allow_import: bool = True, **arguments: Any) -> nn.Module:
    """The named architecture with random weights (from torch's global generator).

    allow_import: whether a network of the form "package.module:function" may be imported.

    The arguments are the architecture's own (`widths`, `stage_widths`, `in_channels`...), plain JSON values. The model
    carries its description as `model.arch`: {"name", "num_classes", and the arguments}. Errors: ValueError for an
    unknown name or impossible widths.
    """
    arguments = json.loads(json.dumps(arguments))
    if own.is_own(name):
        model = own.build(name, num_classes, allow_import, **arguments)
    else:
        check_name(name)
        prefix, slash, rest = name.partition("/")
        model = HUBS[prefix].build(rest, num_classes, **arguments) if slash else MODELS[name](num_classes, **arguments)
    vars(model)["arch"] = {"name": name, "num_classes": num_classes, **arguments}
    return model
