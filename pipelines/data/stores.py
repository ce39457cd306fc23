"""Open the data of a config in its backend."""

import torch

from pipelines.data.config import CIFAR10, CIFAR100, CUB, Augmentation, Data, Digits, ImageNet, Images, TinyImageNet
from pipelines.data.detection.config import VOC
from pipelines.data.loading.arrays import Arrays, read_digits, read_whole
from pipelines.data.loading.geometry import Geometry, PadCrop, ResizedCrop
from pipelines.data.loading.memory import MemoryStore
from pipelines.data.loading.views import Finish, Opened

Prepared = CIFAR10 | CIFAR100 | TinyImageNet | Images | ImageNet | CUB
"""Data that `pipelines/prepare.py` can prepare for FFCV."""


def open_store(config: Data | VOC, device: torch.device, dtype: torch.dtype, workers: int) -> Opened:
    """Open the data of `config` in its backend. FileNotFoundError, ValueError: a file is missing or wrong."""
    if isinstance(config, Digits):
        return in_memory(read_digits(), config.augmentation, device, dtype)
    if isinstance(config, VOC):
        from pipelines.data.detection.store import open_detection

        return open_detection(config, device, dtype, workers)
    if config.backend == "ffcv":
        return _prepared(config, device, dtype, workers)
    from pipelines.data import readers as official  # imports torchvision, which takes seconds

    source = official.source(config)
    if config.backend == "memory":
        return in_memory(read_whole(source, _size(config)), config.augmentation, device, dtype)
    from pipelines.data.loading.folder import FolderStore

    finish = Finish(source.mean, source.std, device, dtype)
    store = FolderStore(source.parts, geometry(config), finish, workers)
    labels = {name: part.labels for name, part in source.parts.items()}
    return Opened(store, labels, len(source.classes), (3, _size(config), _size(config)), source.fingerprint)


def in_memory(arrays: Arrays, augmentation: Augmentation, device: torch.device, dtype: torch.dtype) -> Opened:
    """Arrays held on the device."""
    height, width = arrays.images["train"].shape[1:3]
    store = MemoryStore(arrays, augmentation, device, dtype)
    return Opened(store, arrays.labels, arrays.num_classes, (3, height, width), arrays.fingerprint)


def geometry(config: Prepared) -> Geometry:
    """How stored images become the network's input."""
    if isinstance(config, (ImageNet, CUB)):
        return ResizedCrop(config.image_size, config.resize)
    return PadCrop(_size(config), config.augmentation.crop_padding, config.augmentation.flip)


def _size(config: Prepared) -> int:
    """Height and width in pixels of images for evaluation."""
    if isinstance(config, (ImageNet, CUB, Images)):
        return config.image_size
    return 64 if isinstance(config, TinyImageNet) else 32


def _prepared(config: Prepared, device: torch.device, dtype: torch.dtype, workers: int) -> Opened:
    """The files that `pipelines/prepare.py` wrote into `config.root`."""
    from pipelines.data.ffcv.beton import Beton
    from pipelines.data.ffcv.store import BetonStore
    from pipelines.data.preparing import manifest

    found, shape = manifest.read(config.root), geometry(config)
    found.check(config, shape.size if isinstance(shape, PadCrop) else None)
    files = {name: Beton.open(found.path(name), len(found.classes)) for name in found.parts}
    store = BetonStore(files, shape, Finish(found.mean, found.std, device, dtype), workers)
    labels = {name: beton.labels for name, beton in files.items()}
    return Opened(store, labels, len(found.classes), (3, shape.size, shape.size), found.fingerprint)
