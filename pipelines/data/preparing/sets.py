"""The data sets of `pipelines/prepare.py`: how each is read, and how its images are stored."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

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
    """read: (folder, name in tables) -> Source. named: whether the user may give the name. what: for --help."""

    read: Callable[[Path, str], Source]
    storage: Storage
    what: str
    named: bool = False


def _readers() -> Any:
    from pipelines.data import readers  # imports torchvision, which takes seconds

    return readers


def _voc(*years: str) -> Set:
    what = f"{' and '.join(f'VOCdevkit/VOC{year}' for year in years)}, detection"
    return Set(lambda root, name: _readers().voc.read(root, years, "detection"), FFCV_IMAGENET, what)


_CIFAR = Set(lambda root, name: _readers().cifar.read(name, root), Storage(32, None), "python archive or folder")

SETS: dict[str, Set] = {
    "cifar10": _CIFAR,
    "cifar100": _CIFAR,
    "tiny_imagenet": Set(lambda root, name: _readers().tiny_imagenet.read(root), Storage(64, None), "zip or folder"),
    "imagenet": Set(
        lambda root, name: _readers().imagenet.read(root, name),
        FFCV_IMAGENET,
        "official tars, or train/ and val/",
        named=True,
    ),
    "cub": Set(
        lambda root, name: _readers().cub.read(root, "cub200" if name == "cub" else name),
        Storage(None, 500),
        "CUB_200_2011",
        named=True,
    ),
    "images": Set(
        lambda root, name: _readers().images.read(root, name),
        Storage(64, None),
        "any train/<class>/* and test/<class>/* or val/<class>/*",
        named=True,
    ),
    "voc2007": _voc("2007"),
    "voc2012": _voc("2012"),
    "voc": _voc("2007", "2012"),
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
