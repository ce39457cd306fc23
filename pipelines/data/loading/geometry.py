"""From a stored image to what the network sees: which rectangle is read, where it goes, and whether it is mirrored.

Decided from the draws and the image's size alone, so every backend makes the same picture of the same sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pipelines.data.loading import draws
from pipelines.data.loading.views import CROP, FLIP, View

SCALE = (0.08, 1.0)
"""Share of the area of a random-resized crop (Szegedy et al. 2015; torchvision's and FFCV's default)."""
RATIO = (3 / 4, 4 / 3)
ATTEMPTS = 10


@dataclass(frozen=True)
class Plan:
    """How N stored images become N pictures of size x size pixels, black where nothing is put.

    sources: (N, 4) int64: top, left, height, width of what is read; inside the stored image.
    targets: (N, 4) int64: where that goes, resized where it has another size; what lies outside the picture is cut off.
    flips: (N,) bool, mirrored left to right afterwards; or None.
    """

    sources: Tensor
    targets: Tensor
    size: int
    flips: Tensor | None


class Geometry(Protocol):
    """What is done to the images of one part."""

    @property
    def size(self) -> int:
        """Height and width in pixels of evaluation's pictures."""
        ...

    @property
    def resize(self) -> int:
        """To what evaluation resizes the short side before it takes the centre."""
        ...

    def plan(self, view: View, sizes: Tensor) -> Plan:
        """sizes: (N, 2) int64, heights and widths as stored. `view.key` None: as evaluation sees the images."""
        ...


@dataclass(frozen=True)
class PadCrop:
    """Images stored at the size that the network sees: black borders and a crop of that size, and a flip."""

    size: int
    padding: int
    flip: bool

    @property
    def resize(self) -> int:
        return self.size

    def plan(self, view: View, sizes: Tensor) -> Plan:
        whole = torch.tensor([0, 0, self.size, self.size]).expand(len(sizes), 4)
        if view.key is None:
            return Plan(whole, whole, self.size, None)
        bounds = torch.tensor([2, 2 * self.padding + 1, 2 * self.padding + 1])
        drawn = draws.below(view.key, view.owner[:, None], torch.tensor([FLIP, CROP, CROP + 1]), bounds)
        shift = drawn[:, 1:] - self.padding
        extent = self.size - shift.abs()
        sources = torch.cat([shift.clamp(min=0), extent], 1)
        targets = torch.cat([(-shift).clamp(min=0), extent], 1)
        return Plan(sources, targets, self.size, drawn[:, 0].bool() if self.flip else None)


@dataclass(frozen=True)
class ResizedCrop:
    """Images of any size: a random-resized crop and a flip; for evaluation the centre.

    size: of the picture; of evaluation's, and of training's where a view does not say another.
    resize: to what evaluation resizes the short side before it takes the centre.
    """

    size: int
    resize: int

    def plan(self, view: View, sizes: Tensor) -> Plan:
        if view.key is None:
            # The whole image, not the part of it that will be seen: that begins between two pixels, and the picture
            # would be moved by up to half of one, which costs more than any difference between ways of resizing.
            return Plan(
                torch.cat([torch.zeros_like(sizes), sizes], 1), centred(sizes, self.size, self.resize), self.size, None
            )
        size = view.size or self.size
        drawn = draws.uniform(view.key, view.owner[:, None], CROP + torch.arange(4 * ATTEMPTS))
        sources = random_boxes(sizes, drawn.view(-1, ATTEMPTS, 4))
        flips = draws.below(view.key, view.owner, FLIP, 2).bool()
        return Plan(sources, torch.tensor([0, 0, size, size]).expand(len(sizes), 4), size, flips)


@dataclass(frozen=True)
class Letterbox:
    """Whole images of any size, for training and evaluation alike: the long side becomes `size`, centred on black."""

    size: int

    @property
    def resize(self) -> int:
        return self.size

    def plan(self, view: View, sizes: Tensor) -> Plan:
        size = view.size or self.size
        return Plan(torch.cat([torch.zeros_like(sizes), sizes], 1), letterboxes(sizes, size), size, None)


def letterboxes(sizes: Tensor, size: int) -> Tensor:
    """(N, 4) int64 top, left, height, width: where images of `sizes` lie in letterboxes of size x size pixels.

    sizes: (N, 2) int64, heights and widths. Sides are rounded, so the two scales may differ a little.
    """
    sides = (sizes.double() * size / sizes.amax(1, keepdim=True)).round().long().clamp(min=1)
    return torch.cat([(size - sides) // 2, sides], 1)


def centred(sizes: Tensor, size: int, resize: int) -> Tensor:
    """(N, 4): where images lie, once their short side is `resize`, around their central `size`; as torchvision's do."""
    short = sizes.amin(1, keepdim=True)
    extents = torch.where(sizes == short, resize, (resize * sizes).double().div(short).long())
    return torch.cat([-((extents - size).double() / 2).round().long(), extents], 1)


def random_boxes(sizes: Tensor, attempts: Tensor) -> Tensor:
    """(N, 4) top, left, height, width of random-resized crops: SCALE of the area, RATIO of the sides, log-uniform.

    attempts: (N, A, 4) as for `candidates`; the first that fits is taken.
    Where none does, the largest central box with an allowed ratio.
    """
    boxes, fits = candidates(sizes, attempts, SCALE, RATIO)
    first = fits.long().argmax(1, keepdim=True)
    chosen = boxes.gather(1, first[..., None].expand(-1, 1, 4))[:, 0]
    return torch.where(fits.any(1, keepdim=True), chosen, _largest(sizes))


def candidates(
    sizes: Tensor, attempts: Tensor, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """(N, A, 4) int64 top, left, height, width of boxes in images of `sizes`, and (N, A) bool: which fit into them.

    attempts: (N, A, 4) draws in [0, 1) for area, ratio, left and top of each attempt.
    scale: bounds of a box's share of the area. ratio: bounds of width over height, log-uniform.
    """
    area, shape, x, y = attempts.unbind(-1)
    heights, widths = sizes[:, :1].double(), sizes[:, 1:].double()
    pixels = heights * widths * (scale[0] + area * (scale[1] - scale[0]))
    aspect = ratio[0] * (ratio[1] / ratio[0]) ** shape
    w, h = (pixels * aspect).sqrt().round(), (pixels / aspect).sqrt().round()
    fits = (w > 0) & (w <= widths) & (h > 0) & (h <= heights)
    top, left = (y * (heights - h + 1)).floor(), (x * (widths - w + 1)).floor()
    return torch.stack([top, left, h, w], -1).long(), fits


def _largest(sizes: Tensor) -> Tensor:
    heights, widths = sizes.unbind(1)
    w = torch.minimum(widths, (heights * RATIO[1]).round().long().clamp(min=1))
    h = torch.minimum(heights, (widths / RATIO[0]).round().long().clamp(min=1))
    return torch.stack([(heights - h) // 2, (widths - w) // 2, h, w], 1)
