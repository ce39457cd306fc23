"""The data of a plan: as they are where they are there, else stand-ins of the same counts and shapes.

No time depends on what a picture shows, so random pixels are as good as others; how many there are decides everything.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from compression.batch import Batch
from pipelines.data.config import CIFAR10, CIFAR100, CUB, Augmentation, Data, Digits, ImageNet, TinyImageNet
from pipelines.data.loader import Loader
from pipelines.data.loading.arrays import Arrays
from pipelines.data.loading.memory import MemoryStore
from pipelines.data.loading.views import Opened, Request, Store, batch_of
from pipelines.data.stores import open_store

FEW = 1024
"""Images that a stand-in really holds: the same come again and again."""


@dataclass(frozen=True)
class Counts:
    """How many images a data set has: in train (before validation is held out of it) and in test."""

    classes: int
    train: int
    test: int


@dataclass(frozen=True)
class Found:
    """The data of an experiment, as a plan has them.

    opened: what trainings are rehearsed and timed on. real: the data themselves, None where they are not there.
    in_step: whether reading a batch is part of the step itself (data in the device's memory), not done beside it.
    origin: where the counts come from, for readers.
    """

    opened: Opened
    real: Opened | None
    in_step: bool
    origin: str


def find(config: Data, device: torch.device, dtype: torch.dtype, workers: int, given: Counts | None) -> Found:
    """The data of `config`, or a stand-in with the counts `given`, else the official ones.

    workers: decoding processes or threads. ValueError: the data are not there and their counts not known.
    """
    in_step = isinstance(config, Digits) or config.backend == "memory"
    real: Opened | None = None
    missing = ""
    if given is None or isinstance(config, Digits):
        try:
            real = open_store(config, device, dtype, workers)
        except FileNotFoundError as error:
            missing = str(error)
    if real is not None:
        origin = "counted in the data"
        if in_step:
            return Found(real, real, in_step, origin)
        counts = Counts(real.num_classes, *(len(real.labels[part]) for part in ("train", "test")))
        return Found(stand_in(config, counts, real.input_shape[1], device, dtype), real, in_step, origin)
    origin = "given as options"
    if given is None:
        given, origin = official(config, missing), f"the official counts; the data are not there: {missing}"
    return Found(stand_in(config, given, _size(config), device, dtype), None, in_step, origin)


def official(config: Data, missing: str) -> Counts:
    """How many images the whole data set has. ValueError: nobody knows; `missing` says why they cannot be counted."""
    from pipelines.data.readers import cub, imagenet, tiny_imagenet  # torchvision's import takes seconds

    wholes = {TinyImageNet: tiny_imagenet.WHOLE, ImageNet: imagenet.WHOLE, CUB: cub.WHOLE}
    own_name = getattr(config, "name", None) not in (None, type(config)().label)
    if not own_name and not getattr(config, "subset", False):
        if type(config) in (CIFAR10, CIFAR100):
            return Counts(10 if isinstance(config, CIFAR10) else 100, 50_000, 10_000)
        if (whole := wholes.get(type(config))) is not None:
            return Counts(whole.classes, whole.train, whole.test)
    raise ValueError(
        f"how many images {config.label} has is not known: give --train-images (before validation is held out), "
        f"--test-images and --classes, or the data. {missing}"
    )


def stand_in(config: Data, counts: Counts, size: int, device: torch.device, dtype: torch.dtype) -> Opened:
    """Random pixels in place of the data: classes of equal size, `size` pixels in evaluation."""
    if isinstance(config, Digits) or config.backend == "memory":
        store: Store = _FewInMemory(size, config.augmentation, device, dtype)  # pyright: ignore[reportAttributeAccessIssue]
    else:
        store = _AtOnce(size, device, dtype)
    labels = {
        "train": torch.arange(counts.train) % counts.classes,
        "test": torch.arange(counts.test) % counts.classes,
    }
    return Opened(store, labels, counts.classes, (3, size, size), "stand-in")


class ShortLoader(Loader):
    """A Loader whose epochs end after `most` steps, evaluations likewise."""

    most: int = 1

    def steps_per_epoch(self, batch_size: int) -> int:
        return min(self.most, super().steps_per_epoch(batch_size))

    def evaluation(self, split: str, batch_size: int, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        return itertools.islice(super().evaluation(split, batch_size, rank, world_size), self.most)


class _FewInMemory:
    """MemoryStore over a few random images: indexing, crops and flips as over the whole set."""

    def __init__(self, size: int, augmentation: Augmentation, device: torch.device, dtype: torch.dtype) -> None:
        draw = np.random.default_rng(0)
        images = {part: draw.integers(0, 256, (FEW, size, size, 3), np.uint8) for part in ("train", "test")}
        labels = {part: torch.zeros(FEW, dtype=torch.int64) for part in images}
        arrays = Arrays(images, labels, 1, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "stand-in")
        self._store = MemoryStore(arrays, augmentation, device, dtype)
        self.host = device

    def read(self, requests: Iterable[Request]) -> Iterator[Batch]:
        for request in requests:
            views = {name: dataclasses.replace(view, rows=view.rows % FEW) for name, view in request.views.items()}
            yield from self._store.read([dataclasses.replace(request, views=views)])

    def close(self) -> None:
        self._store.close()


class _AtOnce:
    """Gives batches that are ready on the device, as a loader does that decodes faster than the training asks."""

    def __init__(self, size: int, device: torch.device, dtype: torch.dtype) -> None:
        self.host, self._size, self._dtype = device, size, dtype
        self._images: dict[tuple[int, int], Tensor] = {}

    def read(self, requests: Iterable[Request]) -> Iterator[Batch]:
        for request in requests:
            images = {
                name: self._ready(len(view.rows), view.size or self._size) for name, view in request.views.items()
            }
            yield batch_of(images, request.labels, request.index)

    def close(self) -> None:
        self._images.clear()

    def _ready(self, num: int, size: int) -> Tensor:
        """(num, 3, size, size) in channels_last memory, as stores give them."""
        if (num, size) not in self._images:
            draw = torch.Generator().manual_seed(0)
            with torch.inference_mode(False):  # an evaluation may ask first, and a training cannot use its tensors
                pixels = torch.randn(num, size, size, 3, generator=draw).to(self.host, self._dtype)
                self._images[num, size] = pixels.permute(0, 3, 1, 2)
        return self._images[num, size]


def _size(config: Data) -> int:
    """Height and width in pixels of evaluation's images."""
    if (size := getattr(config, "image_size", None)) is not None:
        return size
    return 64 if isinstance(config, TinyImageNet) else 32
