"""Steady training next to a plain PyTorch loop with torchvision's ImageFolder and DataLoader, on the same files."""

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch
from PIL import Image
from torch import nn

from benchmarks.timing import Row, Setting, clock, turn_rows
from benchmarks.training_steps import dense_session, train_with_pauses
from cluster.worker import Worker
from compression import models
from compression.objectives import CrossEntropy
from pipelines.data.config import Images
from pipelines.data.loading.arrays import read_digits
from pipelines.data.stores import open_store


def write_digits(root: Path, size: int) -> Path:
    """scikit-learn's digits as PNG files of `size` pixels below `root`, for machines without other images."""
    digits = read_digits()
    for part, pixels in digits.images.items():
        for number, (image, label) in enumerate(zip(pixels, digits.labels[part].tolist(), strict=True)):
            path = root / part / str(label) / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC).save(path)
    return root


def plain_training(setting: Setting, images: Path) -> Iterator[None]:
    """A training as PyTorch's examples write it, one step at a time."""
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    crop, flip = transforms.RandomCrop(setting.size, padding=4), transforms.RandomHorizontalFlip()
    normalize = transforms.Normalize((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    transform = transforms.Compose([crop, flip, transforms.ToTensor(), normalize])
    folder, processes = datasets.ImageFolder(str(images / "train"), transform), setting.workers
    workers = {"num_workers": processes, "persistent_workers": processes > 0}
    loader = DataLoader(folder, setting.batch_size, shuffle=True, drop_last=True, **workers)
    model = models.build(setting.model, len(folder.classes)).to(setting.device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    for _ in itertools.count():
        for pixels, labels in loader:
            loss = nn.functional.cross_entropy(model(pixels.to(setting.device)), labels.to(setting.device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield


class PlainLoop:
    """A plain training in turns."""

    def __init__(self, setting: Setting, images: Path) -> None:
        self._num, (self._clock, self._now) = setting.steps, clock(setting.device)
        before = set(psutil.Process().children())
        self._steps = plain_training(setting, images)
        next(self._steps)
        self._readers = set(psutil.Process().children()) - before
        self._read = self._reading_seconds()

    def turn(self) -> float:
        """Seconds of a turn; by CPU time with those of the DataLoader's processes since the last turn."""
        start, before = self._now(), self._read
        for _ in range(self._num):
            next(self._steps)
        seconds, self._read = self._now() - start, self._reading_seconds()
        return seconds + (self._read - before if self._clock == "process" else 0.0)

    def _reading_seconds(self) -> float:
        return sum(sum(process.cpu_times()[:2]) for process in self._readers)


def measure(setting: Setting, images: Path) -> list[Row]:
    """A row for each loop, in turns: "plain", "plain_again" (which shows the noise) and "orchard".

    images: folder with train/<class>/* and test/<class>/* (or val/<class>/*), of `setting.size` pixels.
    speedup: how many times as fast as the first. ValueError: the data hold less than a batch, or are not there.
    """
    clock_name, now = clock(setting.device)
    opened = open_store(Images(root=str(images), image_size=setting.size), setting.device, torch.float32, 0)
    if setting.batch_size > (num := len(opened.labels["train"])):
        raise ValueError(f"--batch-size is {setting.batch_size}, but there are {num} training images: use 1 to {num}")
    plain = {name: PlainLoop(setting, images) for name in ("plain", "plain_again")}
    seconds: dict[str, list[float]] = {"plain": [], "plain_again": [], "orchard": []}
    began = 0.0

    def next_turn() -> bool:
        nonlocal began
        if began:
            seconds["orchard"].append(now() - began)
        for name, loop in plain.items():
            seconds[name].append(loop.turn())
        began = now()
        return len(seconds["orchard"]) <= setting.rounds

    with tempfile.TemporaryDirectory() as folder:
        worker = Worker(0, 1, setting.device, None, lambda event: None)
        session = dense_session(setting.model, setting.batch_size, opened, worker, Path(folder))
        train_with_pauses(session, setting.steps, next_turn, session.model(), CrossEntropy())
    turns = {name: found[1 : setting.rounds + 1] for name, found in seconds.items()}  # the first is a warm-up
    rows = turn_rows(setting, "loop", turns, benchmark="training", clock=clock_name)
    return [row | {"speedup": 1 / row["ratio"]} for row in rows]
