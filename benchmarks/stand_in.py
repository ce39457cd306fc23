"""What stands in for missing data and for trained weights where a run is only timed."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from compression import allocation
from compression.batch import Batch
from compression.masks import Masks
from pipelines.data.config import CIFAR10, CIFAR100, CUB, Data, Digits, ImageNet, TinyImageNet
from pipelines.data.loader import Loader, open_loader
from pipelines.data.loading.views import Opened, Request, batch_of
from pipelines.experiment import Experiment

Counts = tuple[int, int, int]
"""Classes, images in train (before validation is held out), images in test."""

OFFICIAL: dict[type, Counts] = {
    CIFAR10: (10, 50_000, 10_000),
    CIFAR100: (100, 50_000, 10_000),
    TinyImageNet: (200, 100_000, 10_000),
    ImageNet: (1000, 1_281_167, 50_000),
    CUB: (200, 5_994, 5_794),
}


def open_data(
    experiment: Experiment, device: torch.device, workers: int, counts: Counts | None
) -> tuple[Loader, str | None]:
    """The data and None; or random pixels and a note that says so.

    workers: decoding processes or threads. counts: do not look for the data, but take so many images.
    ValueError: the data are missing, and nobody knows how many they are.
    """
    data, dtype = experiment.data, torch.float64 if experiment.training.precision == "float64" else torch.float32
    if counts is None or isinstance(data, Digits):
        try:
            return open_loader(data, experiment.seed, device, dtype, workers), None
        except FileNotFoundError as error:
            is_whole = data.label == type(data)().label
            if not is_whole or (counts := OFFICIAL.get(type(data))) is None:
                text = f"the size of {data.label} is not known: give --train-images, --test-images and --classes"
                raise ValueError(f"{text}, or the data ({error})") from error
    opened = random_pixels(data, counts, device, dtype)
    loader = Loader(opened, data.val_fraction, experiment.seed, getattr(data, "resolution", None))
    return loader, f"{data.label}: random pixels, {counts[1]:,} + {counts[2]:,} images; reading is not timed"


def random_pixels(data: Data, counts: Counts, device: torch.device, dtype: torch.dtype) -> Opened:
    """Images of the size that `data` says, in classes of equal size."""
    classes, train, test = counts
    size = getattr(data, "image_size", 64 if isinstance(data, TinyImageNet) else 32)
    labels = {part: torch.arange(num) % classes for part, num in {"train": train, "test": test}.items()}
    return Opened(_RandomPixels(size, device, dtype), labels, classes, (3, size, size), "random pixels")


class _RandomPixels:
    """A data store that reads nothing: all batches of one shape are the same images."""

    def __init__(self, size: int, device: torch.device, dtype: torch.dtype) -> None:
        self.host, self._size, self._dtype = device, size, dtype
        self._images: dict[tuple[int, int], Tensor] = {}

    def read(self, requests: Iterable[Request]) -> Iterator[Batch]:
        for request in requests:
            images = {name: self._ready(len(v.rows), v.size or self._size) for name, v in request.views.items()}
            yield batch_of(images, request.labels, request.index)

    def close(self) -> None:
        self._images.clear()

    def _ready(self, num: int, size: int) -> Tensor:
        """(num, 3, size, size) in channels_last memory, as other stores return them."""
        if (num, size) not in self._images:
            self._images[num, size] = torch.rand(num, size, size, 3).to(self.host, self._dtype).permute(0, 3, 1, 2)
        return self._images[num, size]


def even(like: Tensor) -> Tensor:
    """1/n, 2/n ... 1 in random order, in the shape of `like`: the same share of each such tensor is below any value."""
    order = torch.randperm(like.numel(), generator=torch.Generator().manual_seed(0))
    return ((order + 1) / like.numel()).view(like.shape).to(like.device, like.dtype)


def even_result(result: Any) -> Any:
    """Scores or masks, spread evenly over the layers."""
    scores = {name: even(values.float()) for name, values in result.items()}
    if not isinstance(result, Masks):
        return scores
    whole = Masks({name: torch.ones_like(mask) for name, mask in result.items()})
    return allocation.remove_lowest(scores, whole, result.num_weights - result.num_kept)
