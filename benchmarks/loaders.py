"""How fast images come from each backend, next to torchvision's own loader and to a mock that reads nothing."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms

from benchmarks.timing import Row, machine, median_ratio, noise_floor, ratios, wall_clock
from compression import models
from pipelines.data.config import Augmentation
from pipelines.data.ffcv.beton import Beton
from pipelines.data.ffcv.part_writer import Job
from pipelines.data.ffcv.store import BetonStore
from pipelines.data.loader import Loader
from pipelines.data.loading.arrays import read_whole
from pipelines.data.loading.folder import FolderStore
from pipelines.data.loading.geometry import Geometry, PadCrop, ResizedCrop
from pipelines.data.loading.views import Finish, Opened
from pipelines.data.preparing.convert import prepare
from pipelines.data.preparing.digits_folder import write_digits_as_imagenet
from pipelines.data.preparing.sets import storage
from pipelines.data.source import Files, Source
from pipelines.data.stores import in_memory

Images = tuple[Tensor, Tensor]
"""(N, 3, H, W) float and (N,) int64, normalised and on the device."""

Epoch = Callable[[], Iterator[Images]]

MOST_IMAGES = 10_000
"""Of a larger data set only so many are read: the speed of a loader does not depend on the rest."""


@dataclass(frozen=True)
class Setting:
    """`rounds` turns of each loader, with `steps` training steps in each; `workers` decode for each loader."""

    batch_size: int
    workers: int
    rounds: int
    steps: int
    device: torch.device


@dataclass(frozen=True)
class Subject:
    """One data set in the benchmark.

    source: its files, the same for every loader.
    geometry: how they become pictures.
    model: what is trained to see whether it has to wait for the data.
    """

    name: str
    source: Source
    folder: datasets.ImageFolder
    rows: list[int]
    geometry: Geometry
    model: str

    @property
    def fixed(self) -> bool:
        """Whether images are stored at the size of the pictures, and so can be held in memory."""
        return isinstance(self.geometry, PadCrop)


def imagenet(root: Path) -> Subject:
    """Photographs of any size: random-resized crops of 224 pixels, and flips."""
    return _subject("imagenet", root, ResizedCrop(224, 256), "torchvision/mobilenet_v3_small")


def tiny(root: Path) -> Subject:
    """Tiny-ImageNet at 64 pixels: crops from a black border of 4, and flips."""
    return _subject("tiny-imagenet", root, PadCrop(64, 4, flip=True), "resnet20")


def digits(scratch: Path) -> Subject:
    """scikit-learn's digits as JPEG files of 32 pixels, for machines without the other data."""
    root = write_digits_as_imagenet(scratch / "digits", size=32)
    return _subject("digits", root, PadCrop(32, 4, flip=True), "resnet20")


def _subject(name: str, root: Path, geometry: Geometry, model: str) -> Subject:
    """The images below `root`/train, or else below `root`/val; an even selection where there are many."""
    part = next((root / part for part in ("train", "val") if (root / part).is_dir()), None)
    if part is None:
        raise ValueError(f"{root} holds neither train/<class>/* nor val/<class>/*: name a folder that does")
    folder = datasets.ImageFolder(str(part))
    num = min(len(folder), MOST_IMAGES)
    rows = (np.arange(num) * len(folder) // num).tolist()
    names = np.array([str(Path(folder.samples[row][0]).relative_to(part)).encode() for row in rows])
    files = Files(part, names, torch.tensor([folder.targets[row] for row in rows]))
    few = Files(part, names[:1], files.labels[:1])
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    source = Source(name, tuple(folder.classes), {"train": files, "test": few}, mean, std, fingerprint="benchmark")
    return Subject(name, source, folder, rows, geometry, model)


def contenders(subject: Subject, setting: Setting, scratch: Path) -> dict[str, Epoch]:
    """For each loader an epoch of the training images; `scratch` is for the files of FFCV's format."""
    found: dict[str, Epoch] = {"torchvision": _torchvision(subject, setting)}
    if subject.fixed:
        augmentation = Augmentation(crop_padding=4, flip=True)
        arrays = read_whole(subject.source, subject.geometry.size)
        found["memory"] = _ours(in_memory(arrays, augmentation, setting.device, torch.float32), setting)
    found["ffcv"] = _ours(_prepared(subject, setting, scratch), setting)
    found["folder"] = _ours(_folder(subject, setting), setting)
    batch = next(found["folder"]())
    # The same batch again and again: no loader can be faster.
    found["mock"] = found["mock_again"] = lambda: itertools.repeat(batch, len(subject.rows) // setting.batch_size)
    return found


def _ours(opened: Opened, setting: Setting) -> Epoch:
    loader, epochs = Loader(opened, 0.0, seed=0), itertools.count()

    def epoch() -> Iterator[Images]:
        with closing(loader.epoch("train", next(epochs), setting.batch_size, frozenset())) as batches:  # pyright: ignore
            for batch in batches:
                yield batch.images, batch.labels

    return epoch


def _folder(subject: Subject, setting: Setting) -> Opened:
    source, size = subject.source, subject.geometry.size
    finish = Finish(source.mean, source.std, setting.device, torch.float32)
    store = FolderStore(source.parts, subject.geometry, finish, setting.workers)
    labels = {name: part.labels for name, part in source.parts.items()}
    return Opened(store, labels, len(source.classes), (3, size, size), "benchmark")


def _prepared(subject: Subject, setting: Setting, scratch: Path) -> Opened:
    """The same images as `prepare` stores them by default: of fixed size as pixels, photographs half as JPEG."""
    kind = "images" if subject.fixed else "imagenet"
    size = subject.geometry.size
    job = Job(kind, subject.source, storage(kind, image_size=size if subject.fixed else None))
    found = prepare(job, scratch, setting.workers)
    files = {name: Beton.open(found.path(name), len(found.classes)) for name in found.parts}
    finish = Finish(found.mean, found.std, setting.device, torch.float32)
    store = BetonStore(files, subject.geometry, finish, setting.workers)
    return Opened(store, {n: f.labels for n, f in files.items()}, len(found.classes), (3, size, size), "benchmark")


def _torchvision(subject: Subject, setting: Setting) -> Epoch:
    """ImageFolder and DataLoader as in torchvision's own examples."""
    size = subject.geometry.size
    crop = transforms.RandomCrop(size, padding=4) if subject.fixed else transforms.RandomResizedCrop(size)
    normalise = transforms.Normalize(subject.source.mean, subject.source.std)
    steps = [crop, transforms.RandomHorizontalFlip(), transforms.ToTensor(), normalise]
    subject.folder.transform = transforms.Compose(steps)
    loader = DataLoader(
        Subset(subject.folder, subject.rows),
        batch_size=setting.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=setting.workers,
        pin_memory=setting.device.type == "cuda",
    )

    def epoch() -> Iterator[Images]:
        for images, labels in loader:
            yield images.to(setting.device, non_blocking=True), labels.to(setting.device, non_blocking=True)

    return epoch


def measure(subject: Subject, setting: Setting, scratch: Path) -> list[Row]:
    """A row for each loader. They take turns, so that all of them see the machine equally busy."""
    epochs = contenders(subject, setting, scratch)
    loading: dict[str, list[float]] = {name: [] for name in epochs}
    training: dict[str, list[tuple[float, float]]] = {name: [] for name in epochs}
    trainee = Trainee(subject, setting)
    for turn in range(setting.rounds + 1):  # the first is a warm-up
        names = list(epochs)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            rate = load(epochs[name], setting)
            rates = trainee.train(epochs[name]())
            if turn:
                loading[name].append(rate)
                training[name].append(rates)
    return rows(subject, setting, loading, training)


def load(epoch: Epoch, setting: Setting) -> float:
    """Images per second of a whole epoch; starting the loader counts."""
    now = wall_clock(setting.device)
    start, num = now(), 0
    for images, _ in epoch():
        num += len(images)
    return num / (now() - start)


class Trainee:
    """A network in training that takes its images from any loader."""

    def __init__(self, subject: Subject, setting: Setting) -> None:
        torch.manual_seed(0)
        model = models.build(subject.model, len(subject.source.classes))
        self._model = model.to(device=setting.device, memory_format=torch.channels_last).train()  # pyright: ignore
        self._optimizer = torch.optim.SGD(self._model.parameters(), lr=0.01, momentum=0.9)
        self._setting = setting

    def train(self, batches: Iterator[Images]) -> tuple[float, float]:
        """Images per second of some steps, and the share of their time spent waiting for the next batch.

        The first step is not counted: it waits for the loader to start.
        """
        now = wall_clock(self._setting.device)
        wait, start = 0.0, 0.0
        for step in range(self._setting.steps + 1):
            before = time.perf_counter()
            images, labels = next(batches)
            if step:
                wait += time.perf_counter() - before
            self._step(images, labels)
            if not step:
                start = now()
        seconds = now() - start
        if hasattr(batches, "close"):
            batches.close()  # pyright: ignore[reportAttributeAccessIssue]
        return self._setting.steps * self._setting.batch_size / seconds, wait / seconds

    def _step(self, images: Tensor, labels: Tensor) -> None:
        loss = nn.functional.cross_entropy(self._model(images), labels)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._optimizer.step()


def rows(
    subject: Subject,
    setting: Setting,
    loading: dict[str, list[float]],
    training: dict[str, list[tuple[float, float]]],
) -> list[Row]:
    """What `measure` returns. Ratios are medians over rounds, of images per second in the same round."""
    rates = {name: [rate for rate, _ in found] for name, found in training.items()}
    return [
        {
            "benchmark": "loaders",
            "data": subject.name,
            "loader": name,
            "images_per_second": statistics.median(own),
            "workers": setting.workers,
            "ratio_to_torchvision": median_ratio(own, loading["torchvision"]),
            "training_images_per_second": statistics.median(rates[name]),
            "training_ratio_to_mock": median_ratio(rates[name], rates["mock"]),
            "noise_floor": noise_floor(ratios(rates["mock_again"], rates["mock"])),
            "data_wait": statistics.median(wait for _, wait in training[name]),
            "images": len(subject.rows),
            "image_size": subject.geometry.size,
            "batch_size": setting.batch_size,
            "model": subject.model,
            "rounds": setting.rounds,
            **machine(setting.device),
        }
        for name, own in loading.items()
    ]
