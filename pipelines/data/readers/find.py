"""From an experiment's data config to the official files that it means."""

from __future__ import annotations

from pipelines.data.config import CIFAR10, CIFAR100, CUB, ImageNet, Images, TinyImageNet
from pipelines.data.readers import cifar, cub, imagenet, images, tiny_imagenet
from pipelines.data.source import Source


def source(config: CIFAR10 | CIFAR100 | TinyImageNet | Images | ImageNet | CUB) -> Source:
    """The data set of `config`, whole unless the config says that a part of it is meant.

    FileNotFoundError, ValueError: files are absent or wrong, or a part would stand for the whole; the message names
    them.
    """
    found = _read(config)
    found.check_complete(subset=not isinstance(config, Images) and config.subset)
    return found


def _read(config: CIFAR10 | CIFAR100 | TinyImageNet | Images | ImageNet | CUB) -> Source:
    match config:
        case CIFAR10():
            return cifar.read("cifar10", config.root)
        case CIFAR100():
            return cifar.read("cifar100", config.root)
        case TinyImageNet():
            return tiny_imagenet.read(config.root)
        case Images():
            return images.read(config.root, config.name)
        case ImageNet():
            return imagenet.read(config.root, config.name)
        case CUB():
            return cub.read(config.root, config.name)
