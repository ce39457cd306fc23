"""Reads the official files that an experiment's data config names."""

from pipelines.data.config import CIFAR10, CIFAR100, CUB, VOC, ImageNet, Images, Official, TinyImageNet
from pipelines.data.readers import cifar, cub, image_folders, imagenet, tiny_imagenet, voc
from pipelines.data.source import Source


def source(config: Official) -> Source:
    """As `read`. ValueError: also if the set is incomplete and not declared as a subset."""
    found = read(config)
    found.check_complete(getattr(config, "subset", False))
    return found


def read(config: Official) -> Source:
    """The data set of `config`; of VOC for detection. FileNotFoundError, ValueError: files are missing or damaged."""
    match config:
        case CIFAR10():
            return cifar.read("cifar10", config.root)
        case CIFAR100():
            return cifar.read("cifar100", config.root)
        case TinyImageNet():
            return tiny_imagenet.read(config.root)
        case Images():
            return image_folders.read(config.root, config.name)
        case ImageNet():
            return imagenet.read(config.root, config.name)
        case CUB():
            return cub.read(config.root, config.name)
        case VOC():
            return voc.read(config.root, config.years.split("+"), "detection")
