"""The data sets of `pipelines/prepare.py`: how each is read, and how its images are stored."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from pipelines.data.config import CIFAR10, CIFAR100, CUB, VOC, ImageNet, Images, Official, TinyImageNet
from pipelines.data.ffcv.fields import Storage
from pipelines.data.source import Source

PRESETS: dict[str, dict[str, Any]] = {
    "ffcv_imagenet": {"max_side": 500, "jpeg_share": 0.5, "quality": 90},
    "ffcv_imagenet_small": {"max_side": 400, "jpeg_share": 0.1, "quality": 90},
    "raw": {"jpeg_share": 0.0, "quality": None},
}
"""Values of a Storage; the first two are the settings of ffcv-imagenet."""

FFCV_IMAGENET = Storage(None, **PRESETS["ffcv_imagenet"])


@dataclass(frozen=True)
class Set:
    """config: whose data it is. what: for --help."""

    config: Official
    storage: Storage
    what: str

    @property
    def named(self) -> bool:
        """Whether the user may give the name in tables."""
        return any(field.name == "name" for field in fields(self.config))

    def read(self, root: Path, name: str | None = None) -> Source:
        """The source in `root`; None: under its usual name. Errors as `readers.read`."""
        from pipelines.data import readers  # imports torchvision, which takes seconds

        return readers.read(replace(self.config, root=str(root), **({"name": name} if name else {})))


SETS: dict[str, Set] = {
    "cifar10": Set(CIFAR10(), Storage(32, None), "python archive or folder"),
    "cifar100": Set(CIFAR100(), Storage(32, None), "python archive or folder"),
    "tiny_imagenet": Set(TinyImageNet(), Storage(64, None), "zip or folder"),
    "imagenet": Set(ImageNet(), FFCV_IMAGENET, "official tars, or train/ and val/"),
    "cub": Set(CUB(), Storage(None, 500), "CUB_200_2011"),
    "images": Set(Images(), Storage(64, None), "any train/<class>/* and test/<class>/* or val/<class>/*"),
    "voc2007": Set(VOC(years="2007"), FFCV_IMAGENET, "VOCdevkit/VOC2007, detection"),
    "voc2012": Set(VOC(years="2012"), FFCV_IMAGENET, "VOCdevkit/VOC2012, detection"),
    "voc": Set(VOC(), FFCV_IMAGENET, "VOCdevkit/VOC2007 and VOCdevkit/VOC2012, detection"),
}


def storage(
    name: str,
    preset: str | None = None,
    write: str | None = None,
    max_side: int | None = None,
    jpeg_share: float | None = None,
    quality: int | None = None,
    image_size: int | None = None,
) -> Storage:
    """How the set `name` is stored with these options; None: not given. ValueError: options contradict each other."""
    usual = SETS[name].storage
    chosen = PRESETS[preset] if preset else {}
    if usual.image_size is not None and (max_side is not None or "max_side" in chosen):
        raise ValueError(
            f"{name} is stored at one size, so a longest side does not apply: leave out --max-side and presets other "
            "than raw"
        )
    if image_size is not None and name != "images":
        raise ValueError(f"--image-size is only for images: {name} has a fixed size; leave it out")
    usual = replace(usual, **chosen)
    if jpeg_share is not None and write not in (None, "mix"):
        raise ValueError(f"--jpeg-share is for --write mix: leave it out, or --write {write}")
    if jpeg_share is not None:
        share = jpeg_share
    elif write == "mix":
        share = usual.jpeg_share or 0.5
    else:
        share = usual.jpeg_share if write is None else float(write == "jpg")
    if not share and quality is not None:
        raise ValueError("--quality is for JPEG, but nothing is stored as JPEG: leave it out, or --write jpg or mix")
    return Storage(
        image_size=usual.image_size if image_size is None else image_size,
        max_side=usual.max_side if max_side is None else max_side,
        jpeg_share=share,
        quality=None if not share else usual.quality or 90 if quality is None else quality,
    )
