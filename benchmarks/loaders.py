"""How fast images come from each backend, next to torchvision's own loader and to a mock that reads nothing."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms

from benchmarks.timing import Row, Setting, machine, noise_floor, ratios, wall_clock
from benchmarks.training_steps import Trainee, build
from compression.batch import Batch
from compression.objectives import CrossEntropy
from pipelines.data.config import Augmentation
from pipelines.data.ffcv.beton import Beton
from pipelines.data.ffcv.part_writer import Job
from pipelines.data.ffcv.store import BetonStore
from pipelines.data.loader import Loader
from pipelines.data.loading.arrays import read_whole
from pipelines.data.loading.folder import FolderStore
from pipelines.data.loading.geometry import Geometry, PadCrop, ResizedCrop
from pipelines.data.loading.memory import MemoryStore
from pipelines.data.loading.views import Finish, Opened, Store
from pipelines.data.preparing.convert import prepare
from pipelines.data.preparing.digits_folder import write_digits_as_imagenet
from pipelines.data.preparing.sets import storage
from pipelines.data.source import Files, Source
from pipelines.experiment import Training
from pipelines.meter import ThroughputMeter
from pipelines.optimizers import SGD

Epoch = Callable[[], Iterator[Batch]]

MOST_IMAGES = 10_000
"""Of a larger data set only so many are read: the speed of a loader does not depend on the rest."""


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
    source, shape, device, workers = subject.source, subject.geometry, setting.device, setting.workers
    finish = Finish(source.mean, source.std, device, torch.float32)
    betons = _prepare(subject, scratch, workers)
    found: dict[str, Epoch] = {"torchvision": _torchvision(subject, setting)}
    if subject.fixed:
        arrays = read_whole(source, shape.size)
        memory = MemoryStore(arrays, Augmentation(crop_padding=4, flip=True), device, torch.float32)
        found["memory"] = _loader(memory, subject, setting, source.parts)
    found["ffcv"] = _loader(BetonStore(betons, shape, finish, workers), subject, setting, betons)
    found["folder"] = _loader(FolderStore(source.parts, shape, finish, workers), subject, setting, source.parts)
    batch = next(found["folder"]())
    # The same batch again and again: no loader can be faster.
    found["mock"] = found["mock_again"] = lambda: itertools.repeat(batch, len(subject.rows) // setting.batch_size)
    return found


def _loader(store: Store, subject: Subject, setting: Setting, files: Mapping[str, Any]) -> Epoch:
    """Epochs of a backend. files: "train" and "test" -> what has their labels."""
    labels, size = {name: part.labels for name, part in files.items()}, subject.geometry.size
    opened = Opened(store, labels, len(subject.source.classes), (3, size, size), "benchmark")
    loader, epochs = Loader(opened, 0.0, seed=0), itertools.count()
    return lambda: loader.epoch("train", next(epochs), setting.batch_size, frozenset())


def _prepare(subject: Subject, scratch: Path, workers: int) -> dict[str, Beton]:
    """The same images as `prepare` stores them by default: of fixed size as pixels, photographs half as JPEG."""
    kind, size = ("images", subject.geometry.size) if subject.fixed else ("imagenet", None)
    found = prepare(Job(kind, subject.source, storage(kind, image_size=size)), scratch, workers)
    return {name: Beton.open(found.path(name), len(found.classes)) for name in found.parts}


def _torchvision(subject: Subject, setting: Setting) -> Epoch:
    """ImageFolder and DataLoader as in torchvision's own examples."""
    size, device = subject.geometry.size, setting.device
    crop = transforms.RandomCrop(size, padding=4) if subject.fixed else transforms.RandomResizedCrop(size)
    normalise = transforms.Normalize(subject.source.mean, subject.source.std)
    steps = [crop, transforms.RandomHorizontalFlip(), transforms.ToTensor(), normalise]
    subject.folder.transform = transforms.Compose(steps)
    images, pin = Subset(subject.folder, subject.rows), device.type == "cuda"
    loader = DataLoader(
        images, setting.batch_size, shuffle=True, drop_last=True, num_workers=setting.workers, pin_memory=pin
    )

    def epoch() -> Iterator[Batch]:
        for images, labels in loader:
            labels = labels.to(device, non_blocking=True)
            yield Batch(images.to(device, non_blocking=True), labels, index=labels)

    return epoch


def measure(subject: Subject, setting: Setting, scratch: Path) -> list[Row]:
    """A row for each loader. They take turns, so that all of them see the machine equally busy."""
    epochs = contenders(subject, setting, scratch)
    loading: dict[str, list[float]] = {name: [] for name in epochs}
    training: dict[str, list[dict[str, float]]] = {name: [] for name in epochs}
    settings = Training(batch_size=setting.batch_size, optimizer=SGD(lr=0.01))
    model = build(subject.model, len(subject.source.classes), settings, setting.device)
    trainee = Trainee(settings, model, CrossEntropy(), iter(()), None)
    for turn in range(setting.rounds + 1):  # the first is a warm-up
        names = list(epochs)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            rate = load(epochs[name], setting)
            metrics = train(trainee, epochs[name](), setting)
            if turn:
                loading[name].append(rate)
                training[name].append(metrics)
    return rows(subject, setting, loading, training)


def load(epoch: Epoch, setting: Setting) -> float:
    """Images per second of a whole epoch; starting the loader counts."""
    now = wall_clock(setting.device)
    start, num = now(), 0
    for batch in epoch():
        num += len(batch)
    return num / (now() - start)


def train(trainee: Trainee, batches: Iterator[Batch], setting: Setting) -> dict[str, float]:
    """images_per_second of some steps, and data_wait: the share of their time spent waiting for the next batch.

    The first step is not counted: it waits for the loader to start.
    """
    meter, wait_for_device = ThroughputMeter(setting.batch_size), wall_clock(setting.device)
    trainee.batches = batches
    trainee.step()
    wait_for_device()
    meter.begin_epoch()
    trainee.batches = meter.timed(batches)
    for _ in range(setting.steps):
        trainee.step()
    wait_for_device()
    metrics = meter.epoch_metrics()
    if hasattr(batches, "close"):
        batches.close()  # pyright: ignore[reportAttributeAccessIssue]
    return metrics


def rows(
    subject: Subject, setting: Setting, loading: dict[str, list[float]], training: dict[str, list[dict[str, float]]]
) -> list[Row]:
    """What `measure` returns. Ratios are medians over rounds, of images per second in the same round."""
    rates = {name: [metrics["images_per_second"] for metrics in found] for name, found in training.items()}
    return [
        {
            "benchmark": "loaders",
            "data": subject.name,
            "loader": name,
            "images_per_second": statistics.median(own),
            "workers": setting.workers,
            "ratio_to_torchvision": statistics.median(ratios(own, loading["torchvision"])),
            "training_images_per_second": statistics.median(rates[name]),
            "training_ratio_to_mock": statistics.median(ratios(rates[name], rates["mock"])),
            "noise_floor": noise_floor(ratios(rates["mock_again"], rates["mock"])),
            "data_wait": statistics.median(metrics["data_wait"] for metrics in training[name]),
            "images": len(subject.rows),
            "image_size": subject.geometry.size,
            "batch_size": setting.batch_size,
            "model": subject.model,
            "rounds": setting.rounds,
            **machine(setting.device),
        }
        for name, own in loading.items()
    ]
