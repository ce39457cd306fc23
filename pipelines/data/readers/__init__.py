"""Readers of the data sets in their official form. This package's __init__ only exports."""

from pipelines.data.readers import cifar, cub, imagenet, images, tiny_imagenet, voc
from pipelines.data.readers.find import source

__all__ = ["cifar", "cub", "imagenet", "images", "source", "tiny_imagenet", "voc"]
