"""What an experiment says of its data: plain frozen values, hashed, stored with the run and parsed as options."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from pipelines.identity import ADDED, PLACE

Backend = Literal["memory", "ffcv", "folder"]
"""Held on the device; decoded by threads from the .beton files that `pipelines/prepare.py` wrote; decoded by processes
from the official files."""


@dataclass(frozen=True)
class Augmentation:
    """Random changes of a training image that lies in memory; evaluation sees none of them."""

    crop_padding: int
    """Black pixels added on each side before a crop of the original size is drawn; 0 draws no crop."""

    flip: bool
    """Whether half of the images are mirrored left to right."""

    def __post_init__(self) -> None:
        if self.crop_padding < 0:
            raise ValueError(f"crop_padding must be 0 or more, not {self.crop_padding}")


@dataclass(frozen=True)
class Resolution:
    """Training images that grow: `low` pixels up to `start`, `high` from `end` on, in between a multiple of 32."""

    low: int = 0
    """Height and width in pixels at first; 0: images do not grow."""

    high: int = 0
    """Height and width in pixels at last."""

    start: float = 0.0
    """Share of the training after which they grow."""

    end: float = 0.0
    """Share of the training after which they do not grow any more."""

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high or (self.high and not self.low):
            raise ValueError(f"low must lie between 1 and high ({self.high}), or both be 0, not {self.low}")
        if not 0 <= self.start <= self.end <= 1:
            raise ValueError(f"start and end must be ascending shares of the training, not {self.start}, {self.end}")

    def at(self, progress: float) -> int | None:
        """Pixels of an epoch that begins after the share `progress` of the training; None: the usual ones."""
        if progress <= self.start:
            return self.low or None
        if progress >= self.end:
            return self.high or None
        between = self.low + (self.high - self.low) * (progress - self.start) / (self.end - self.start)
        return round(between / 32) * 32 or None


@dataclass(frozen=True)
class Digits:
    """scikit-learn's 1,797 real handwritten digits, 8 x 8 pixels, repeated to three channels; nothing to download."""

    augmentation: Augmentation = Augmentation(crop_padding=1, flip=False)
    """Random crop and flip of training images."""

    val_fraction: float = 0.1
    """Share of each class's training images held out for validation; 0 for none."""

    def __post_init__(self) -> None:
        check_val_fraction(self.val_fraction)

    @property
    def label(self) -> str:
        """The data set's name in tables and tags."""
        return "digits"


@dataclass(frozen=True)
class CIFAR10:
    """CIFAR-10 from its official python archive or the folder unpacked from it."""

    root: str = field(default="data", metadata=PLACE)
    """Folder that holds cifar-10-python.tar.gz or cifar-10-batches-py; for ffcv, where prepare wrote."""

    augmentation: Augmentation = Augmentation(crop_padding=4, flip=True)
    """Random crop and flip of training images."""

    val_fraction: float = 0.1
    """Share of each class's training images held out for validation; 0 for none."""

    backend: Backend = field(default="memory", metadata=ADDED)
    """memory: held on the device; ffcv: decoded by threads from what pipelines/prepare.py wrote into root; folder:
    decoded by processes from the official files"""

    subset: bool = field(default=False, metadata=ADDED)
    """root holds a part of the data set only; the data set's name then says so"""

    def __post_init__(self) -> None:
        check_val_fraction(self.val_fraction)

    @property
    def label(self) -> str:
        """The data set's name in tables and tags."""
        return label_of("cifar10", self.subset)


@dataclass(frozen=True)
class CIFAR100:
    """CIFAR-100 with its 100 fine labels, from its official python archive or the folder unpacked from it."""

    root: str = field(default="data", metadata=PLACE)
    """Folder that holds cifar-100-python.tar.gz or cifar-100-python; for ffcv, where prepare wrote."""

    augmentation: Augmentation = Augmentation(crop_padding=4, flip=True)
    """Random crop and flip of training images."""

    val_fraction: float = 0.1
    """Share of each class's training images held out for validation; 0 for none."""

    backend: Backend = field(default="memory", metadata=ADDED)
    """memory: held on the device; ffcv: decoded by threads from what pipelines/prepare.py wrote into root; folder:
    decoded by processes from the official files"""

    subset: bool = field(default=False, metadata=ADDED)
    """root holds a part of the data set only; the data set's name then says so"""

    def __post_init__(self) -> None:
        check_val_fraction(self.val_fraction)

    @property
    def label(self) -> str:
        """The data set's name in tables and tags."""
        return label_of("cifar100", self.subset)


@dataclass(frozen=True)
class TinyImageNet:
    """Tiny-ImageNet (200 classes, 64 pixels) from its official zip, or the folder unpacked from it."""

    root: str = field(default="data", metadata=PLACE)
    """Folder that holds tiny-imagenet-200.zip or tiny-imagenet-200, or is the latter; for ffcv, where prepare wrote."""

    augmentation: Augmentation = Augmentation(crop_padding=4, flip=True)
    """Random crop and flip of training images."""

    val_fraction: float = 0.1
    """Share of each class's training images held out for validation; the official val part is the test split."""

    backend: Backend = "memory"
    """memory: held on the device; ffcv: decoded by threads from what pipelines/prepare.py wrote into root; folder:
    decoded by processes from the official files"""

    subset: bool = False
    """root holds a part of the data set only; the data set's name then says so"""

    def __post_init__(self) -> None:
        check_val_fraction(self.val_fraction)

    @property
    def label(self) -> str:
        """The data set's name in tables and tags."""
        return label_of("tiny-imagenet", self.subset)


@dataclass(frozen=True)
class Images:
    """Any folder of small images, train/<class>/* with test/<class>/* or val/<class>/*, read into memory."""

    root: str = field(default="data/images", metadata=PLACE)
    """Folder that holds train/ and test/ (or val/, which then is the test split); for ffcv, where prepare wrote."""

    name: str = "images"
    """The data set's name in tables and tags."""

    image_size: int = 64
    """Height and width in pixels: the short side is resized to it, then the centre is cropped."""

    augmentation: Augmentation = Augmentation(crop_padding=4, flip=True)
    """Random crop and flip of training images."""

    val_fraction: float = 0.1
    """Share of each class's training images held out for validation; 0 for none."""

    backend: Backend = field(default="memory", metadata=ADDED)
    """memory: held on the device; ffcv: decoded by threads from what pipelines/prepare.py wrote into root; folder:
    decoded by processes from the official files"""

    def __post_init__(self) -> None:
        check_val_fraction(self.val_fraction)
        if self.image_size < 1:
            raise ValueError(f"image_size must be at least 1, not {self.image_size}")

    @property
    def label(self) -> str:
        """The data set's name in tables and tags."""
        return self.name


@dataclass(frozen=True)
class ImageNet:
    """ImageNet's folders train/<wnid>/*.JPEG and val/<wnid>/*.JPEG, decoded on the fly; val/ is the test split."""

    root: str = field(default="data/imagenet", metadata=PLACE)
    """Folder that holds train/ and val/, or the official tars; for ffcv, where prepare wrote."""

    name: str = "imagenet"
    """The data set's name in tables and tags; another one for anything but the whole of ImageNet."""

    image_size: int = 224
    """Height and width in pixels of what the network sees."""

    resize: int = 256
    """Short side in pixels to which an image is resized before evaluation crops its centre."""

    val_fraction: float = 0.02
    """Share of each class's training images held out for validation; 0 for none."""

    backend: Literal["folder", "ffcv"] = field(default="folder", metadata=ADDED)
    """folder: decoded by processes from the official files; ffcv: decoded by threads from what pipelines/prepare.py
    wrote into root"""

    subset: bool = field(default=False, metadata=ADDED)
    """root holds a part of the data set only; the data set's name then says so"""

    resolution: Resolution = field(default=Resolution(), metadata=ADDED)
    """Training's pixels, where they grow from epoch to epoch."""

    def __post_init__(self) -> None:
        check_val_fraction(self.val_fraction)
        if not 1 <= self.image_size <= self.resize:
            raise ValueError(f"resize must be at least image_size ({self.image_size}), not {self.resize}")

    @property
    def label(self) -> str:
        """The data set's name in tables and tags."""
        return label_of(self.name, self.subset)


@dataclass(frozen=True)
class CUB:
    """CUB-200-2011 from its official folder CUB_200_2011; the official test part is the test split."""

    root: str = field(default="data", metadata=PLACE)
    """Folder that holds CUB_200_2011 or is it; for ffcv, where prepare wrote."""

    name: str = "cub200"
    """The data set's name in tables and tags; another one for anything but these birds."""

    image_size: int = 224
    """Height and width in pixels of what the network sees."""

    resize: int = 256
    """Short side in pixels to which an image is resized before evaluation crops its centre."""

    val_fraction: float = 0.1
    """Share of each class's training images held out for validation; 0 for none."""

    backend: Literal["folder", "ffcv"] = "folder"
    """folder: decoded by processes from the official files; ffcv: decoded by threads from what pipelines/prepare.py
    wrote into root"""

    subset: bool = False
    """root holds a part of the data set only; the data set's name then says so"""

    def __post_init__(self) -> None:
        check_val_fraction(self.val_fraction)
        if not 1 <= self.image_size <= self.resize:
            raise ValueError(f"resize must be at least image_size ({self.image_size}), not {self.resize}")

    @property
    def label(self) -> str:
        """The data set's name in tables and tags."""
        return label_of(self.name, self.subset)


Data: TypeAlias = Digits | CIFAR10 | CIFAR100 | TinyImageNet | Images | ImageNet | CUB


def label_of(name: str, subset: bool) -> str:
    """A data set's name in tables and tags."""
    return f"{name}-subset" if subset else name


def check_val_fraction(value: float) -> None:
    """ValueError: no share that leaves something to train on."""
    if not 0 <= value < 1:
        raise ValueError(f"val_fraction must be at least 0 and below 1, not {value}")
