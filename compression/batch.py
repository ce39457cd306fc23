"""Batch: what a model, a criterion or an objective is given of the data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Some samples, normalised and on the device.

    images: (N, C, H, W) float.
    labels: (N,) int64 for classification; for detection a list of N dicts in torchvision's form.
    index: (N,) int64, the position of each sample in its split, the same in every epoch.
    paired: (N, C, H, W) float or None: for each image another of the same class (it may be the same sample).
    second_view: (N, C, H, W) float or None: the same samples under a second, independent augmentation.
    """

    images: Tensor
    labels: Any
    index: Tensor
    paired: Tensor | None = None
    second_view: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Batch:
        """The same batch on another device, its images in another float dtype."""
        changes: dict[str, Any] = {"index": self.index.to(device)}
        for name in ("images", "paired", "second_view"):
            value = getattr(self, name)
            changes[name] = None if value is None else value.to(device, dtype)
        if isinstance(self.labels, Tensor):
            changes["labels"] = self.labels.to(device)
        else:
            changes["labels"] = [{k: v.to(device) for k, v in target.items()} for target in self.labels]
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True)
class Info:
    """What a method may know of its data.

    num_classes: how many classes the labels have.
    input_shape: (C, H, W) of one image.
    sizes: number of samples in "train", "val" and "test".
    """

    num_classes: int
    input_shape: tuple[int, int, int]
    sizes: Mapping[str, int]
