"""From a stored image to the network's input: which rectangle is read, where it is placed, and whether it is flipped.

This depends only on random draws and the size of the image, so all backends make the same picture of a sample.
"""

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
    """How N stored images become N pictures of size x size pixels. The rest of a picture is black.

    sources: (N, 4) int64: top, left, height, width of the rectangle to read, inside the stored image.
    targets: (N, 4) int64: the rectangle to which it is resized; parts outside the picture are cut off.
    flips: (N,) bool, whether the picture is then flipped left to right; None: no flips.
    """

    sources: Tensor
    targets: Tensor
    size: int
    flips: Tensor | None


class Geometry(Protocol):
    """How the images of a data set are cropped and resized. size: of pictures for evaluation, in pixels."""

    @property
    def size(self) -> int: ...

    def plan(self, view: View, sizes: Tensor) -> Plan:
        """sizes: (N, 2) int64, heights and widths as stored. `view.key` None: for evaluation."""
        ...


@dataclass(frozen=True)
class PadCrop:
    """For images stored at the input size: black padding, a random crop of that size, and a flip."""

    size: int
    padding: int
    flip: bool

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
    """For images of any size: a random-resized crop and a flip; for evaluation a centre crop.

    size: of pictures for evaluation, and for training unless a view asks for another size.
    resize: short side in pixels to which evaluation resizes before the centre crop.
    """

    size: int
    resize: int

    def plan(self, view: View, sizes: Tensor) -> Plan:
        if view.key is None:
            # The whole image, not only its visible part: that starts between two pixels, and rounding would shift the
            # picture by up to half a pixel, which costs more accuracy than the choice of a resizing filter.
            whole = torch.cat([torch.zeros_like(sizes), sizes], 1)
            return Plan(whole, centred(sizes, self.size, self.resize), self.size, None)
        size = view.size or self.size
        drawn = draws.uniform(view.key, view.owner[:, None], CROP + torch.arange(4 * ATTEMPTS))
        sources = random_boxes(sizes, drawn.view(-1, ATTEMPTS, 4))
        flips = draws.below(view.key, view.owner, FLIP, 2).bool()
        return Plan(sources, torch.tensor([0, 0, size, size]).expand(len(sizes), 4), size, flips)


@dataclass(frozen=True)
class Letterbox:
    """Whole images of any size, for training and evaluation alike: the long side becomes `size`, centred on black."""

    size: int

    def plan(self, view: View, sizes: Tensor) -> Plan:
        size = view.size or self.size
        return Plan(torch.cat([torch.zeros_like(sizes), sizes], 1), letterboxes(sizes, size), size, None)


def letterboxes(sizes: Tensor, size: int) -> Tensor:
    """(N, 4) int64 top, left, height, width of images inside letterboxes of size x size pixels.

    sizes: (N, 2) int64, heights and widths. Sides are rounded, so the two scales may differ a little.
    """
    sides = (sizes.double() * size / sizes.amax(1, keepdim=True)).round().long().clamp(min=1)
    return torch.cat([(size - sides) // 2, sides], 1)


def centred(sizes: Tensor, size: int, resize: int) -> Tensor:
    """(N, 4) targets of whole images for a resize of the short side and a centre crop, as torchvision computes them."""
    short = sizes.amin(1, keepdim=True)
    extents = torch.where(sizes == short, resize, (resize * sizes).double().div(short).long())
    return torch.cat([-((extents - size).double() / 2).round().long(), extents], 1)


def random_boxes(sizes: Tensor, attempts: Tensor) -> Tensor:
    """(N, 4) top, left, height, width of random-resized crops: SCALE of the area, RATIO of the sides, log-uniform.

    attempts: (N, A, 4) as for `candidates`. The first that fits is taken; if none does, the largest central box with an
    allowed ratio.
    """
    boxes, fits = candidates(sizes, attempts, SCALE, RATIO)
    first = fits.long().argmax(1, keepdim=True)
    chosen = boxes.gather(1, first[..., None].expand(-1, 1, 4))[:, 0]
    return torch.where(fits.any(1, keepdim=True), chosen, _largest(sizes))


def candidates(
    sizes: Tensor, attempts: Tensor, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """(N, A, 4) int64 top, left, height, width of random boxes, and (N, A) bool: whether they fit into the image.

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
