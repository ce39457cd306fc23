"""Students: the dense, narrower network derived from a pruned teacher, and its initial weights.

Prune-then-Distill (Park and No, ECCV 2022, arXiv 2109.14960): each layer of the student has as many weights as are left
in the teacher's. The rule for ResNets was not published: ours is that of `resnet_stage_widths`.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

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


@torch.no_grad()
def inherit(student: nn.Module, teacher: nn.Module, masks: Masks) -> None:
    """Initialise the student with weights of the pruned teacher, in place.

    Each layer takes the channels with the largest L1 norm of remaining weights (in a residual stream: summed over the
    layers that write to it). BatchNorm and the layers that read the channels take the same ones. If the student is
    wider than the teacher, its other channels stay as they are.

    ValueError unless both are VGGs of the same layout, or torchvision ResNets of the same depth, for the same classes.
    """
    from torchvision.models import ResNet

    transfer = _Transfer(student, teacher, masks)
    if isinstance(student, VGG) and isinstance(teacher, VGG) and len(prunable(student)) == len(prunable(teacher)):
        _vgg(transfer, teacher)
    elif isinstance(student, ResNet) and isinstance(teacher, ResNet) and _blocks(student) == _blocks(teacher):
        _resnet(transfer, student, teacher)
    else:
        names = " and ".join(vars(m).get("arch", {}).get("name", type(m).__name__) for m in (student, teacher))
        raise ValueError(
            f"{names}: weights are inherited only between VGGs of one layout or ResNet-18/34/50s of one depth "
            "(option A's shortcut binds channels by their position); use init random"
        )
    student.load_state_dict(transfer.new)


class _Transfer:
    """Copies chosen channels of the masked old network's state into the new one's."""

    def __init__(self, student: nn.Module, teacher: nn.Module, masks: Masks) -> None:
        self.new = {name: tensor.detach().cpu().clone() for name, tensor in student.state_dict().items()}
        self.old = {name: tensor.detach().cpu() for name, tensor in teacher.state_dict().items()}
        self.old |= {name: self.old[name] * mask.cpu() for name, mask in masks.items()}

    def every(self, layer: str, dim: int) -> Tensor:
        """All output (dim 0) or input (dim 1) channels of the old layer."""
        return torch.arange(self.old[f"{layer}.weight"].shape[dim])

    def strongest(self, layer: str, *others: str) -> Tensor:
        """Output channels with the largest L1 norms (of equals, the first), ascending, as many as the new layer has."""
        strength = sum(self.old[f"{name}.weight"].abs().flatten(1).sum(1) for name in (layer, *others))
        assert isinstance(strength, Tensor)
        num = len(self.new[f"{layer}.weight"])
        return strength.sort(descending=True, stable=True).indices[:num].sort().values

    def copy(self, layer: str, target: Tensor, source: Tensor | None = None) -> None:
        """Copy all tensors of a layer: output channels `target`, input channels `source` (BatchNorm has none)."""
        for name in [name for name in self.old if name.rpartition(".")[0] == layer]:
            old, new = self.old[name], self.new[name]
            if old.ndim > 1:
                assert source is not None
                new[: len(target), : len(source)] = old[target][:, source]
            elif old.ndim == 1:
                new[: len(target)] = old[target]
            else:
                new.copy_(old)

    def select(self, projection: str, target: Tensor, source: Tensor) -> None:
        """Make a projection that the old network lacks select the channels `target` of `source`."""
        weight = self.new[f"{projection}.0.weight"]
        weight.zero_()
        weight[: len(target), : len(source), 0, 0] = (target[:, None] == source).to(weight.dtype)


def _vgg(transfer: _Transfer, teacher: VGG) -> None:
    source = transfer.every("features.0", 1)
    for place, layer in enumerate(teacher.features):
        name = f"features.{place}"
        if isinstance(layer, nn.Conv2d):
            target = transfer.strongest(name)
            transfer.copy(name, target, source)
            source = target
        elif isinstance(layer, nn.BatchNorm2d):
            transfer.copy(name, source)
    # The classifier's inputs: all positions of the first channel's grid, then those of the second...
    positions = torch.arange(teacher.grid**2)
    source = (source[:, None] * len(positions) + positions).flatten()
    for name, layer in teacher.classifier.named_modules(prefix="classifier"):
        if isinstance(layer, nn.Linear):
            transfer.copy(name, transfer.every(name, 0), source)
            source = transfer.every(name, 0)


def _blocks(model: Any) -> list[tuple[str, type]]:
    return [(name, type(module)) for name, module in model.named_modules() if name.count(".") == 1]


def _resnet(transfer: _Transfer, student: Any, teacher: Any) -> None:
    stream = transfer.every("conv1", 0)
    transfer.copy("conv1", stream, transfer.every("conv1", 1))
    transfer.copy("bn1", stream)
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        blocks = getattr(teacher, stage)
        convolutions = [name for name, layer in blocks[0].named_children() if isinstance(layer, nn.Conv2d)]
        writers = [f"{stage}.{place}.{convolutions[-1]}" for place in range(len(blocks))]
        projections = [f"{stage}.0.downsample.0"] if blocks[0].downsample else []
        end = transfer.strongest(*writers, *projections)
        if getattr(student, stage)[0].downsample:
            if projections:
                transfer.copy(f"{stage}.0.downsample.0", end, stream)
                transfer.copy(f"{stage}.0.downsample.1", end)
            else:
                transfer.select(f"{stage}.0.downsample", end, stream)
        for place in range(len(blocks)):
            source = stream
            for name in convolutions:
                layer = f"{stage}.{place}.{name}"
                target = end if name == convolutions[-1] else transfer.strongest(layer)
                transfer.copy(layer, target, source)
                transfer.copy(layer.replace("conv", "bn"), target)
                source = target
            stream = end
    transfer.copy("fc", transfer.every("fc", 0), stream)
