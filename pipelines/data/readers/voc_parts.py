"""Parts of Pascal VOC: images with boxes, or with a class per pixel."""

import math
import os
from dataclasses import dataclass, fields
from itertools import accumulate
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import torch
from torch import Tensor

from pipelines.data.readers import checks
from pipelines.data.source import Boxes, ImageFiles, in_threads, opened

CLASSES: tuple[str, ...] = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
"""By label: 0 is the background, 1 to 20 are the official classes in alphabetical order."""

BORDER = 255
"""Value in masks of pixels between objects, which are ignored."""

_LABELS = {name: label for label, name in enumerate(CLASSES) if label}


class Photos(ImageFiles):
    """The JPEGs of one part. root: VOCdevkit. names: "VOC2012/JPEGImages/2008_000008.jpg" and so on."""

    def beside(self, folder: str, suffix: str) -> list[Path]:
        """For each image the file of the same name in another folder of the same year."""
        paths = (self.path(row) for row in range(len(self)))
        return [path.parent.parent / folder / f"{path.stem}{suffix}" for path in paths]


@dataclass(frozen=True)
class Detections(Photos):
    """Images with boxes. objects: of all images. ends: (N,) int64, index after the last object of each image.

    sizes: (N, 2) int64, heights and widths of the images.
    """

    ends: Tensor
    objects: Boxes
    sizes: Tensor

    def boxes(self, row: int) -> Boxes:
        """The objects in the image `row`."""
        start, end = int(self.ends[row - 1]) if row else 0, int(self.ends[row])
        objects = self.objects
        return Boxes(objects.boxes[start:end], objects.labels[start:end], objects.difficult[start:end])


@dataclass(frozen=True)
class Segmentations(Photos):
    """Images with a class per pixel. masks: (N,) bytes, paths below root."""

    masks: np.ndarray

    def mask_path(self, row: int) -> Path:
        return self.root / os.fsdecode(self.masks[row])

    def mask(self, row: int) -> np.ndarray:
        """(H, W) uint8: 0 background, 1 to 20 the classes, BORDER. ValueError: it is not such a mask."""
        path = self.mask_path(row)
        width, height = _size(self.path(row))
        with opened(path, str(path), "mask") as mask:
            mode, values = mask.mode, np.array(mask)
        if mode not in ("P", "L"):
            raise ValueError(f"{path} has the mode {mode} instead of palette numbers: download it again")
        if values.shape != (height, width):
            raise ValueError(
                f"{path} has {values.shape[1]} x {values.shape[0]} pixels, but {self.path(row)} has {width} x {height}"
            )
        wrong = np.unique(values[(values >= len(CLASSES)) & (values != BORDER)])
        if len(wrong):
            raise ValueError(f"{path} has pixels of class {wrong[0]}: classes are 0 to {len(CLASSES) - 1} and {BORDER}")
        return values


def detections(photos: Photos) -> Detections:
    """Reads the boxes of all XML files. FileNotFoundError, ValueError: a file is missing or wrong."""
    paths = photos.beside("Annotations", ".xml")
    checks.sizes([*paths, *map(photos.path, range(len(photos)))])

    def read(row: int) -> tuple[Boxes, tuple[int, int]]:
        width, height = _size(photos.path(row))
        return parse(paths[row].read_bytes(), str(paths[row]), width, height), (height, width)

    found, sizes = zip(*in_threads(read, len(paths)), strict=True)
    objects = Boxes(*(torch.cat([getattr(each, field.name) for each in found]) for field in fields(Boxes)))
    ends = torch.tensor([*accumulate(map(len, found))])
    return Detections(photos.root, photos.names, ends, objects, torch.tensor(sizes))


def segmentations(photos: Photos) -> Segmentations:
    """Checks only that the masks exist. FileNotFoundError names the missing ones."""
    paths = photos.beside("SegmentationClass", ".png")
    checks.sizes([*paths, *map(photos.path, range(len(photos)))])
    masks = [os.fsencode(path.relative_to(photos.root).as_posix()) for path in paths]
    return Segmentations(photos.root, photos.names, np.array(masks))


def _size(path: Path) -> tuple[int, int]:
    """Width and height, from the file's header."""
    with opened(path, str(path)) as image:
        return image.size


def parse(data: bytes, name: str, width: int, height: int) -> Boxes:
    """The objects of the XML file `name`; its image has `width` x `height` pixels.

    ValueError: not XML, a document type, another image size, or an object of an unknown class, outside the image or
    without an area.
    """
    root = _root(data, name)
    stated = (_number(root, "size/width", name), _number(root, "size/height", name))
    if stated != (width, height):
        raise ValueError(
            f"{name} is for an image of {stated[0]:g} x {stated[1]:g} pixels, but the image has {width} x {height}"
        )
    objects = [_object(each, f"{name}, object {i}", width, height) for i, each in enumerate(root.findall("object"), 1)]
    return Boxes(
        torch.tensor([box for box, _, _ in objects], dtype=torch.float32).reshape(-1, 4),
        torch.tensor([label for _, label, _ in objects], dtype=torch.int64),
        torch.tensor([difficult for _, _, difficult in objects], dtype=torch.bool),
    )


def _root(data: bytes, name: str) -> ElementTree.Element:
    try:
        text = data.decode("utf-8-sig")
        # Entities can expand to a huge text or name other files; no annotation needs them.
        if "<!DOCTYPE" in text or "<!ENTITY" in text:
            raise ValueError(
                f"{name} has a document type or entities, which official annotations do not have: download it again"
            )
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, UnicodeDecodeError) as error:
        raise ValueError(f"{name} is not readable XML ({error}): download it again") from error


def _object(element: ElementTree.Element, name: str, width: int, height: int) -> tuple[list[float], int, bool]:
    class_name = (element.findtext("name") or "").strip()
    if class_name not in _LABELS:
        raise ValueError(f"{name} has the unknown class {class_name!r}: the classes are {', '.join(_LABELS)}")
    xmin, ymin, xmax, ymax = (_number(element, f"bndbox/{side}", name) for side in ("xmin", "ymin", "xmax", "ymax"))
    left, top = xmin - 1, ymin - 1
    if not (0 <= left < xmax <= width and 0 <= top < ymax <= height):
        raise ValueError(
            f"{name}: the box from ({xmin:g}, {ymin:g}) to ({xmax:g}, {ymax:g}) lies outside its image of {width} x "
            f"{height} pixels, counted from 1, or has no area"
        )
    difficult = (element.findtext("difficult") or "0").strip()
    if difficult not in ("0", "1"):
        raise ValueError(f"{name}: <difficult> must be 0 or 1, not {difficult!r}")
    return [left, top, xmax, ymax], _LABELS[class_name], difficult == "1"


def _number(element: ElementTree.Element, path: str, name: str) -> float:
    text = element.findtext(path)
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{name}: <{path.replace('/', '><')}> must hold a number, not {text!r}")
    return value
