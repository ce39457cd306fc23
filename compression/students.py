"""Students: the dense, narrower network derived from a pruned teacher.

Prune-then-Distill (Park and No, ECCV 2022, arXiv 2109.14960): each layer of the student has as many weights as are left
in the teacher's. The rule for ResNets was not published: ours is that of `resnet_stage_widths`.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from compression import models
from compression.masks import Masks, prunable
from compression.models.resnet_cifar import ResNetCIFAR
from compression.models.vgg_cifar import VGG

SMALL = ("resnet18_small", "resnet34_small", "resnet50_small", "resnet18_small_double")
STAGED = ("resnet18", "resnet34", "resnet50", *SMALL)
"""Networks of torchvision's blocks, with one width for each stage."""

COLUMNS = ("part", "dense_width", "student_width", "dense_weights", "survivors", "student_weights")


def vgg_widths(survivors: Sequence[int], in_channels: int = 3, kernel: int = 3) -> list[int]:
    """Widths c_l = round(n_l / (kernel^2 c_{l-1})), at least 1, of a chain of convolutions with n_l remaining weights.

    The rounded c_{l-1} is used, so that rounding errors do not add up. ValueError that names the first empty layer.
    """
    _check_not_empty("layer", survivors)
    widths = []
    for num in survivors:
        in_channels = max(1, round(num / (kernel**2 * in_channels)))
        widths.append(in_channels)
    return widths


def resnet_stage_widths(
    dense_widths: Sequence[int],
    survivors: Sequence[int],
    weights: Sequence[int],
    count: Callable[[Sequence[float]], float],
    budget: int,
) -> list[int]:
    """Stage widths f * dense * sqrt(survivors / weights), with f such that the network has `budget` weights.

    survivors, weights: of each stage, the remaining and all weights. count: stage widths -> convolution and linear
    weights of the network. Each width is then rounded, or rounded and changed by 1, so that the total is nearest to the
    budget. ValueError for an empty stage, or a budget below that of the narrowest network.
    """
    _check_not_empty("stage", survivors)
    if count([1] * len(dense_widths)) > budget:
        raise ValueError(f"stages of width 1 have more than the {budget} remaining weights: prune the teacher less")
    shape = [dense * math.sqrt(left / num) for dense, left, num in zip(dense_widths, survivors, weights, strict=True)]
    low, high = 0.0, 1.0
    while count([high * width for width in shape]) < budget:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if count([middle * width for width in shape]) < budget else (low, middle)
    exact = [low * width for width in shape]
    near = [sorted({max(1, round(width) + step) for step in (-1, 0, 1)}) for width in exact]

    def misses(widths: Sequence[int]) -> tuple[float, float]:
        return abs(count(widths) - budget), sum((a / b - 1) ** 2 for a, b in zip(widths, exact, strict=True))

    return list(min(itertools.product(*near), key=misses))


def _check_not_empty(part: str, survivors: Sequence[int]) -> None:
    """ValueError that names the first layer or stage without weights."""
    for place, num in enumerate(survivors, 1):
        if num < 1:
            raise ValueError(f"{part} {place} of {len(survivors)} has no weight left: prune the teacher less")


def plan(model: nn.Module, masks: Masks) -> dict[str, Any]:
    """The student derived from a teacher (made by `compression.models.build`) and its masks, as plain JSON:

    arch: for `compression.models.build`. rows: a dict of `COLUMNS` for each layer (VGG) or stage (ResNet).
    dense_weights, survivors, student_weights: of all convolution and linear layers.
    Errors: ValueError for masks of another network, for other families, and for empty layers or stages.
    """
    arch, dense = vars(model)["arch"], prunable(model)
    if {name: mask.shape for name, mask in masks.items()} != {name: weight.shape for name, weight in dense.items()}:
        raise ValueError(f"the masks are not those of this {arch['name']}: they must cover its prunable layers")
    argument, dense_widths = _parts(arch, model)
    parts = list(dense_widths)
    dense_weights = [_within(part, {name: weight.numel() for name, weight in dense.items()}) for part in parts]
    survivors = [_within(part, {name: int(mask.sum()) for name, mask in masks.items()}) for part in parts]
    empty = [part for part, left in zip(parts, survivors, strict=True) if not left]
    if empty:
        raise ValueError(f"nothing is left of {', '.join(empty)}: its width would be 0; prune the teacher less")
    if isinstance(model, VGG):
        widths = vgg_widths(survivors, in_channels=dense[f"{parts[0]}.weight"].shape[1])
    else:
        count = _counter(model)
        widths = resnet_stage_widths([*dense_widths.values()], survivors, dense_weights, count, masks.num_kept)
    student_arch = {**arch, argument: widths}
    with torch.device("meta"):  # only shapes: no memory, no random numbers
        student = {name: weight.numel() for name, weight in prunable(models.build(**student_arch)).items()}
    student_weights = [_within(part, student) for part in parts]
    rows = zip(parts, dense_widths.values(), widths, dense_weights, survivors, student_weights, strict=True)
    return {
        "arch": student_arch,
        "rows": [dict(zip(COLUMNS, row, strict=True)) for row in rows],
        "dense_weights": masks.num_weights,
        "survivors": masks.num_kept,
        "student_weights": sum(student.values()),
    }


def describe(plan: Mapping[str, Any]) -> str:
    """The plan as a table for the terminal."""
    total = {"part": "all", "dense_width": "", "student_width": "", **plan}
    head = ("part", "width", "-> student", "weights", "left", "student's")
    lines = [head, *(tuple(str(row[column]) for column in COLUMNS) for row in [*plan["rows"], total])]
    sizes = [max(len(line[place]) for line in lines) for place in range(len(head))]
    rows = ["  ".join([part.ljust(sizes[0]), *map(str.rjust, numbers, sizes[1:])]) for part, *numbers in lines]
    return "\n".join([f"student of {plan['arch']['name']}, derived from the pruned teacher:", *rows])


def _parts(arch: Mapping[str, Any], model: nn.Module) -> tuple[str, dict[str, int]]:
    """The architecture's argument for widths, and the teacher's width for each layer or stage."""
    if isinstance(model, VGG):
        layers = {f"features.{place}": layer for place, layer in enumerate(model.features)}
        return "widths", {name: layer.out_channels for name, layer in layers.items() if isinstance(layer, nn.Conv2d)}
    if isinstance(model, ResNetCIFAR) or arch["name"] in STAGED:
        return "stage_widths", {name: stage[0].conv1.out_channels for name, stage in _stages(model)}
    raise ValueError(
        f"no rule derives a student from {arch['name']!r}: use a VGG or ResNet of compression.models "
        f"(vgg11, vgg16_mlp, resnet56, {', '.join(STAGED)}...), or name the student yourself"
    )


def _within(part: str, numbers: Mapping[str, int]) -> int:
    """The sum over the parameters of a layer or stage."""
    return sum(num for name, num in numbers.items() if name.startswith(f"{part}."))


def _stages(model: nn.Module) -> list[tuple[str, Any]]:
    prefix = "stage" if isinstance(model, ResNetCIFAR) else "layer"
    return [(name, stage) for name, stage in model.named_children() if name.startswith(prefix)]


def _counter(model: Any) -> Callable[[Sequence[float]], float]:
    """A function: stage widths (also fractions) -> convolution and linear weights of this ResNet with these widths."""
    option_a = isinstance(model, ResNetCIFAR)

    def count(widths: Sequence[float]) -> float:
        channels: float = widths[0] if option_a else model.conv1.out_channels
        total = channels * model.conv1.in_channels * math.prod(model.conv1.kernel_size)
        for (_, stage), width in zip(_stages(model), widths, strict=True):
            for block in stage:
                convolutions = [layer for layer in block.children() if isinstance(layer, nn.Conv2d)]
                end = width * (convolutions[-1].out_channels // convolutions[0].out_channels)
                strided = any(layer.stride != (1, 1) for layer in convolutions)
                if not option_a and (strided or channels != end):
                    total += channels * end
                for layer in convolutions:
                    out = end if layer is convolutions[-1] else width
                    total += channels * out * math.prod(layer.kernel_size)
                    channels = out
        return total + channels * model.fc.out_features

    return count
