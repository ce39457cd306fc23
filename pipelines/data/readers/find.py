"""Reads the official files that an experiment's data config names."""

from pipelines.data.config import CIFAR10, CIFAR100, CUB, ImageNet, Images, TinyImageNet
from pipelines.data.readers import cifar, cub, imagenet, images, tiny_imagenet
from pipelines.data.source import Source


def source(config: CIFAR10 | CIFAR100 | TinyImageNet | Images | ImageNet | CUB) -> Source:
    """The data set of `config`.

    FileNotFoundError, ValueError: files are missing or damaged, or the set is incomplete and not declared as a subset.
    """
    match config:
        case CIFAR10() | CIFAR100():
            found = cifar.read("cifar10" if isinstance(config, CIFAR10) else "cifar100", config.root)
        case TinyImageNet():
            found = tiny_imagenet.read(config.root)
        case Images():
            found = images.read(config.root, config.name)
        case ImageNet():
            found = imagenet.read(config.root, config.name)
        case CUB():
            found = cub.read(config.root, config.name)
    found.check_complete(subset=not isinstance(config, Images) and config.subset)
    return found
