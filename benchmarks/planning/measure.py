"""Measuring what a plan stands on: trainings by the training loop itself, a few steps of them, on one device."""

from __future__ import annotations

import copy
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from benchmarks.planning.data import ShortLoader
from benchmarks.planning.model import StageTime, StepTime
from benchmarks.planning.rehearsal import Given, Part
from benchmarks.training_steps import no_teacher
from cluster.worker import Worker
from compression import cost
from pipelines.data.config import Resolution
from pipelines.data.loader import Loader
from pipelines.data.loading.views import Opened
from pipelines.evaluation import evaluate
from pipelines.experiment import Placement, Training
from pipelines.run_folder import RunFolder
from pipelines.session import ExperimentSession

ROUNDS = 3
"""Timed epochs of a few steps each; their median counts. One more before them warms up."""

PROBE_STEPS, LEAST_STEPS, MOST_STEPS = 2, 2, 100
"""Steps of an epoch: of the first try, which says how many go into the time there is; and the bounds of that."""

STILL = 1e-6
"""Learning rate: a step takes as long with any, and with this one networks stay what they are."""

COUNTED = 2
"""Images on which a scoring's operations are counted, to tell what grows with their number from what does not."""


def time_training(part: Part, batch: int, size: int, seconds: float, worker: Worker, folder: Path) -> StepTime:
    """A training's step with `batch` images in all, each of `size` pixels.

    seconds: about so long. folder: for checkpoints. ValueError: the device's memory does not hold so many images.
    """
    with enough_memory(batch):
        probe = run_steps(part, batch, size, PROBE_STEPS, 1, worker, folder / "probe")
        steps = int(seconds / (ROUNDS + 1) / probe[-1][0])
        steps = max(LEAST_STEPS, min(MOST_STEPS, steps))
        rounds = run_steps(part, batch, size, steps, ROUNDS + 1, worker, folder / "timed")[1:]
    own = [step for step, _ in rounds]
    middle = statistics.median(own)
    return StepTime(middle, (max(own) - min(own)) / middle, batch, statistics.median(end for _, end in rounds))


def run_steps(
    part: Part, batch: int, size: int, steps: int, epochs: int, worker: Worker, folder: Path
) -> list[tuple[float, float]]:
    """(seconds of a step, seconds at the end) of each epoch of a short training on copies, by the training loop itself.

    The end of the first epoch is 0: when that began is not known.
    """
    usual = part.info.input_shape[1]
    loader = ShortLoader(part.found.opened, 0.0, 0, Resolution(size, size) if size != usual else None)
    loader.most = steps
    placement = Placement(storage=str(folder))
    run = ExperimentSession(part.experiment, placement, worker, loader, RunFolder(folder, "plan"), no_teacher)
    optimizer = dataclasses.replace(part.settings.optimizer, lr=STILL)
    settings = dataclasses.replace(
        part.settings, epochs=epochs, batch_size=batch, optimizer=optimizer, warmup_epochs=0.0
    )
    model, objective = copy.deepcopy((part.model, part.objective))  # together: an objective may hold parts of it
    run.train("train", model, objective, masks=part.masks, schedule=settings)
    records = [record for record in run.history.values() if record["key"] == "train/images_per_second"]
    in_epoch = min(steps, loader.steps_per_epoch(batch))
    found: list[tuple[float, float]] = []
    for place, record in enumerate(records):
        step = batch / record["value"]
        since = (record["time_ms"] - records[place - 1]["time_ms"]) / 1000 if place else in_epoch * step
        found.append((step, max(since - in_epoch * step, 0.0)))
    return found


def time_evaluation(
    model: nn.Module, opened: Opened, training: Training, batch: int, seconds: float, worker: Worker
) -> float:
    """Images per second of an evaluation with `batch` images at once."""
    loader = ShortLoader(opened, 0.0, 0)
    settings = dataclasses.replace(training, batch_size=batch)
    loader.most = PROBE_STEPS
    rates: list[float] = []
    with enough_memory(batch):
        for _ in range(1 + ROUNDS):
            images = min(loader.most * batch, loader.info.sizes["test"])
            start = time.perf_counter()
            evaluate(model, loader, "test", settings, worker)  # its numbers leave the device, so it has ended
            rates.append(images / (time.perf_counter() - start))
            if len(rates) == 1:
                loader.most = max(LEAST_STEPS, min(MOST_STEPS, int(seconds / ROUNDS * rates[0] / batch)))
    return statistics.median(rates[1:])


def time_stage(fn: Callable[[], object], given: list[Given], most: int) -> tuple[object, StageTime]:
    """What the first worker computes, and how long it takes; on `most` images at once, if it looks at images.

    What grows with their number is found by counting floating-point operations on two and on `most`.
    """
    images = max((batches.num_images for batches in given), default=0)
    timed = min(images, max(most, 2 * COUNTED))
    few = 0
    if images > COUNTED:
        few = _on(COUNTED, given, fn)[2]
    with enough_memory(timed):
        result, seconds, many = _on(timed, given, fn)
    if timed < images and many and any(batches.was_read for batches in given):
        each = (many - few) / (timed - COUNTED)
        seconds *= (few + each * (images - COUNTED)) / many
    return result, StageTime(seconds, images, timed)


def _on(images: int, given: list[Given], fn: Callable[[], object]) -> tuple[object, float, int]:
    """(result, seconds, floating-point operations) of `fn` on batches of so many images; a run counts them, too."""
    for batches in given:
        batches.at_hand = min(images, batches.num_images)
        batches[:]  # drawn before the clock starts
    start = time.perf_counter()
    result, flops = cost.count_flops(fn)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, time.perf_counter() - start, flops


def time_loader(real: Opened, batch: int, resolution: Resolution | None, seconds: float) -> float:
    """Images per second that the loader reads and decodes where nobody else wants the processor."""
    loader = Loader(real, 0.0, 0, resolution)
    batches = loader.epoch("train", 0, min(batch, loader.info.sizes["train"] // 2), frozenset(), progress=0.0)
    next(batches)  # waits for processes to start
    start, images = time.perf_counter(), 0
    for found in batches:
        images += len(found)
        if time.perf_counter() - start > seconds:
            break
    rate = images / (time.perf_counter() - start)
    batches.close()  # pyright: ignore[reportAttributeAccessIssue]
    return rate


@contextmanager
def enough_memory(images: int) -> Iterator[None]:
    """ValueError that says what to do in place of the device's own error."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"{images} images at once do not fit into this device's memory: give --batch-per-gpu a smaller number, "
            "from which the time of so many is computed"
        ) from error


@contextmanager
def scratch(storage: str) -> Iterator[Path]:
    """A folder that goes again; inside the storage if that is there, for checkpoints to be as fast as they will be."""
    inside = storage if Path(storage).is_dir() else None
    with tempfile.TemporaryDirectory(prefix="plan-", dir=inside) as folder:
        yield Path(folder)
