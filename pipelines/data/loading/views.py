"""Requests of the loader to a backend, and the last steps that all backends share."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from compression.batch import Batch

NEEDS = frozenset({"index", "paired", "second_view"})
"""Optional content of a batch, besides images and labels."""

# Numbers of the draws of a sample under the key of a view. The crop uses CROP and the following ones.
FLIP = 0
CROP = 1


@dataclass(frozen=True)
class View:
    """Which images to read, and how they are augmented.

    rows: (N,) int64, positions in the part.
    owner: (N,) int64, positions in the training split, from which the draws are derived.
    key: the key of the draws; None: no augmentation, as in evaluation.
    size: height and width in pixels of the picture; None: the usual size.
    """

    rows: Tensor
    owner: Tensor
    key: int | None
    size: int | None = None


@dataclass(frozen=True)
class Request:
    """One batch to read: `views` maps "images" and other needed fields of Batch to a View."""

    part: str
    index: Tensor
    labels: Tensor
    views: Mapping[str, View]


class Store(Protocol):
    """A backend. host: the device on which it expects the tensors of a Request."""

    host: torch.device

    def read(self, requests: Iterable[Request]) -> Iterator[Batch]:
        """A Batch on the device for each request, in order."""
        ...

    def close(self) -> None:
        """Release memory and processes."""
        ...


@dataclass(frozen=True)
class Opened:
    """A store and a description of its data.

    labels: "train" and "test" -> (N,) int64 on the CPU, in the order of the store's rows.
    input_shape: (channels, height, width) of evaluation's images.
    fingerprint: a short hash of the data, wherever it is stored.
    needs: optional content that a batch can have.
    about: how an image becomes an input, and the names of the classes, as in an artefact (`compression.artifact.save`).
    note: what a user should know of it; empty: nothing.
    """

    store: Store
    labels: Mapping[str, Tensor]
    num_classes: int
    input_shape: tuple[int, int, int]
    fingerprint: str
    needs: frozenset[str] = NEEDS
    about: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


class Finish:
    """The last steps, on whole batches on the device: flip as uint8, then convert and normalise."""

    def __init__(
        self, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device, dtype: torch.dtype
    ) -> None:
        """mean, std: per channel, of pixel values / 255. device, dtype: of the results."""
        self.device, self.dtype = device, dtype
        self._of_pixel = [(torch.tensor(value, dtype=torch.float64) * 255).to(device, dtype) for value in (mean, std)]
        self._of_row: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, pixels: Tensor, flips: Tensor | None) -> Tensor:
        """(N, H, W, 3) uint8 and (N,) bool -> (N, 3, H, W) float in channels_last memory."""
        if flips is not None:
            pixels = torch.where(flips[:, None, None, None], pixels.flip(2), pixels)
        # Subtraction and division are element-wise, so a sample gives the same result in any batch.
        mean, std = self._row(pixels.shape[2])
        rows = pixels.flatten(2).to(mean.dtype).sub_(mean).div_(std)
        return rows.view(pixels.shape).permute(0, 3, 1, 2)

    def _row(self, width: int) -> tuple[Tensor, Tensor]:
        """Values for a whole row of pixels: broadcasting three channels alone would be slow."""
        if width not in self._of_row:
            mean, std = self._of_pixel
            self._of_row[width] = mean.repeat(width), std.repeat(width)
        return self._of_row[width]


def batch_of(images: Mapping[str, Tensor], labels: Tensor, index: Tensor) -> Batch:
    """A Batch of finished views."""
    return Batch(images["images"], labels, index, images.get("paired"), images.get("second_view"))
