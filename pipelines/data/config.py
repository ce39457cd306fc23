"""Configuration of the data of an experiment: frozen values, part of its identity and options of the command line."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal, TypeAlias

from pipelines.identity import ADDED, PLACE

Backend = Literal["memory", "ffcv", "folder"]


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training images. Evaluation has none."""

    crop_padding: int
    """Black pixels added on each side before a random crop of the original size; 0: no crop."""

    flip: bool
    """Flip half of the images left to right."""

    def __post_init__(self) -> None:
        if self.crop_padding < 0:
            raise ValueError(f"crop_padding must be 0 or more, not {self.crop_padding}")


@dataclass(frozen=True)
class DetectionAugmentation:
    """Random changes of training images and their boxes. Evaluation has none."""

    crop: bool = True
    """Crop and enlarge a part of the image that contains the centre of an object."""

    flip: bool = True
    """Flip half of the images left to right."""


@dataclass(frozen=True)
class Resolution:
    """Training images that grow: `low` pixels until `start`, `high` from `end`, in between multiples of 32."""

    low: int = 0
    """Height and width in pixels at the start; 0: images do not grow."""

    high: int = 0
    """Height and width in pixels at the end."""

    start: float = 0.0
    """Share of the training after which they start to grow."""

    end: float = 0.0
    """Share of the training after which they have their final size."""

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high or (self.high and not self.low):
            raise ValueError(f"low must lie between 1 and high ({self.high}), or both be 0, not {self.low}")
        if not 0 <= self.start <= self.end <= 1:
            raise ValueError(f"start and end must be ascending shares of the training, not {self.start}, {self.end}")

    def at(self, progress: float) -> int | None:
        """Height and width in an epoch that starts after the share `progress` of the training; None: the usual size."""
        if progress <= self.start:
            return self.low or None
        if progress >= self.end:
            return self.high or None
        between = self.low + (self.high - self.low) * (progress - self.start) / (self.end - self.start)
        return round(between / 32) * 32 or None


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Fields of all data sets."""

    name_in_tables: ClassVar[str]

    val_fraction: float = 0.1
    """Share of each class's training images held out for validation; 0: none."""

    def __post_init__(self) -> None:
        if not 0 <= self.val_fraction < 1:
            raise ValueError(f"val_fraction must be at least 0 and below 1, not {self.val_fraction}")

    @property
    def label(self) -> str:
        """The data set's name in tables and tags; "-subset" marks an incomplete one."""
        name = getattr(self, "name", None) or self.name_in_tables
        return f"{name}-subset" if getattr(self, "subset", False) else name


@dataclass(frozen=True, kw_only=True)
class FileData(DataConfig):
    """Fields of data sets that are read from files."""

    root: str = field(default="data", metadata=PLACE)
    """Folder of the official files; with backend ffcv, the folder that prepare.py wrote."""

    subset: bool = False
    """The files are only a part of the data set. Its name then ends in -subset."""


@dataclass(frozen=True, kw_only=True)
class SmallImages(FileData):
    """Fields of data sets of small images, which can be held in memory."""

    augmentation: Augmentation = Augmentation(crop_padding=4, flip=True)
    """Random crop and flip of training images."""

    backend: Backend = "memory"
    """memory: held on the device; ffcv: decoded by threads from what pipelines/prepare.py wrote into root; folder:
    decoded by processes from the official files"""


@dataclass(frozen=True, kw_only=True)
class Photographs(FileData):
    """Fields of data sets of large images."""

    image_size: int = 224
    """Height and width in pixels of the network's input."""

    resize: int = 256
    """Short side in pixels to which evaluation resizes an image before it crops the centre."""

    backend: Literal["folder", "ffcv"] = "folder"
    """folder: decoded by processes from the official files; ffcv: decoded by threads from what pipelines/prepare.py
    wrote into root"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.image_size <= self.resize:
            raise ValueError(f"resize must be at least image_size ({self.image_size}), not {self.resize}")


@dataclass(frozen=True, kw_only=True)
class Digits(DataConfig):
    """scikit-learn's 1,797 real handwritten digits, 8 x 8 pixels, repeated to three channels; no download."""

    name_in_tables = "digits"

    augmentation: Augmentation = Augmentation(crop_padding=1, flip=False)
    """Random crop and flip of training images."""


@dataclass(frozen=True, kw_only=True)
class _CIFAR(SmallImages):
    backend: Backend = field(default="memory", metadata=ADDED)
    subset: bool = field(default=False, metadata=ADDED)


@dataclass(frozen=True, kw_only=True)
class CIFAR10(_CIFAR):
    """CIFAR-10. The root holds cifar-10-python.tar.gz or the folder cifar-10-batches-py."""

    name_in_tables = "cifar10"


@dataclass(frozen=True, kw_only=True)
class CIFAR100(_CIFAR):
    """CIFAR-100 with its 100 fine labels. The root holds cifar-100-python.tar.gz or the folder cifar-100-python."""

    name_in_tables = "cifar100"


@dataclass(frozen=True, kw_only=True)
class TinyImageNet(SmallImages):
    """Tiny-ImageNet: 200 classes, 64 pixels; the official val part is the test split.

    The root holds tiny-imagenet-200.zip or the folder tiny-imagenet-200, or is that folder.
    """

    name_in_tables = "tiny-imagenet"


@dataclass(frozen=True, kw_only=True)
class Images(DataConfig):
    """Any folder of small images: train/<class>/* with test/<class>/* or val/<class>/*."""

    root: str = field(default="data/images", metadata=PLACE)
    """Folder that holds train/ and test/ (or val/, which is then the test split); with backend ffcv, the folder that
    prepare.py wrote"""

    name: str = "images"
    """The data set's name in tables and tags."""

    image_size: int = 64
    """Height and width in pixels: the short side is resized to it, then the centre is cropped."""

    augmentation: Augmentation = Augmentation(crop_padding=4, flip=True)
    """Random crop and flip of training images."""

    backend: Backend = field(default="memory", metadata=ADDED)
    """memory: held on the device; ffcv: decoded by threads from what pipelines/prepare.py wrote into root; folder:
    decoded by processes from the image files"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size < 1:
            raise ValueError(f"image_size must be at least 1, not {self.image_size}")


@dataclass(frozen=True, kw_only=True)
class ImageNet(Photographs):
    """ImageNet: train/<wnid>/*.JPEG and val/<wnid>/*.JPEG, or the official tars. val/ is the test split."""

    root: str = field(default="data/imagenet", metadata=PLACE)

    name: str = "imagenet"
    """The data set's name in tables and tags; choose another one for anything but the complete ImageNet."""

    val_fraction: float = 0.02

    backend: Literal["folder", "ffcv"] = field(default="folder", metadata=ADDED)
    subset: bool = field(default=False, metadata=ADDED)

    resolution: Resolution = field(default=Resolution(), metadata=ADDED)
    """Pixels of training images, if they grow from epoch to epoch."""


@dataclass(frozen=True, kw_only=True)
class CUB(Photographs):
    """CUB-200-2011. The root holds the folder CUB_200_2011 or is it; the official test part is the test split."""

    name: str = "cub200"
    """The data set's name in tables and tags; choose another one for anything but CUB-200-2011."""


@dataclass(frozen=True, kw_only=True)
class VOC(FileData):
    """Pascal VOC's objects with boxes. The root holds the folder VOCdevkit or is it. Images are letterboxed."""

    years: Literal["2007", "2012", "2007+2012"] = "2007+2012"
    """2007 or 2007+2012: train on trainval of each year, test on the test list of 2007; 2012, which has no public test
    list: train on its train list, test on its val list"""

    image_size: int = 320
    """Height and width in pixels of the network's input. 320 is our choice; published detectors differ."""

    augmentation: DetectionAugmentation = DetectionAugmentation()
    """Random crop and flip of training images."""

    backend: Literal["folder", "ffcv"] = "folder"
    """folder: decoded by processes from the official files; ffcv: decoded by threads from what pipelines/prepare.py
    wrote into root"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size < 1:
            raise ValueError(f"image_size must be at least 1, not {self.image_size}")

    @property
    def name(self) -> str:
        return "voc" + "+".join(year[2:] for year in self.years.split("+"))


Data: TypeAlias = Digits | CIFAR10 | CIFAR100 | TinyImageNet | Images | ImageNet | CUB
"""Data of an experiment."""

Official: TypeAlias = CIFAR10 | CIFAR100 | TinyImageNet | Images | ImageNet | CUB | VOC
"""Data in files, which `pipelines/prepare.py` can prepare for FFCV."""
