"""Data sets held in memory as uint8 arrays."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipelines.data.loading import draws
from pipelines.data.source import RGB, Part, Pixels, Source, in_threads, pixel_fingerprint

# Mean and population standard deviation of all pixels / 255 of the training part (validation not yet held out).
DIGITS_MEAN: RGB = (0.3052, 0.3052, 0.3052)
DIGITS_STD: RGB = (0.3758, 0.3758, 0.3758)


@dataclass(frozen=True)
class Arrays:
    """A data set in memory.

    images: "train" and "test" -> (N, H, W, 3) uint8.
    labels: "train" and "test" -> (N,) int64 on the CPU.
    mean, std: per channel, of pixel values / 255.
    fingerprint: a short hash of the data. classes: names, in the order of the labels.
    """

    images: dict[str, np.ndarray]
    labels: dict[str, Tensor]
    num_classes: int
    mean: RGB
    std: RGB
    fingerprint: str
    classes: tuple[str, ...] = ()


def read_digits() -> Arrays:
    """scikit-learn's digits, 8 x 8 grey levels 0..16 scaled to 0..255; a fixed fifth of each class is the test part."""
    table = _digits_of_scikit_learn()
    grey = np.rint(table[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    pixels = np.repeat(grey[..., None], 3, axis=-1)
    labels = torch.from_numpy(table[:, -1]).long()
    # The key is constant: the test part is the same for all seeds.
    rows = dict(zip(("train", "test"), draws.hold_out(labels, 0.2, draws.stream("digits", "test")), strict=True))
    images = {part: pixels[at.numpy()] for part, at in rows.items()}
    targets = {part: labels[at] for part, at in rows.items()}
    identity = pixel_fingerprint(images, targets)
    return Arrays(images, targets, 10, DIGITS_MEAN, DIGITS_STD, identity, tuple("0123456789"))


def _digits_of_scikit_learn() -> np.ndarray:
    """(1797, 65) float64: 64 grey levels and the digit. From its file: importing it would cost each worker a second."""
    found = find_spec("sklearn")
    if found is None or found.origin is None:
        raise ValueError("the digits need the package scikit-learn: install it")
    return np.loadtxt(Path(found.origin).parent / "datasets/data/digits.csv.gz", delimiter=",")


def read_whole(source: Source, image_size: int) -> Arrays:
    """All images of `source`: short side resized to `image_size`, then a centre crop. ValueError names a bad image."""
    images = {name: pixels(part, image_size) for name, part in source.parts.items()}
    labels = {name: part.labels for name, part in source.parts.items()}
    # The pixels of files identify the data, wherever and in which format it is stored.
    held = all(isinstance(part, Pixels) for part in source.parts.values())
    identity = source.fingerprint if held else pixel_fingerprint(images, labels)
    return Arrays(images, labels, len(source.classes), source.mean, source.std, identity, source.classes)


def pixels(part: Part, image_size: int) -> np.ndarray:
    """(N, image_size, image_size, 3) uint8."""
    from pipelines.data.readers.image_folders import centre  # imports torchvision, which takes seconds

    if isinstance(part, Pixels) and part.pixels.shape[1:3] == (image_size, image_size):
        return part.pixels
    found = np.empty((len(part), image_size, image_size, 3), np.uint8)

    def fill(row: int) -> None:
        found[row] = centre(part.image(row), image_size, image_size)

    in_threads(fill, len(part))
    return found
