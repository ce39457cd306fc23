"""The interface of every data source: named parts whose samples any process can read by row number."""

import hashlib
import io
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

T = TypeVar("T")

RGB = tuple[float, float, float]

IMAGENET_MEAN: RGB = (0.485, 0.456, 0.406)
IMAGENET_STD: RGB = (0.229, 0.224, 0.225)

# stat, read and decoding release the GIL, and network file systems answer several requests faster than one after the
# other.
_THREADS = 8
_AT_ONCE = 256


class Part(Protocol):
    """Samples in a fixed order. Small and picklable, so that it can be sent to decoding processes."""

    @property
    def labels(self) -> Tensor:
        """(N,) int64 on the CPU."""
        ...

    def __len__(self) -> int: ...

    def name(self, row: int) -> str:
        """Where the sample is, for messages."""
        ...

    def encoded(self, row: int) -> bytes | None:
        """The image file as stored; None: the source holds pixels."""
        ...

    def image(self, row: int) -> Image.Image:
        """In RGB. ValueError: it cannot be read."""
        ...


@dataclass(frozen=True)
class Boxes:
    """The n objects of one image, n may be 0.

    boxes: (n, 4) float32; left, top, right and bottom in pixels from 0; the width of a box is right - left.
    labels: (n,) int64, starting at 1.
    difficult: (n,) bool; VOC's evaluation ignores difficult objects.
    """

    boxes: Tensor
    labels: Tensor
    difficult: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Source:
    """A data set in its official form.

    name: in tables and tags ("cifar10", "imagenet"...).
    classes: names, in the order of the labels.
    parts: "train" and "test".
    mean, std: per channel, of pixel values / 255.
    fingerprint: 16 hexadecimal digits that identify the data, wherever it is stored.
    missing: how it differs from the official data set, as text ("100 of 200 classes"); empty: it is complete.
    """

    name: str
    classes: tuple[str, ...]
    parts: Mapping[str, Part]
    mean: RGB
    std: RGB
    fingerprint: str
    missing: tuple[str, ...] = ()

    def check_complete(self, subset: bool) -> None:
        """Errors as the function of this name."""
        check_complete(self.name, self.missing, subset)


def check_complete(name: str, missing: Sequence[str], subset: bool) -> None:
    """ValueError: an incomplete data set is not declared as a subset, or a complete one is."""
    if missing and not subset:
        raise ValueError(
            f"{name} is incomplete ({'; '.join(missing)}): get the missing files, or declare a subset by "
            "--subset (prepare.py) or --data.subset (training); the results are then labelled -subset"
        )
    if subset and not missing:
        raise ValueError(f"{name} is complete, not a subset: leave out --subset or --data.subset")


@contextmanager
def opened(file: Path | io.BytesIO, name: str, what: str = "image") -> Iterator[Image.Image]:
    """An image file, for a block that reads it. ValueError: it cannot be read; errors call it `name`, a `what`."""
    try:
        with Image.open(file) as image:
            yield image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name} is not a readable {what} ({error}): download it again or remove it") from error


def decoded(file: Path | io.BytesIO, name: str, upright: bool = False) -> Image.Image:
    """An image file in RGB. upright: turned as its EXIF orientation says. ValueError: it cannot be read."""
    with opened(file, name) as image:
        problem = _ambiguous(image)
        if not problem:
            return _rgb(ImageOps.exif_transpose(image) if upright else image)
    raise ValueError(f"{name} {problem}")


def _is_16_bit(image: Image.Image) -> bool:
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")


def _ambiguous(image: Image.Image) -> str:
    """Why nothing says which picture is meant; empty: it is clear."""
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format in ("PNG", "TIFF", "WEBP"):  # a JPEG's others are previews
        return f"has {frames} pictures: save the one that you want"
    if image.mode in ("I", "F") and not _is_16_bit(image):
        return f"has pixels of mode {image.mode}, whose range is not known: save it with 8 bits"
    if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema() != (255, 255):
        return "has transparent pixels: save it on the background that you want"
    return ""


def _rgb(image: Image.Image) -> Image.Image:
    if _is_16_bit(image):
        image = Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
    return image.convert("RGB")


@dataclass(frozen=True)
class ImageFiles:
    """Image files below a folder.

    names: (N,) bytes, paths relative to root. An array, not a list: decoding processes share it without a copy.
    """

    root: Path
    names: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    def path(self, row: int) -> Path:
        return self.root / os.fsdecode(self.names[row])

    def name(self, row: int) -> str:
        return str(self.path(row))

    def encoded(self, row: int) -> bytes | None:
        return self.path(row).read_bytes()

    def image(self, row: int) -> Image.Image:
        """In RGB. ValueError: it cannot be read."""
        return decoded(self.path(row), self.name(row))


@dataclass(frozen=True)
class Files(ImageFiles):
    """Image files with one class each. labels: (N,) int64."""

    labels: Tensor


@dataclass(frozen=True)
class Upright(Files):
    """Image files with one class each, turned as their EXIF orientation says."""

    def encoded(self, row: int) -> bytes | None:
        """None for a file that must be turned: its bytes are not those of the image."""
        data = self.path(row).read_bytes()
        with opened(io.BytesIO(data), self.name(row)) as image:
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        return None if turned else data

    def image(self, row: int) -> Image.Image:
        return decoded(self.path(row), self.name(row), upright=True)


MOST_BYTES = 1 << 28
"""Of an unpacked file in an archive: more is no image and no list of any data set here."""


@dataclass(frozen=True)
class Members:
    """Image files inside an archive that does not compress them, read in place.

    names: (N,) bytes, of members. start, size: (N,) int64; first byte and length of each in the archive.
    """

    archive: Path
    names: np.ndarray
    start: np.ndarray
    size: np.ndarray
    labels: Tensor

    def __len__(self) -> int:
        return len(self.names)

    def name(self, row: int) -> str:
        return f"{self.archive}:{os.fsdecode(self.names[row])}"

    def encoded(self, row: int) -> bytes:
        with self.archive.open("rb") as file:
            file.seek(int(self.start[row]))
            return file.read(int(self.size[row]))

    def image(self, row: int) -> Image.Image:
        return decoded(io.BytesIO(self.encoded(row)), self.name(row))


@dataclass(frozen=True)
class ZipMembers(Members):
    """Image files inside a zip archive, read in place by their offsets: the archive's index is read once only.

    start, size: offset of a member's header, and its stored bytes.
    deflated: (N,) bool, whether these are compressed. crc: (N,) uint32, of the image file.
    """

    deflated: np.ndarray
    crc: np.ndarray

    def encoded(self, row: int) -> bytes:
        with self.archive.open("rb") as file:
            file.seek(int(self.start[row]))
            # The last four bytes are the lengths of the two fields before the data: name and extra field.
            header = file.read(30)
            file.seek(int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little"), os.SEEK_CUR)
            data = file.read(int(self.size[row]))
        try:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, MOST_BYTES) if self.deflated[row] else data
        except zlib.error as error:
            raise ValueError(f"{self.name(row)} cannot be read ({error}): download the archive again") from error
        if zlib.crc32(data) != self.crc[row]:
            raise ValueError(f"{self.name(row)} is damaged (wrong CRC-32): download the archive again")
        return data


@dataclass(frozen=True)
class Pixels:
    """Images that the source holds as arrays. pixels: (N, H, W, 3) uint8. what: where they are, for messages."""

    pixels: np.ndarray
    labels: Tensor
    what: str

    def __len__(self) -> int:
        return len(self.pixels)

    def name(self, row: int) -> str:
        return f"{self.what}, image {row}"

    def encoded(self, row: int) -> None:
        return None

    def image(self, row: int) -> Image.Image:
        return Image.fromarray(self.pixels[row])


def in_threads(task: Callable[[int], T], num: int) -> list[T]:
    """task(row) for the rows 0 to num - 1, in order, by threads. The first error is raised."""

    def some(start: int) -> list[T]:
        return [task(row) for row in range(start, min(start + _AT_ONCE, num))]

    with ThreadPoolExecutor(_THREADS) as pool:
        return list(chain.from_iterable(pool.map(some, range(0, num, _AT_ONCE))))


def pixel_fingerprint(images: Mapping[str, np.ndarray], labels: Mapping[str, Tensor]) -> str:
    """16 hexadecimal digits over labels, shapes and pixels of both parts."""
    digest = hashlib.sha256()
    for part in ("train", "test"):
        digest.update(repr(images[part].shape).encode())
        digest.update(labels[part].numpy().tobytes())
        digest.update(np.ascontiguousarray(images[part]).data)
    return digest.hexdigest()[:16]
