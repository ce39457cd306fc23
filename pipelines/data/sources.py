"""The real formats of small data sets, read into uint8 arrays."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines.data import draws, splits
from pipelines.data.config import CIFAR10, CIFAR100, Digits, Images

RGB = tuple[float, float, float]

IMAGENET_MEAN: RGB = (0.485, 0.456, 0.406)
IMAGENET_STD: RGB = (0.229, 0.224, 0.225)
# Mean and population standard deviation of all pixels / 255 of the training part (validation not yet held out).
DIGITS_MEAN: RGB = (0.3052, 0.3052, 0.3052)
DIGITS_STD: RGB = (0.3758, 0.3758, 0.3758)


@dataclass(frozen=True)
class Arrays:
    """A data set in memory.

    images: "train" and "test" -> (N, H, W, 3) uint8.
    labels: "train" and "test" -> (N,) int64 on the CPU.
    mean, std: per channel, of pixel values / 255.
    fingerprint: a short hash of what the data is.
    """

    images: dict[str, np.ndarray]
    labels: dict[str, Tensor]
    num_classes: int
    mean: RGB
    std: RGB
    fingerprint: str


def read(config: Digits | CIFAR10 | CIFAR100 | Images) -> Arrays:
    """The data set that `config` describes; FileNotFoundError or ValueError says what is wrong with its files."""
    if isinstance(config, Digits):
        return read_digits()
    if isinstance(config, Images):
        return read_images(config)
    from pipelines.data.archives import read_archive  # torchvision's import takes seconds, and the digits do without

    return read_archive(config.label, config.root)


def read_digits() -> Arrays:
    """scikit-learn's digits, 8 x 8 grey levels 0..16 stretched to 0..255; a fixed fifth of each class is for test."""
    # Imported here: scikit-learn takes a second, and only the digits need it.
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    pixels = np.repeat(grey[..., None], 3, axis=-1)
    labels = torch.from_numpy(digits.target).long()
    # The key is fixed: the test part is the same in every experiment, whatever its seed.
    rows = dict(zip(("train", "test"), splits.hold_out(labels, 0.2, draws.stream("digits", "test")), strict=True))
    images = {part: pixels[at.numpy()] for part, at in rows.items()}
    targets = {part: labels[at] for part, at in rows.items()}
    return Arrays(images, targets, 10, DIGITS_MEAN, DIGITS_STD, fingerprint(images, targets))


def read_images(config: Images) -> Arrays:
    """A folder of images, resized and cropped to `config.image_size`. Errors as `image_folders.scan` and `.read`."""
    from pipelines.data import image_folders

    classes, *folders = image_folders.scan(config.root, ("test", "val"))
    parts = dict(zip(("train", "test"), folders, strict=True))
    images = {part: image_folders.read(folder, config.image_size) for part, folder in parts.items()}
    labels = {part: folder.labels for part, folder in parts.items()}
    return Arrays(images, labels, len(classes), IMAGENET_MEAN, IMAGENET_STD, fingerprint(images, labels))


def fingerprint(images: dict[str, np.ndarray], labels: dict[str, Tensor]) -> str:
    """16 hexadecimal digits over labels, shapes and pixels of both parts."""
    digest = hashlib.sha256()
    for part in ("train", "test"):
        digest.update(repr(images[part].shape).encode())
        digest.update(labels[part].numpy().tobytes())
        digest.update(np.ascontiguousarray(images[part]).data)
    return digest.hexdigest()[:16]
