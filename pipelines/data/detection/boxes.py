"""Boxes of many images, and random crops and flips of pictures with their boxes.

A box is left, top, right and bottom in pixels; right and bottom are exclusive: the first pixel is (0, 0, 1, 1).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pipelines.data.loading import draws
from pipelines.data.loading.geometry import candidates, letterboxes
from pipelines.data.loading.views import CROP
from pipelines.data.source import Boxes

AREA = (0.3, 1.0)
"""Share of the area of the image in a crop, as in SSD (Liu et al. 2016)."""
RATIO = (0.5, 2.0)
"""Width over height of a crop, as in SSD."""
ATTEMPTS = 20


@dataclass(frozen=True)
class PaddedBoxes:
    """The objects of N images, padded to M, the largest number in one image.

    boxes: (N, M, 4) float32. labels: (N, M) int64. difficult: (N, M) bool. Padding comes last and is 0.
    counts: (N,) int64, number of objects of each image.
    """

    boxes: Tensor
    labels: Tensor
    difficult: Tensor
    counts: Tensor

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, rows: Tensor) -> PaddedBoxes:
        """The objects of some images. rows: (K,) int64 positions, or (N,) bool."""
        return self._each(lambda values: values[rows])

    def to(self, device: torch.device | str) -> PaddedBoxes:
        return self._each(lambda values: values.to(device))

    @property
    def real(self) -> Tensor:
        """(N, M) bool, False for padding."""
        return torch.arange(self.labels.shape[1], device=self.counts.device) < self.counts[:, None]

    def only(self, kept: Tensor) -> PaddedBoxes:
        """The real boxes for which `kept`, (N, M) bool, is True, in their order."""
        kept = kept & self.real
        order = (~kept).long().argsort(dim=1, stable=True)
        boxes = (self.boxes * kept[..., None]).gather(1, order[..., None].expand(-1, -1, 4))
        labels, difficult = (self.labels * kept).gather(1, order), (self.difficult & kept).gather(1, order)
        return PaddedBoxes(boxes, labels, difficult, kept.sum(1))

    def letterboxed(self, sizes: Tensor, size: int) -> PaddedBoxes:
        """Boxes in letterboxes of size x size pixels. sizes: (N, 2) int64, heights and widths of the images.

        ValueError names a box that has no area or lies partly outside its image.
        """
        limits = sizes.flip(1).repeat(1, 2)[:, None]
        sound = ((self.boxes >= 0) & (self.boxes <= limits)).all(2) & (self.boxes[..., :2] < self.boxes[..., 2:]).all(2)
        if (wrong := self.real & ~sound).any():
            image, at = wrong.nonzero()[0].tolist()
            height, width = sizes[image].tolist()
            raise ValueError(
                f"image {image}: box {self.boxes[image, at].tolist()} lies outside its image of {width} x {height} "
                "pixels or has no area: fetch or prepare the data again"
            )
        scale, offset = _placed(sizes, size)
        boxes = self.boxes * scale[:, None] + offset[:, None]
        return dataclasses.replace(self, boxes=(boxes * self.real[..., None]).float())

    def flipped(self, flips: Tensor, size: int) -> PaddedBoxes:
        """Flipped left to right in pictures of `size` pixels where `flips`, (N,) bool, is True."""
        left, top, right, bottom = self.boxes.unbind(2)
        mirrored = torch.stack([size - right, top, size - left, bottom], 2) * self.real[..., None]
        return dataclasses.replace(self, boxes=torch.where(flips[:, None, None], mirrored, self.boxes))

    def _each(self, change: Callable[[Tensor], Tensor]) -> PaddedBoxes:
        return PaddedBoxes(*(change(getattr(self, field.name)) for field in dataclasses.fields(self)))


def padded(images: Sequence[Boxes]) -> PaddedBoxes:
    """The objects of `images` in one table. An image may have none."""
    counts = torch.tensor([len(image.labels) for image in images], dtype=torch.int64)
    most = int(counts.max()) if len(counts) else 0
    table = PaddedBoxes(
        torch.zeros(len(images), most, 4),
        torch.zeros(len(images), most, dtype=torch.int64),
        torch.zeros(len(images), most, dtype=torch.bool),
        counts,
    )
    for row, (image, count) in enumerate(zip(images, counts.tolist(), strict=True)):
        table.boxes[row, :count] = image.boxes
        table.labels[row, :count] = image.labels
        table.difficult[row, :count] = image.difficult
    return table


def unletterboxed(boxes: Tensor, image_size: Tensor, size: int) -> Tensor:
    """Boxes in a letterbox, such as a detector's predictions, in pixels of the original image, cut off at its edges.

    boxes: (n, 4). image_size: (2,) int64, a target's "orig_size". size: height and width of the letterbox in pixels.
    """
    scale, offset = _placed(image_size[None], size)
    limits = image_size.flip(0).repeat(2)
    return ((boxes - offset) / scale).clamp(min=torch.zeros_like(limits), max=limits).to(boxes.dtype)


def _placed(sizes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """(N, 4) float64 scale and offset of x, y, x, y from images to their letterboxes."""
    placed = letterboxes(sizes, size)
    scale = (placed[:, 2:].double() / sizes).flip(1).repeat(1, 2)
    return scale, placed[:, :2].double().flip(1).repeat(1, 2)


@dataclass(frozen=True)
class Crops:
    """Crops of N pictures, each enlarged to the picture's size as far as its shape allows, and centred on black.

    windows: (N, 4) float64, left, top, right and bottom of each crop; the whole picture where nothing is cropped.
    taken: (N,) bool, whether the picture is cropped.
    size: height and width of the pictures in pixels.
    """

    windows: Tensor
    taken: Tensor
    size: int

    def each(self, change: Callable[[Tensor], Tensor]) -> Crops:
        """With changed tensors, for example moved to a device."""
        return Crops(change(self.windows), change(self.taken), self.size)

    @property
    def scale(self) -> Tensor:
        """(N, 1): scale from the picture to the crop."""
        return self.size / (self.windows[:, 2:] - self.windows[:, :2]).amax(1, keepdim=True)

    @property
    def offset(self) -> Tensor:
        """(N, 2): x and y of the upper left corner of the picture in the crop."""
        return self.size / 2 - self.scale * (self.windows[:, :2] + self.windows[:, 2:]) / 2

    def boxes(self, boxes: PaddedBoxes) -> PaddedBoxes:
        """The boxes with their centre in the crop, cut off at its edges."""
        corners = boxes.boxes.double().unflatten(2, (2, 2))
        low, high = self.windows.unflatten(1, (2, 2)).unbind(1)
        cut = corners.clamp(low[:, None, None], high[:, None, None])
        # Clamped again: rounding must not move a cut-off box past the edge of the picture.
        moved = (cut * self.scale[:, None, None] + self.offset[:, None, None]).clamp(0, self.size)
        kept = _centred(boxes.boxes, self.windows[:, None])[:, 0] & (cut[:, :, 0] < cut[:, :, 1]).all(2)
        changed = torch.where(self.taken[:, None, None], moved.flatten(2).float(), boxes.boxes)
        return dataclasses.replace(boxes, boxes=changed).only(kept | ~self.taken[:, None])

    def images(self, images: Tensor, black: Tensor) -> Tensor:
        """(N, C, size, size) float, sampled bilinearly; unchanged, bit for bit, where nothing is cropped.

        black: (1, C, 1, 1), the value of pixels outside the crop.
        """
        # At least float32: half precision cannot represent the coordinates of a pixel.
        dtype = torch.promote_types(images.dtype, torch.float32)
        at = torch.arange(self.size, device=images.device).double() + 0.5
        # (N, S) for x and y: positions of the centres of the new pixels in the old picture.
        points = [(at - self.offset[:, [axis]]) / self.scale for axis in (0, 1)]
        inside = [(p >= self.windows[:, [a]]) & (p < self.windows[:, [a + 2]]) for a, p in enumerate(points)]
        # Without align_corners, -1 and 1 are the edges of the picture, as in boxes, not the centres of its last pixels.
        x, y = ((point * 2 / self.size - 1).to(dtype) for point in points)
        grid = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), 3)
        found = F.grid_sample(images.to(dtype), grid, mode="bilinear", padding_mode="border", align_corners=False)
        shown = (inside[0][:, None, :] & inside[1][:, :, None])[:, None]
        cropped = torch.where(shown, found.to(images.dtype), black)
        chosen = torch.where(self.taken[:, None, None, None], cropped, images)
        return chosen.contiguous(memory_format=torch.channels_last)


def draw_crops(boxes: PaddedBoxes, sizes: Tensor, size: int, key: int, owner: Tensor) -> Crops:
    """A random crop of each letterboxed image, without its black border, that contains the centre of a box.

    The first of ATTEMPTS that fits is taken; if none does, for example in an image without boxes, nothing is cropped.
    boxes: in letterboxes of `size` pixels. sizes: (N, 2) int64, heights and widths of the images.
    key, owner: as in a View.
    """
    number = torch.arange(4 * ATTEMPTS, device=owner.device) + CROP
    drawn = draws.uniform(key, owner[:, None], number).view(-1, ATTEMPTS, 4)
    placed = letterboxes(sizes, size)
    found, fits = candidates(placed[:, 2:], drawn, AREA, RATIO)
    corners = found[..., :2] + placed[:, None, :2]
    windows = torch.cat([corners.flip(2), (corners + found[..., 2:]).flip(2)], 2)
    good = fits & (_centred(boxes.boxes, windows) & boxes.real[:, None]).any(2)
    first = good.long().argmax(1)
    chosen = windows.gather(1, first[:, None, None].expand(-1, 1, 4))[:, 0]
    taken = good.any(1)
    whole = torch.tensor([0, 0, size, size], device=owner.device).expand_as(chosen)
    return Crops(torch.where(taken[:, None], chosen, whole).double(), taken, size)


def _centred(boxes: Tensor, windows: Tensor) -> Tensor:
    """(N, A, M) bool: whether the centres of boxes, (N, M, 4), lie in windows, (N, A, 4)."""
    centres = (boxes[..., :2].double() + boxes[..., 2:]) / 2
    low, high = windows[:, :, None, :2], windows[:, :, None, 2:]
    return ((centres[:, None] >= low) & (centres[:, None] < high)).all(3)
