"""What is said of data for detection: plain frozen values, as in `config.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pipelines.data.config import check_val_fraction, label_of
from pipelines.identity import PLACE


@dataclass(frozen=True)
class DetectionAugmentation:
    """Random changes of a training image and its boxes; evaluation sees none of them."""

    crop: bool = True
    """Whether a part of the image that holds the centre of an object is cropped and enlarged."""

    flip: bool = True
    """Whether half of the images are mirrored left to right."""


@dataclass(frozen=True)
class VOC:
    """Pascal VOC's objects in boxes, from the official folder VOCdevkit; images are letterboxed."""

    root: str = field(default="data", metadata=PLACE)
    """Folder that holds VOCdevkit, or is it; for ffcv, where prepare wrote."""

    years: Literal["2007", "2012", "2007+2012"] = "2007+2012"
    """2007 or 2007+2012: trained on trainval of each year, tested on VOC2007's test list; 2012, which has no public
    test list: trained on its train list, tested on its val list"""

    image_size: int = 320
    """Height and width in pixels of what the network sees. 320 is ours: each paper's detector has a size of its own."""

    augmentation: DetectionAugmentation = DetectionAugmentation()
    """Random crop and flip of training images."""

    val_fraction: float = 0.1
    """Share of the training images held out for validation; 0 for none."""

    backend: Literal["folder", "ffcv"] = "folder"
    """folder: decoded by processes from the official files; ffcv: decoded by threads from what pipelines/prepare.py
    wrote into root"""

    subset: bool = False
    """root holds a part of the data set only; the data set's name then says so"""

    def __post_init__(self) -> None:
        check_val_fraction(self.val_fraction)
        if self.image_size < 1:
            raise ValueError(f"image_size must be at least 1, not {self.image_size}")

    @property
    def label(self) -> str:
        """The data set's name in tables and tags."""
        return label_of("voc" + "+".join(year[2:] for year in self.years.split("+")), self.subset)
