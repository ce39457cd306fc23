"""Loader: the interface between training and data, the same for all backends.

Order, shards, partners and the validation split are decided here, from the seed alone; a backend only reads views.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from compression.batch import Batch, Info
from pipelines.data.config import VOC, Data, Resolution
from pipelines.data.loading import draws
from pipelines.data.loading.views import NEEDS, Opened, Request, View
from pipelines.data.stores import open_store

__all__ = ["NEEDS", "Loader", "open_loader"]

# Part of the key of each view. Never change these numbers: that would change the augmentation of all experiments.
_IMAGES, _SECOND_VIEW, _PARTNER = 0, 1, 2


def open_loader(
    config: Data | VOC, seed: int, device: torch.device | str, dtype: torch.dtype = torch.float32, workers: int = 0
) -> Loader:
    """The data set `config` under `seed`.

    device, dtype: of the images in a batch. workers: processes or threads that decode, with backend folder or ffcv.
    FileNotFoundError, ValueError: files are missing or wrong; the message names them.
    """
    since = time.time()
    opened = open_store(config, torch.device(device), dtype, workers)
    return Loader(opened, config.val_fraction, seed, getattr(config, "resolution", None), since)


class Loader:
    """Batches of one data set under one seed.

    info: classes, input shape and the sizes of "train", "val" and "test".
    fingerprint: a short hash of the data, wherever it is stored.
    about: inputs and classes, as an artefact describes them. note: what a user should know of the data.
    since: when the reading of the files began, in seconds since 1970.
    Batch sizes are global: each worker gets its share of the rows.
    """

    def __init__(
        self,
        opened: Opened,
        val_fraction: float,
        seed: int,
        resolution: Resolution | None = None,
        since: float = 0.0,
    ) -> None:
        """resolution: for training images that grow; None: constant size."""
        store, labels, num_classes = opened.store, opened.labels, opened.num_classes
        train, val = draws.hold_out(labels["train"], val_fraction, draws.stream(seed, "validation"))
        test = torch.arange(len(labels["test"]))
        self.info = Info(num_classes, opened.input_shape, {"train": len(train), "val": len(val), "test": len(test)})
        self.fingerprint = opened.fingerprint
        self.about = opened.about
        self.since = since
        self.note = opened.note
        self._store = store
        self._needs = opened.needs
        self._seed = seed
        self._resolution = resolution or Resolution()
        # For each split: its part, the rows in that part, and their labels.
        self._splits = {
            "train": ("train", train.to(store.host), labels["train"][train].to(store.host)),
            "val": ("train", val.to(store.host), labels["train"][val].to(store.host)),
            "test": ("test", test.to(store.host), labels["test"].to(store.host)),
        }
        targets = labels["train"][train]
        counts = torch.bincount(targets, minlength=num_classes)
        # Training samples sorted by class: the members of a class are contiguous.
        self._members = targets.argsort(stable=True).to(store.host)
        self._first = (counts.cumsum(0) - counts).to(store.host)
        self._counts = counts.to(store.host)

    def steps_per_epoch(self, batch_size: int) -> int:
        """Global batches per epoch; an incomplete last one is dropped. ValueError: batch_size is out of range."""
        num = self.info.sizes["train"]
        if not 1 <= batch_size <= num:
            raise ValueError(f"batch_size is {batch_size}, but there are {num} training samples: use 1 to {num}")
        return num // batch_size

    def epoch(
        self,
        stage: str,
        epoch: int,
        batch_size: int,
        needs: frozenset[str],
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
        progress: float = 1.0,
    ) -> Iterator[Batch]:
        """This worker's share of each global batch from `start` on: rows rank * B / W to (rank + 1) * B / W.

        needs: optional content of the batches; for classification any of NEEDS, for detection "index".
        progress: share of the training before this epoch; it sets the size of images that grow.
        ValueError: batch_size is not a multiple of the workers or is larger than the data, or a need is unknown.
        """
        steps = self.steps_per_epoch(batch_size)
        assert 0 <= rank < world_size
        assert start >= 0
        self._check_needs(needs)
        if batch_size % world_size:
            raise ValueError(
                f"batch_size {batch_size} does not divide by {world_size} workers: use a multiple of {world_size}"
            )
        share = batch_size // world_size

        def requests() -> Iterator[Request]:
            key = draws.stream(self._seed, stage, epoch, "order")
            order = draws.permutation(key, self.info.sizes["train"]).to(self._store.host)
            for step in range(start, steps):
                first = step * batch_size + rank * share
                yield self._request(stage, epoch, order[first : first + share], needs, progress)

        return self._store.read(requests())

    def batches(
        self, stage: str, num: int, batch_size: int, needs: frozenset[str], progress: float = 1.0
    ) -> list[Batch]:
        """The first `num` global batches of `stage`, from epoch 0 on into the next ones if it holds fewer."""
        steps = self.steps_per_epoch(batch_size)
        found: list[Batch] = []
        for epoch in range(-(-num // steps)):
            batches = self.epoch(stage, epoch, batch_size, needs, progress=progress)
            found += itertools.islice(batches, num - len(found))
        return found

    def batch_at(self, stage: str, epoch: int, index: Tensor, needs: frozenset[str], progress: float = 1.0) -> Batch:
        """Given training samples with the augmentation of that epoch, bit for bit. index: (N,) int64, any device."""
        self._check_needs(needs)
        return next(self._store.read([self._request(stage, epoch, index.to(self._store.host), needs, progress)]))

    def size_at(self, progress: float) -> int | None:
        """Height and width of training images after that share of the training; None: they do not grow."""
        return self._resolution.at(progress)

    def evaluation(self, split: str, batch_size: int, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """The split "val" or "test" without augmentation, each sample once over all workers; the last may be short.

        Workers may get different numbers of batches, so use no collective operation in the loop. Batch.index is the
        position in `split`. ValueError: another split, an empty split, or a batch size below 1.
        """
        if split not in ("val", "test"):
            raise ValueError(f'split must be "val" or "test", not {split!r}')
        size = self.info.sizes[split]
        if size == 0:
            raise ValueError(f'the split "{split}" is empty: set --data.val-fraction above 0')
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        part, rows, labels = self._splits[split]

        def requests() -> Iterator[Request]:
            for first in range(0, size, batch_size):
                count = min(batch_size, size - first)
                begin, end = first + rank * count // world_size, first + (rank + 1) * count // world_size
                if begin < end:
                    index = torch.arange(begin, end, device=self._store.host)
                    view = View(rows[begin:end], index, None)
                    yield Request(part, index, labels[begin:end], {"images": view})

        return self._store.read(requests())

    def close(self) -> None:
        """Release memory; the loader cannot be used again."""
        self._store.close()

    def _request(self, stage: str, epoch: int, index: Tensor, needs: frozenset[str], progress: float = 1.0) -> Request:
        part, rows, labels = self._splits["train"]
        targets, size = labels[index], self.size_at(progress)

        def view(number: int, sample: Tensor) -> View:
            return View(rows[sample], index, draws.stream(self._seed, stage, epoch, "view", number), size)

        views = {"images": view(_IMAGES, index)}
        if "second_view" in needs:
            views["second_view"] = view(_SECOND_VIEW, index)
        if "paired" in needs:
            key = draws.stream(self._seed, stage, epoch, "partner")
            at = self._first[targets] + draws.below(key, index, 0, self._counts[targets])
            views["paired"] = view(_PARTNER, self._members[at])
        return Request(part, index, targets, views)

    def _check_needs(self, needs: frozenset[str]) -> None:
        if not needs <= self._needs:
            raise ValueError(f"unknown needs {sorted(needs - self._needs)}: this data offers {sorted(self._needs)}")
