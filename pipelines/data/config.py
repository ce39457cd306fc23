"""What an experiment says of its data: plain frozen values, hashed, stored with the run and parsed as options."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from pipelines.identity import PLACE


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
class Digits:
    """scikit-learn's 1,797 real handwritten digits, 8 x 8 pixels, repeated to three channels; nothing to download."""

    augmentation: Augmentation = Augmentation(crop_padding=1, flip=False)
    """Random crop and flip of training images."""

    val_fraction: float = 0.1
    """Share of each class's training images held out for validation; 0 for none."""

    def __post_init__(self) -> None:
        _check_val_fraction(self.val_fraction)

    @property
    def label(self) -> str:
        """The data set's name in tables and tags."""
        return "digits"


@dataclass(frozen=True)
class CIFAR10:
    """CIFAR-10 from its official python archive or the folder unpacked from it."""

    root: str = field(default="data", metadata=PLACE)
    """Folder that holds cifar-10-python.tar.gz or cifar-10-batches-py."""

    augmentation: Augmentation = Augmentation(crop_padding=4, flip=True)
    """Random crop and flip of training images."""

    val_fraction: float = 0.1
    """Share of each class's training images held out for validation; 0 for none."""

    def __post_init__(self) -> None:
        _check_val_fraction(self.val_fraction)

    @property
    def label(self) -> str:
        """The data set's name in tables and tags."""
        return "cifar10"


@dataclass(frozen=True)
class CIFAR100:
    """CIFAR-100 with its 100 fine labels, from its official python archive or the folder unpacked from it."""

    root: str = field(default="data", metadata=PLACE)
    """Folder that holds cifar-100-python.tar.gz or cifar-100-python."""

    augmentation: Augmentation = Augmentation(crop_padding=4, flip=True)
    """Random crop and flip of training images."""

    val_fraction: float = 0.1
    """Share of each class's training images held out for validation; 0 for none."""

    def __post_init__(self) -> None:
        _check_val_fraction(self.val_fraction)

    @property
    def label(self) -> str:
        """The data set's name in tables and tags."""
        return "cifar100"


@dataclass(frozen=True)
class Images:
    """Any folder of small images, train/<class>/* with test/<class>/* or val/<class>/*, read into memory."""

    root: str = field(default="data/images", metadata=PLACE)
    """Folder that holds train/ and test/ (or val/, which then is the test split)."""

    name: str = "images"
    """The data set's name in tables and tags."""

    image_size: int = 64
    """Height and width in pixels: the short side is resized to it, then the centre is cropped."""

    augmentation: Augmentation = Augmentation(crop_padding=4, flip=True)
    """Random crop and flip of training images."""

    val_fraction: float = 0.1
    """Share of each class's training images held out for validation; 0 for none."""

    def __post_init__(self) -> None:
        _check_val_fraction(self.val_fraction)
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
    """Folder that holds train/ and val/."""

    name: str = "imagenet"
    """The data set's name in tables and tags; another one for anything but the whole of ImageNet."""

    image_size: int = 224
    """Height and width in pixels of what the network sees."""

    resize: int = 256
    """Short side in pixels to which an image is resized before evaluation crops its centre."""

    val_fraction: float = 0.02
    """Share of each class's training images held out for validation; 0 for none."""

    def __post_init__(self) -> None:
        _check_val_fraction(self.val_fraction)
        if not 1 <= self.image_size <= self.resize:
            raise ValueError(f"resize must be at least image_size ({self.image_size}), not {self.resize}")

    @property
    def label(self) -> str:
        """The data set's name in tables and tags."""
        return self.name


Data: TypeAlias = Digits | CIFAR10 | CIFAR100 | Images | ImageNet


def _check_val_fraction(value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"val_fraction must be at least 0 and below 1, not {value}")
