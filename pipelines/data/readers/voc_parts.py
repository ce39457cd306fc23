"""Parts of Pascal VOC: images with boxes, or with a class for each pixel."""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate, chain
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipelines.data.readers import checks
from pipelines.data.readers.boxes import CLASSES, parse
from pipelines.data.source import Boxes, ImageFiles

BORDER = 255
"""In a mask: pixels between objects, which count for nothing."""

_AT_ONCE = 64


class Photos(ImageFiles):
    """The JPEGs of one part. root: VOCdevkit. names: "VOC2012/JPEGImages/2008_000008.jpg" and so on."""

    def beside(self, folder: str, suffix: str) -> list[Path]:
        """For each image the file of the same number in another folder of the same year."""
        paths = (self.path(row) for row in range(len(self)))
        return [path.parent.parent / folder / f"{path.stem}{suffix}" for path in paths]


@dataclass(frozen=True)
class Detections(Photos):
    """Images with boxes. objects: those of all images. ends: (N,) int64, where there the objects of each image end."""

    ends: Tensor
    objects: Boxes

    def boxes(self, row: int) -> Boxes:
        """The objects in the image `row`, n of them, maybe none."""
        start, end = int(self.ends[row - 1]) if row else 0, int(self.ends[row])
        every = self.objects
        return Boxes(every.boxes[start:end], every.labels[start:end], every.difficult[start:end])


@dataclass(frozen=True)
class Segmentations(Photos):
    """Images with a class for each pixel. masks: (N,) bytes, paths below root."""

    masks: np.ndarray

    def mask_path(self, row: int) -> Path:
        return self.root / os.fsdecode(self.masks[row])

    def mask(self, row: int) -> np.ndarray:
        """(H, W) uint8: 0 background, 1 to 20 the classes, BORDER. ValueError names a mask that is not so."""
        path = self.mask_path(row)
        width, height = _size(self.path(row))
        try:
            with Image.open(path) as mask:
                mode, values = mask.mode, np.array(mask)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(f"{path} is not a readable mask ({error}): fetch it again") from error
        if mode not in ("P", "L"):
            raise ValueError(f"{path} has colours ({mode}) in the place of a palette's numbers: fetch it again")
        if values.shape != (height, width):
            raise ValueError(
                f"{path} has {values.shape[1]} x {values.shape[0]} pixels, but {self.path(row)} has {width} x {height}"
            )
        wrong = np.unique(values[(values >= len(CLASSES)) & (values != BORDER)])
        if len(wrong):
            raise ValueError(f"{path} has pixels of class {wrong[0]}: there are 0 to {len(CLASSES) - 1} and {BORDER}")
        return values


def detections(photos: Photos) -> Detections:
    """With the boxes of the XML files, all of them read. FileNotFoundError, ValueError name a file that is wrong."""
    paths = photos.beside("Annotations", ".xml")
    checks.sizes([*paths, *map(photos.path, range(len(photos)))])

    def read(start: int) -> list[Boxes]:
        return [_boxes(path, photos.path(row)) for row, path in _few(paths, start)]

    with ThreadPoolExecutor(checks.THREADS) as pool:
        found = list(chain.from_iterable(pool.map(read, range(0, len(paths), _AT_ONCE))))
    every = Boxes(
        torch.cat([each.boxes for each in found]),
        torch.cat([each.labels for each in found]),
        torch.cat([each.difficult for each in found]),
    )
    return Detections(photos.root, photos.names, torch.tensor([*accumulate(len(each) for each in found)]), every)


def segmentations(photos: Photos) -> Segmentations:
    """With masks, of which only the existence is checked. FileNotFoundError names those that are absent."""
    paths = photos.beside("SegmentationClass", ".png")
    checks.sizes([*paths, *map(photos.path, range(len(photos)))])
    masks = [os.fsencode(path.relative_to(photos.root).as_posix()) for path in paths]
    return Segmentations(photos.root, photos.names, np.array(masks))


def _few(paths: list[Path], start: int) -> Iterable[tuple[int, Path]]:
    return enumerate(paths[start : start + _AT_ONCE], start)


def _boxes(path: Path, image: Path) -> Boxes:
    return parse(path.read_bytes(), str(path), *_size(image))


def _size(path: Path) -> tuple[int, int]:
    """Width and height, from the file's head."""
    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is not a readable image ({error}): fetch it again") from error
