"""From a sample of a source to the bytes that a .beton file stores: which size, as pixels or as JPEG, which boxes."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image

from pipelines.data.ffcv.native_jpeg import is_sound
from pipelines.data.loading import draws
from pipelines.data.source import Boxes, Part, decoded

LARGEST_SIDE = 16384
"""In pixels. FFCV counts bytes of a page, which holds an image whole, in 32 bits."""

JPEG_SUFFIXES = (".jpg", ".jpeg")

_TURN = draws.stream("prepare", "jpeg")


@dataclass(frozen=True)
class Storage:
    """How images are stored.

    image_size: height and width in pixels, the same for all: the short side is resized to it, then the centre is
    cropped, as the memory backend does it; or None.
    max_side: without image_size, the longest side in pixels; larger images are shrunk to it.
    jpeg_share: share of images that are stored as JPEG, the others as pixels: JPEG is small, pixels take no decoding.
    quality: of JPEG, 1 to 95; None where nothing is JPEG.
    """

    image_size: int | None
    max_side: int | None
    jpeg_share: float = 0.0
    quality: int | None = None

    def __post_init__(self) -> None:
        if (self.image_size is None) == (self.max_side is None):
            raise ValueError("images have either one size (--image-size) or a longest side (--max-side)")
        for option, side in (("--image-size", self.image_size), ("--max-side", self.max_side)):
            if side is not None and not 1 <= side <= LARGEST_SIDE:
                raise ValueError(f"{option} must be 1 to {LARGEST_SIDE} pixels, not {side}")
        if not 0 <= self.jpeg_share <= 1:
            raise ValueError(f"--jpeg-share must be 0 to 1, not {self.jpeg_share}")
        if self.jpeg_share and (self.quality is None or not 1 <= self.quality <= 95):
            raise ValueError(f"--quality must be 1 to 95, not {self.quality}")

    @property
    def most_bytes(self) -> int:
        """Of one image as pixels."""
        return 3 * (self.image_size or self.max_side or 0) ** 2


@runtime_checkable
class WithBoxes(Protocol):
    """A part of a data set for detection; it may have no `labels`."""

    def boxes(self, row: int) -> Boxes: ...


class Encoded(NamedTuple):
    """A sample, ready to be written.

    regions: the image's bytes; for detection also those of boxes, classes and difficult.
    """

    row: int
    label: int | None
    width: int
    height: int
    is_jpeg: bool
    converted: bool
    regions: tuple[bytes, ...]


class LeftOut(NamedTuple):
    """A sample that cannot be read."""

    row: int
    name: str
    why: str


@dataclass(frozen=True)
class Encoder:
    """Rows of a part to what is written of them; what the worker processes do.

    most_objects: to how many boxes those of each image are filled up, for detection.
    strict: ValueError for what is left out or converted otherwise; it names the sample.
    """

    part: Any  # a Part, or Photos WithBoxes
    storage: Storage
    most_objects: int
    strict: bool

    @property
    def preloaded(self) -> list[str]:
        """Modules that all processes need, and that take seconds to import."""
        return [__name__, "cv2", *(["pipelines.data.readers.image_folders"] if self.storage.image_size else [])]

    def __call__(self, rows: range) -> list[Encoded | LeftOut]:
        """OSError: a file cannot be opened at all."""
        import cv2

        cv2.setNumThreads(1)  # every core has a process of its own
        turns = draws.uniform(_TURN, torch.tensor(rows), 0) < self.storage.jpeg_share
        with warnings.catch_warnings(action="ignore"):  # of PIL: odd metadata in files that can be read
            return [self._sample(row, turn) for row, turn in zip(rows, turns.tolist(), strict=True)]

    def _sample(self, row: int, as_jpeg: bool) -> Encoded | LeftOut:
        part: Part = self.part
        name, original = part.name(row), None
        try:
            original = part.encoded(row)
            image = part.image(row) if original is None else decoded(original, name)
        except ValueError as error:
            if self.strict:
                raise
            return LeftOut(row, name, str(error.__cause__ or error))
        mode, is_jpeg = ("RGB", False) if original is None else _form(original)
        oddity = _oddity(mode, is_jpeg, name)
        if oddity and self.strict:
            raise ValueError(f"{name} {oddity}: --strict takes no image that has to be converted")
        pixels = self._sized(image)
        height, width = pixels.shape[:2]
        if not as_jpeg:
            data = pixels.tobytes()
        else:
            stays = is_jpeg and mode == "RGB" and (width, height) == image.size
            data = _jpeg_of(pixels, original if stays else None, self.storage.quality)
        regions, label = (data,), None
        if isinstance(part, WithBoxes):
            regions = data, *self._objects(part.boxes(row), name, image.size, (width, height))
        else:
            label = int(part.labels[row])
        return Encoded(row, label, width, height, as_jpeg, bool(oddity), regions)

    def _sized(self, image: Image.Image) -> np.ndarray:
        """(height, width, 3) uint8."""
        size = self.storage.image_size
        if size is None:
            return _shrunk(np.asarray(image), self.storage.max_side)
        if image.size == (size, size):
            return np.asarray(image)
        from pipelines.data.readers.image_folders import centre  # torchvision's import takes seconds

        return centre(image, size, size)

    def _objects(self, found: Boxes, name: str, before: tuple[int, int], after: tuple[int, int]) -> tuple[bytes, ...]:
        """The bytes of boxes, classes and difficult: as many as in every image, zeros after those that there are."""
        boxes, (width, height) = found.boxes.numpy(), before
        low, high = boxes[:, :2], boxes[:, 2:]
        if not ((low >= 0) & (low < high) & (high <= (width, height))).all():
            raise ValueError(f"{name}: a box has no area or lies outside the image of {width} x {height} pixels")
        every = np.zeros((self.most_objects, 4), np.float32)
        classes, difficult = np.zeros(self.most_objects, np.int64), np.zeros(self.most_objects, np.uint8)
        scale = np.array(after, np.float64) / before
        every[: len(boxes)] = boxes * np.tile(scale, 2)
        classes[: len(boxes)], difficult[: len(boxes)] = found.labels.numpy(), found.difficult.numpy()
        return every.tobytes(), classes.tobytes(), difficult.tobytes()


def _form(data: bytes) -> tuple[str, bool]:
    """PIL's mode of an image file, and whether it is a JPEG."""
    with Image.open(io.BytesIO(data)) as image:
        return image.mode, image.format == "JPEG"


def _oddity(mode: str, is_jpeg: bool, name: str) -> str:
    """What had to be converted; empty: nothing."""
    if mode != "RGB":
        return f"has the mode {mode} instead of RGB"
    if not is_jpeg and PurePath(name).suffix.lower() in JPEG_SUFFIXES:
        return "is called JPEG, but is none"
    return ""


def _shrunk(pixels: np.ndarray, max_side: int | None) -> np.ndarray:
    """With its longest side at most `max_side`.

    By the mean over areas, as FFCV's own writer does it: the published accuracies are of images shrunk in this way.
    """
    import cv2

    height, width = pixels.shape[:2]
    if max_side is None or max(height, width) <= max_side:
        return pixels
    ratio = max_side / max(height, width)
    size = max(1, round(width * ratio)), max(1, round(height * ratio))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


def _jpeg_of(pixels: np.ndarray, original: bytes | None, quality: int | None) -> bytes:
    """A JPEG file of the pixels: `original` where that has them, and the reader's decoder has no complaint of it."""
    if original is not None and is_sound(original, *pixels.shape[:2]):
        return original  # compressed once is better than twice
    return _jpeg(pixels, quality)


def _jpeg(pixels: np.ndarray, quality: int | None) -> bytes:
    assert quality is not None, "JPEG without a quality"
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=quality)
    return stream.getvalue()
