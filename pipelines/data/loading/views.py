"""What the loader asks of a backend: views of samples; and the last steps that all backends share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from compression.batch import Batch

NEEDS = frozenset({"index", "paired", "second_view"})
"""What a batch can be asked to hold beyond images and labels."""

# Numbers of a sample's draws under one view's key. The crop uses as many as it takes, from CROP on.
FLIP = 0
CROP = 1


@dataclass(frozen=True)
class View:
    """Which images to read, and how they are augmented.

    rows: (N,) int64, positions in the part as the source holds it.
    owner: (N,) int64, positions in the training split by which the draws go.
    key: the key of the draws, or None for an image as evaluation sees it.
    size: height and width in pixels of the picture, where it is not the usual one.
    """

    rows: Tensor
    owner: Tensor
    key: int | None
    size: int | None = None


@dataclass(frozen=True)
class Request:
    """One batch to be read: `views` maps "images" and what else is needed of Batch's fields to a View."""

    part: str
    index: Tensor
    labels: Tensor
    views: Mapping[str, View]


class Store(Protocol):
    """A backend. `host` is where the tensors of a Request must lie: on the CPU, or on the device."""

    host: torch.device

    def read(self, requests: Iterable[Request]) -> Iterator[Batch]:
        """A Batch on the device for each request, in order."""
        ...

    def close(self) -> None:
        """Let go of memory and processes."""
        ...


@dataclass(frozen=True)
class Opened:
    """A store, and what it holds.

    labels: "train" and "test" -> (N,) int64 on the CPU, in the order of the store's rows.
    input_shape: (channels, height, width) of evaluation's images.
    fingerprint: a short hash of what the data is, the same wherever it lies.
    needs: what a batch can hold beyond images and labels.
    """

    store: Store
    labels: Mapping[str, Tensor]
    num_classes: int
    input_shape: tuple[int, int, int]
    fingerprint: str
    needs: frozenset[str] = NEEDS


class Finish:
    """The last steps, in batch and on the device: flip as uint8, then convert and normalise."""

    def __init__(
        self, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device, dtype: torch.dtype
    ) -> None:
        """mean, std: per channel, of pixel values / 255. device, dtype: of what comes out."""
        self._of_pixel = [(torch.tensor(value, dtype=torch.float64) * 255).to(device, dtype) for value in (mean, std)]
        self._of_row: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, pixels: Tensor, flips: Tensor | None) -> Tensor:
        """(N, H, W, 3) uint8 and (N,) bool -> (N, 3, H, W) float in channels_last memory."""
        if flips is not None:
            pixels = torch.where(flips[:, None, None, None], pixels.flip(2), pixels)
        # Subtract and divide round each element alone, so a sample comes out the same in any batch.
        mean, std = self._row(pixels.shape[2])
        rows = pixels.flatten(2).to(mean.dtype).sub_(mean).div_(std)
        return rows.view(pixels.shape).permute(0, 3, 1, 2)

    def _row(self, width: int) -> tuple[Tensor, Tensor]:
        """A whole row of pixels at once: broadcasting three channels alone would make inner loops of three elements."""
        if width not in self._of_row:
            mean, std = self._of_pixel
            self._of_row[width] = mean.repeat(width), std.repeat(width)
        return self._of_row[width]


def batch_of(images: Mapping[str, Tensor], labels: Tensor, index: Tensor) -> Batch:
    """The Batch of finished views."""
    return Batch(images["images"], labels, index, images.get("paired"), images.get("second_view"))
