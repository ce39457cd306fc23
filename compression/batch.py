"""Batch: the data that a model, a criterion or an objective gets."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Samples, normalised and on the device.

    images: (N, C, H, W) float.
    labels: (N,) int64 for classification; for detection a list of N dicts in torchvision's form.
    index: (N,) int64, the position of each sample in its split, the same in every epoch.
    paired: (N, C, H, W) float or None: for each image another image of the same class (possibly the same one).
    second_view: (N, C, H, W) float or None: the same samples under a second, independent augmentation.
    """

    images: Tensor
    labels: Any
    index: Tensor
    paired: Tensor | None = None
    second_view: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def map_images(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with `change` applied to images, paired and second_view."""
        views = {name: getattr(self, name) for name in ("images", "paired", "second_view")}
        return dataclasses.replace(self, **{name: change(view) for name, view in views.items() if view is not None})

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Batch:
        """The batch on another device, its images in another float dtype."""
        if isinstance(self.labels, Tensor):
            labels: Any = self.labels.to(device)
        else:
            labels = [{k: v.to(device) for k, v in target.items()} for target in self.labels]
        moved = self.map_images(lambda images: images.to(device, dtype))
        return dataclasses.replace(moved, labels=labels, index=self.index.to(device))

    def part(self, start: int, stop: int) -> Batch:
        """Samples `start` to `stop` (not included), as views of this batch."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        cut = {name: value[start:stop] for name, value in fields.items() if value is not None}
        return dataclasses.replace(self, **cut)


@dataclass(frozen=True)
class Info:
    """What a method may know about its data.

    num_classes: number of classes of the labels.
    input_shape: (C, H, W) of one image.
    sizes: number of samples in "train", "val" and "test".
    """

    num_classes: int
    input_shape: tuple[int, int, int]
    sizes: Mapping[str, int]
