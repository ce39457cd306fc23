"""Open the data of a config in its backend."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from pipelines.data.config import CUB, VOC, Augmentation, Data, Digits, ImageNet, Images, Official, TinyImageNet
from pipelines.data.detection.store import DetectionStore, annotated
from pipelines.data.loading.arrays import Arrays, read_digits, read_whole
from pipelines.data.loading.geometry import Geometry, Letterbox, PadCrop, ResizedCrop
from pipelines.data.loading.memory import MemoryStore
from pipelines.data.loading.views import NEEDS, Finish, Opened, Store
from pipelines.data.source import RGB, Source

if TYPE_CHECKING:
    from pipelines.data.preparing.manifest import Manifest


def open_store(config: Data | VOC, device: torch.device, dtype: torch.dtype, workers: int) -> Opened:
    """Open the data of `config` in its backend. FileNotFoundError, ValueError: a file is missing or wrong."""
    if isinstance(config, Digits):
        return in_memory(read_digits(), config.augmentation, device, dtype)
    if config.backend == "memory":
        from pipelines.data import readers  # imports torchvision, which takes seconds

        source = readers.source(config)
        opened = in_memory(read_whole(source, _size(config)), config.augmentation, device, dtype)
        return replace(opened, note=_enlarged(config, source.parts["train"]))
    found, parts, backend = (_prepared if config.backend == "ffcv" else _official)(config)
    shape, num_classes, needs = geometry(config), len(found.classes), NEEDS
    finish = Finish(found.mean, found.std, device, dtype)
    store: Store = backend(parts, shape, finish, workers)
    if isinstance(config, VOC):
        objects = {name: annotated(part, num_classes) for name, part in parts.items()}
        store = DetectionStore(store, objects, config.image_size, config.augmentation, finish)
        # An image has objects of several classes, so the validation split is not stratified.
        labels = {name: torch.zeros(len(each.sizes), dtype=torch.int64) for name, each in objects.items()}
        needs = frozenset({"index"})
    else:
        labels = {name: part.labels for name, part in parts.items()}
    resize = shape.resize if isinstance(shape, ResizedCrop) else shape.size
    about = _about(shape.size, shape.size, resize, found.mean, found.std, found.classes)
    note = _enlarged(config, parts["train"]) if config.backend == "folder" else ""
    return Opened(store, labels, num_classes, (3, shape.size, shape.size), found.fingerprint, needs, about, note)


LOOKED_AT = 16
"""Images whose size is compared with the input's."""


def _enlarged(config: Official, part: Any) -> str:
    """Says so if most images of a folder are smaller than the input: a network for their size costs less."""
    if not isinstance(config, Images):
        return ""
    rows = range(0, len(part), max(1, len(part) // LOOKED_AT))
    short = statistics.median_low([min(part.image(row).size) for row in rows])
    if short >= config.image_size:
        return ""
    return (
        f"images of {short} pixels are enlarged to {config.image_size}: --data.image-size {short} costs "
        f"{(short / config.image_size) ** 2:.0%} as much"
    )


def in_memory(arrays: Arrays, augmentation: Augmentation, device: torch.device, dtype: torch.dtype) -> Opened:
    """Arrays held on the device."""
    height, width = arrays.images["train"].shape[1:3]
    store = MemoryStore(arrays, augmentation, device, dtype)
    about = _about(height, width, min(height, width), arrays.mean, arrays.std, arrays.classes)
    shape = (3, height, width)
    return Opened(store, arrays.labels, arrays.num_classes, shape, arrays.fingerprint, about=about)


def _about(height: int, width: int, resize: int, mean: RGB, std: RGB, classes: Sequence[str]) -> dict[str, Any]:
    inputs = {"shape": [3, height, width], "resize": resize, "mean": list(mean), "std": list(std)}
    return {"inputs": inputs, "classes": list(classes)}


def geometry(config: Official) -> Geometry:
    """How stored images become the network's input."""
    if isinstance(config, (ImageNet, CUB)):
        return ResizedCrop(config.image_size, config.resize)
    if isinstance(config, VOC):
        return Letterbox(config.image_size)
    return PadCrop(_size(config), config.augmentation.crop_padding, config.augmentation.flip)


def _size(config: Official) -> int:
    """Height and width in pixels of images for evaluation."""
    if isinstance(config, (ImageNet, CUB, VOC, Images)):
        return config.image_size
    return 64 if isinstance(config, TinyImageNet) else 32


_Found = tuple["Source | Manifest", Mapping[str, Any], Callable[..., Store]]
"""Description of the data, its parts, and the class of the backend that reads them."""


def _official(config: Official) -> _Found:
    from pipelines.data import readers  # imports torchvision, which takes seconds
    from pipelines.data.loading.folder import FolderStore

    source = readers.source(config)
    return source, source.parts, FolderStore


def _prepared(config: Official) -> _Found:
    """The files that `pipelines/prepare.py` wrote into `config.root`."""
    from pipelines.data.ffcv.beton import Beton
    from pipelines.data.ffcv.store import BetonStore
    from pipelines.data.preparing import manifest

    found, shape = manifest.read(config.root), geometry(config)
    found.check(config, shape.size if isinstance(shape, PadCrop) else None)
    # For detection there are boxes in place of labels.
    num_classes = None if isinstance(config, VOC) else len(found.classes)
    return found, {name: Beton.open(found.path(name), num_classes) for name in found.parts}, BetonStore
