"""Steady training next to a plain PyTorch loop with torchvision's ImageFolder and DataLoader, on the same files."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from PIL import Image
from torch import nn

from benchmarks.timing import Row, clock, step_rows
from benchmarks.training_steps import dense_session, train_with_pauses
from cluster.worker import Worker
from compression import models
from compression.objectives import CrossEntropy
from pipelines.data.config import Images
from pipelines.data.loading.arrays import read_digits
from pipelines.data.stores import open_store


@dataclass(frozen=True)
class Setting:
    """One measurement: `rounds` turns of `steps` training steps for each loop.

    images: folder with train/<class>/* and test/<class>/* (or val/<class>/*). size: of the images, in pixels.
    loader_workers: processes of the plain loop's DataLoader.
    """

    images: Path
    model: str
    size: int
    batch_size: int
    loader_workers: int
    rounds: int
    steps: int
    device: torch.device


def write_digits(root: Path, size: int) -> Path:
    """scikit-learn's digits as PNG files of `size` pixels below `root`, for machines without other images."""
    digits = read_digits()
    for part, pixels in digits.images.items():
        for number, (image, label) in enumerate(zip(pixels, digits.labels[part].tolist(), strict=True)):
            path = root / part / str(label) / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC).save(path)
    return root


class PlainLoop:
    """A training as PyTorch's examples write it."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._clock, self._now = clock(setting.device)
        self._steps = self._train()
        before = _children()
        next(self._steps)  # starts the DataLoader's processes
        self._loaders = _children() - before
        self._loading = self._loading_seconds()

    def turn(self) -> float:
        """Seconds of the next `steps` steps; by CPU time those of the DataLoader's processes are included."""
        start = self._now()
        for _ in range(self._setting.steps):
            next(self._steps)
        seconds = self._now() - start
        # Since the end of the last turn: these processes read some batches ahead.
        before, self._loading = self._loading, self._loading_seconds()
        return seconds + (self._loading - before if self._clock == "process" else 0.0)

    def _train(self) -> Iterator[None]:
        from torch.utils.data import DataLoader
        from torchvision import datasets, transforms

        setting = self._setting
        crop, flip = transforms.RandomCrop(setting.size, padding=4), transforms.RandomHorizontalFlip()
        normalize = transforms.Normalize((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
        transform = transforms.Compose([crop, flip, transforms.ToTensor(), normalize])
        images, workers = datasets.ImageFolder(str(setting.images / "train"), transform), setting.loader_workers
        loader = DataLoader(
            images,
            setting.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            persistent_workers=workers > 0,
        )
        model = models.build(setting.model, len(images.classes)).to(setting.device).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
        for _ in itertools.count():
            for pixels, labels in loader:
                loss = nn.functional.cross_entropy(model(pixels.to(setting.device)), labels.to(setting.device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                yield

    def _loading_seconds(self) -> float:
        return sum(sum(process.cpu_times()[:2]) for process in self._loaders)


def _children() -> set[psutil.Process]:
    return set(psutil.Process(os.getpid()).children())


def measure(setting: Setting) -> list[Row]:
    """A row for each loop: "plain", "plain_again" (which shows the noise) and "orchard", in turns.

    Errors as of the data's readers, of the model's name, and ValueError where the data hold less than a batch.
    """
    seconds: dict[str, list[float]] = {"plain": [], "plain_again": [], "orchard": []}
    now, began = clock(setting.device)[1], 0.0
    opened = open_store(Images(root=str(setting.images), image_size=setting.size), setting.device, torch.float32, 0)
    if setting.batch_size > (num := len(opened.labels["train"])):
        raise ValueError(f"--batch-size is {setting.batch_size}, but there are {num} training images: use 1 to {num}")
    torch.manual_seed(0)
    plain = {name: PlainLoop(setting) for name in ("plain", "plain_again")}

    def take_turns() -> bool:
        nonlocal began
        if began:
            seconds["orchard"].append(now() - began)
        for name, loop in plain.items():
            seconds[name].append(loop.turn())
        began = now()
        return len(seconds["orchard"]) <= setting.rounds

    worker = Worker(0, 1, setting.device, None, lambda event: None)
    with tempfile.TemporaryDirectory() as folder:
        session = dense_session(setting.model, setting.batch_size, opened, worker, Path(folder))
        train_with_pauses(session, setting.steps, take_turns, session.model(), CrossEntropy())
    return rows(setting, {name: found[1 : setting.rounds + 1] for name, found in seconds.items()})


def rows(setting: Setting, seconds: dict[str, list[float]]) -> list[Row]:
    """What `measure` returns: `timing.step_rows` of each loop's turns. speedup: how many times as fast as the first."""
    shared = {
        "benchmark": "training",
        **vars(setting),
        "images": str(setting.images),
        "clock": clock(setting.device)[0],
    }
    steps = {name: [turn / setting.steps for turn in own] for name, own in seconds.items()}
    found = step_rows(shared, "loop", steps, setting.batch_size, setting.device)
    return [row | {"speedup": 1 / row["ratio"]} for row in found]
