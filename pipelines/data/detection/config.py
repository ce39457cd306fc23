"""Configuration of data for detection; as in `pipelines/data/config.py`."""

from dataclasses import dataclass
from typing import Literal

from pipelines.data.config import FileData


@dataclass(frozen=True)
class DetectionAugmentation:
    """Random changes of training images and their boxes. Evaluation has none."""

    crop: bool = True
    """Crop and enlarge a part of the image that contains the centre of an object."""

    flip: bool = True
    """Flip half of the images left to right."""


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
