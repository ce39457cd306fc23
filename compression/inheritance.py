"""Initialising a narrower student with weights of its pruned teacher instead of random ones."""

from typing import Any

import torch
from torch import Tensor, nn

from compression.masks import Masks, prunable
from compression.models.vgg_cifar import VGG


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
