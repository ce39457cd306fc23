"""The data sets that `pipelines/prepare.py` knows: how each is read, and how its images are stored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipelines.data.ffcv.fields import Storage
from pipelines.data.source import Source


@dataclass(frozen=True)
class Preset:
    """A known way to store images; those of the first two are the settings of ffcv-imagenet."""

    max_side: int | None
    jpeg_share: float
    quality: int | None
    what: str


PRESETS = {
    "ffcv_imagenet": Preset(500, 0.5, 90, "longest side 500 pixels, half of the images JPEG of quality 90"),
    "ffcv_imagenet_small": Preset(400, 0.1, 90, "400 pixels, a tenth JPEG; ffcv-imagenet trains ResNet-18 on it"),
    "raw": Preset(None, 0.0, None, "no JPEG: the fastest to read, and the largest"),
}


@dataclass(frozen=True)
class Set:
    """read: (folder, name in tables) -> Source. named: whether the user may give the name."""

    read: Callable[[Path, str], Source]
    storage: Storage
    what: str
    named: bool = False


def _readers() -> Any:
    from pipelines.data import readers  # with torchvision, whose import takes seconds

    return readers


def _voc(*years: str) -> Callable[[Path, str], Source]:
    return lambda root, name: _readers().voc.read(root, years, "detection")


def _fixed(size: int) -> Storage:
    return Storage(image_size=size, max_side=None)


def _mixed(name: str) -> Storage:
    preset = PRESETS[name]
    return Storage(None, preset.max_side, preset.jpeg_share, preset.quality)


SETS: dict[str, Set] = {
    "cifar10": Set(
        lambda root, name: _readers().cifar.read("cifar10", root), _fixed(32), "CIFAR-10's python archive or its folder"
    ),
    "cifar100": Set(
        lambda root, name: _readers().cifar.read("cifar100", root), _fixed(32), "CIFAR-100's python archive or folder"
    ),
    "tiny_imagenet": Set(
        lambda root, name: _readers().tiny_imagenet.read(root), _fixed(64), "Tiny-ImageNet's zip or its folder"
    ),
    "imagenet": Set(
        lambda root, name: _readers().imagenet.read(root, name),
        _mixed("ffcv_imagenet"),
        "ImageNet's tars, or train/ and val/",
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
        _fixed(64),
        "any train/<class>/* and test/<class>/* or val/<class>/*",
        named=True,
    ),
    "voc2007": Set(_voc("2007"), _mixed("ffcv_imagenet"), "VOCdevkit/VOC2007, detection"),
    "voc2012": Set(_voc("2012"), _mixed("ffcv_imagenet"), "VOCdevkit/VOC2012, detection"),
    "voc": Set(_voc("2007", "2012"), _mixed("ffcv_imagenet"), "both years of VOC, detection"),
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
    """How the set `name` is stored where the user chose these options. ValueError: they do not go together."""
    usual, others = SETS[name].storage, PRESETS[preset] if preset else None
    is_fixed = usual.image_size is not None
    if is_fixed and (max_side is not None or (others and others.max_side)):
        raise ValueError(
            f"{name} is stored at one size, so a longest side does not apply: leave out --max-side and presets other "
            "than raw"
        )
    if image_size is not None and name != "images":
        raise ValueError(f"--image-size is for images alone: {name} has a size of its own; leave it out")
    if others:
        side = others.max_side or usual.max_side
        usual = replace(usual, max_side=side, jpeg_share=others.jpeg_share, quality=others.quality)
    share = _share(write, jpeg_share, usual.jpeg_share)
    if not share and quality is not None:
        raise ValueError(
            "--quality is of JPEG, but nothing is stored as JPEG: leave it out, or give --write jpg or mix"
        )
    return Storage(
        image_size=usual.image_size if image_size is None else image_size,
        max_side=usual.max_side if max_side is None else max_side,
        jpeg_share=share,
        quality=None if not share else usual.quality or 90 if quality is None else quality,
    )


def _share(write: str | None, jpeg_share: float | None, usual: float) -> float:
    """Of images that become JPEG."""
    if jpeg_share is not None:
        if write not in (None, "mix"):
            raise ValueError(f"--jpeg-share is for --write mix: leave it out, or --write {write}")
        return jpeg_share
    if write == "mix":
        return usual or 0.5
    return usual if write is None else float(write == "jpg")
