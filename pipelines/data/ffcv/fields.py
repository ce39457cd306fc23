"""Encode samples for a .beton file: resize the image, store it as pixels or as JPEG, pad the boxes."""

import ctypes
import functools
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path, PurePath
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image

from pipelines.data.ffcv.installed import require_installed
from pipelines.data.loading import draws
from pipelines.data.source import Boxes, Part, decoded

LARGEST_SIDE = 16384
"""In pixels. An image must fit into one page, and FFCV stores the page size in 32 bits."""

JPEG_SUFFIXES = (".jpg", ".jpeg")

_JPEG_DRAW = draws.stream("prepare", "jpeg")


@dataclass(frozen=True)
class Storage:
    """How images are stored.

    image_size: height and width in pixels of all images: the short side is resized to it, then the centre is cropped,
    as in the memory backend. None: images keep their size up to max_side.
    max_side: without image_size, the longest side in pixels; larger images are shrunk to it.
    jpeg_share: share of images that are stored as JPEG (small), the others as pixels (no decoding).
    quality: of JPEG, 1 to 95; None if nothing is stored as JPEG.
    """

    image_size: int | None
    max_side: int | None
    jpeg_share: float = 0.0
    quality: int | None = None

    def __post_init__(self) -> None:
        if (self.image_size is None) == (self.max_side is None):
            raise ValueError("give either one size for all images (--image-size) or a longest side (--max-side)")
        for option, side in (("--image-size", self.image_size), ("--max-side", self.max_side)):
            if side is not None and not 1 <= side <= LARGEST_SIDE:
                raise ValueError(f"{option} must be 1 to {LARGEST_SIDE} pixels, not {side}")
        if not 0 <= self.jpeg_share <= 1:
            raise ValueError(f"--jpeg-share must be 0 to 1, not {self.jpeg_share}")
        if self.jpeg_share and (self.quality is None or not 1 <= self.quality <= 95):
            raise ValueError(f"--quality must be 1 to 95, not {self.quality}")

    @property
    def most_bytes(self) -> int:
        """Size of the largest image, stored as pixels."""
        return 3 * (self.image_size or self.max_side or 0) ** 2


@runtime_checkable
class WithBoxes(Protocol):
    """A part of a detection data set. It may lack `labels`."""

    def boxes(self, row: int) -> Boxes: ...


class Encoded(NamedTuple):
    """A sample, ready to be written. regions: the bytes of the image; for detection also boxes, classes, difficult."""

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
    """Encodes rows of a part, in worker processes.

    most_objects: number of boxes to which each image is padded, for detection.
    strict: ValueError for a sample that would otherwise be left out or converted; it names the sample.
    """

    part: Any  # a Part, or Photos WithBoxes
    storage: Storage
    most_objects: int
    strict: bool

    @property
    def preloaded(self) -> list[str]:
        """Modules that all processes need and that take seconds to import."""
        return [__name__, "cv2", *(["pipelines.data.readers.image_folders"] if self.storage.image_size else [])]

    def __call__(self, rows: range) -> list[Encoded | LeftOut]:
        """OSError: a file cannot be opened."""
        import cv2  # pyright: ignore[reportMissingImports]

        cv2.setNumThreads(1)  # each core has its own process
        choices = draws.uniform(_JPEG_DRAW, torch.tensor(rows), 0) < self.storage.jpeg_share
        with warnings.catch_warnings(action="ignore"):  # PIL warns of unusual metadata in readable files
            return [self._sample(row, as_jpeg) for row, as_jpeg in zip(rows, choices.tolist(), strict=True)]

    def _sample(self, row: int, as_jpeg: bool) -> Encoded | LeftOut:
        part: Part = self.part
        name, original = part.name(row), None
        try:
            original = part.encoded(row)
            image = part.image(row) if original is None else decoded(io.BytesIO(original), name)
        except ValueError as error:
            if self.strict:
                raise
            return LeftOut(row, name, str(error.__cause__ or error))
        mode, is_jpeg = ("RGB", False) if original is None else _format(original)
        problem = _problem(mode, is_jpeg, name)
        if problem and self.strict:
            raise ValueError(f"{name} {problem}: convert it to an RGB file of its format, or leave out --strict")
        pixels = self._sized(image)
        height, width = pixels.shape[:2]
        unchanged = is_jpeg and mode == "RGB" and (width, height) == image.size
        if not as_jpeg:
            data = pixels.tobytes()
        elif original is not None and unchanged and is_sound(original, height, width):
            data = original  # a second compression would lose quality
        else:
            stream = io.BytesIO()
            assert self.storage.quality is not None, "JPEG without a quality"
            Image.fromarray(pixels).save(stream, "JPEG", quality=self.storage.quality)
            data = stream.getvalue()
        regions, label = (data,), None
        if isinstance(part, WithBoxes):
            regions = data, *self._objects(part.boxes(row), name, image.size, (width, height))
        else:
            label = int(part.labels[row])
        return Encoded(row, label, width, height, as_jpeg, bool(problem), regions)

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
        """The bytes of boxes, classes and difficult, padded with zeros to `most_objects`."""
        boxes, (width, height) = found.boxes.numpy(), before
        low, high = boxes[:, :2], boxes[:, 2:]
        if not ((low >= 0) & (low < high) & (high <= (width, height))).all():
            raise ValueError(f"{name}: a box has no area or lies outside the image of {width} x {height} pixels")
        padded = np.zeros((self.most_objects, 4), np.float32)
        classes, difficult = np.zeros(self.most_objects, np.int64), np.zeros(self.most_objects, np.uint8)
        scale = np.array(after, np.float64) / before
        padded[: len(boxes)] = boxes * np.tile(scale, 2)
        classes[: len(boxes)], difficult[: len(boxes)] = found.labels.numpy(), found.difficult.numpy()
        return padded.tobytes(), classes.tobytes(), difficult.tobytes()


def _format(data: bytes) -> tuple[str, bool]:
    """PIL's mode of an image file, and whether it is a JPEG."""
    with Image.open(io.BytesIO(data)) as image:
        return image.mode, image.format == "JPEG"


def _problem(mode: str, is_jpeg: bool, name: str) -> str:
    """What has to be converted; empty: nothing."""
    if mode != "RGB":
        return f"has the mode {mode} instead of RGB"
    if not is_jpeg and PurePath(name).suffix.lower() in JPEG_SUFFIXES:
        return "is named like a JPEG file but has another format"
    return ""


def _shrunk(pixels: np.ndarray, max_side: int | None) -> np.ndarray:
    """Shrink to a longest side of at most `max_side`, by area averaging.

    FFCV's writer does the same, and published accuracies come from images shrunk in this way.
    """
    import cv2  # pyright: ignore[reportMissingImports]

    height, width = pixels.shape[:2]
    if max_side is None or max(height, width) <= max_side:
        return pixels
    ratio = max_side / max(height, width)
    size = max(1, round(width * ratio)), max(1, round(height * ratio))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


def is_sound(data: bytes, height: int, width: int) -> bool:
    """Whether the decoder accepts a JPEG file without a warning.

    It warns of what other decoders accept, such as bytes between the markers, and the reader treats warnings as damage.
    """
    pixels = np.empty((height, width, 3), np.uint8)
    source = np.frombuffer(data, np.uint8)
    whole = (height, width, pixels.ctypes.data, height, width, 0, 0, 1, 1, False, False)
    return _decoder()(source.ctypes.data, len(data), *whole) == 0


@functools.cache
def _decoder() -> Callable[..., int]:
    """FFCV's JPEG decoder alone, without the import of FFCV, which takes seconds."""
    require_installed()
    spec = find_spec("ffcv")
    assert spec is not None
    assert spec.submodule_search_locations
    [library] = Path(spec.submodule_search_locations[0]).glob("_libffcv*.so")
    found = ctypes.CDLL(str(library)).imdecode
    number, flag, address = ctypes.c_uint32, ctypes.c_bool, ctypes.c_void_p
    found.argtypes = [address, ctypes.c_uint64, number, number, address, *[number] * 6, flag, flag]
    return found
