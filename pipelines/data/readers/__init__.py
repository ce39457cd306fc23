"""Readers of the data sets in their official form. This package's __init__ only exports."""

from pipelines.data.readers import cifar, cub, image_folders, imagenet, tiny_imagenet, voc
from pipelines.data.readers.find import read, source

__all__ = ["cifar", "cub", "image_folders", "imagenet", "read", "source", "tiny_imagenet", "voc"]
