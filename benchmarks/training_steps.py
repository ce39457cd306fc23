"""Single training steps: what a step costs under each objective and under masks, next to a dense cross-entropy step."""

import contextlib
import copy
import dataclasses
import functools
import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.timing import CALLS_AT_ONCE, Row, Setting, clock, interleaved, step_rows, wall_clock
from cluster.worker import Worker
from compression import Batch, allocation, models
from compression.criteria import snip
from compression.masks import Masks
from compression.methods import Dense
from compression.objectives import OBJECTIVES, CrossEntropy, Objective
from pipelines.context import EpochRange, RunContext
from pipelines.data.config import Digits
from pipelines.data.loader import NEEDS, Loader
from pipelines.data.loading.arrays import read_digits
from pipelines.data.loading.views import Opened, Request, batch_of
from pipelines.data.stores import in_memory
from pipelines.evaluation import autocast
from pipelines.experiment import Experiment, Placement, Training
from pipelines.optimizers import SGD, parameter_groups
from pipelines.run_folder import RunFolder
from pipelines.session import ExperimentSession
from pipelines.training import Trainer

VARIANTS = {
    "dense": "cross_entropy",
    "dense_again": "cross_entropy",
    "masked": "cross_entropy",
    "cs_kd": "cs_kd",
    "dlb": "dlb",
    "ps_kd": "ps_kd",
    "label_smoothing": "label_smoothing",
}
"""What is measured -> its objective. The second dense network shows how far apart two equal things come out."""

SPARSITY = 0.95
NUM_BATCHES = 4
ENDLESS = 10**9
"""Steps of an epoch that ends when the measurement does."""


class Trainee:
    """A network in training on one device: autocast, objective, backward, optimiser step.

    batches: where the steps take theirs from.
    """

    def __init__(
        self, training: Training, model: nn.Module, objective: Objective, batches: Iterator[Batch], masks: Masks | None
    ) -> None:
        self.model, self.masks, self.batches = model, masks, batches
        self._training, self._objective = training, objective
        self._device = next(model.parameters()).device
        self._optimizer = training.optimizer.build(parameter_groups(model))
        (masks or Masks({})).attach(model)
        self._losses: dict[str, Tensor] = {}

    def step(self) -> None:
        with autocast(self._training, self._device):
            self._losses = self._objective(self.model, next(self.batches))
        torch.stack(list(self._losses.values())).sum().backward()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def check(self) -> None:
        """ValueError if that was no training: pruned weights are not zero any more, or the loss is not finite."""
        if self.masks is not None:
            self.masks.verify(self.model)
        if not all(math.isfinite(loss.detach()) for loss in self._losses.values()):
            raise ValueError("the loss is not finite: the speed of such steps says nothing about a training")


def trainees(setting: Setting, training: Training, variants: Sequence[str]) -> dict[str, Trainee]:
    """A network in training for each variant, all with the same first weights and the same batches."""
    loader = open_digits(setting.size, setting.device)
    batches = loader.batches("throughput", NUM_BATCHES, training.batch_size, NEEDS)
    model = build(setting.model, loader.info.num_classes, training, setting.device)
    masks = allocation.global_topk(snip(model, batches[:1], CrossEntropy()), SPARSITY)
    found = {}
    for variant in variants:
        objective = OBJECTIVES[VARIANTS[variant]]().objective()
        objective.setup(loader.info, setting.device)
        objective.begin_epoch(1, 2)  # in its first epoch PS-KD remembers nothing, and its step is another one
        own_masks = masks if variant == "masked" else None
        found[variant] = Trainee(training, copy.deepcopy(model), objective, itertools.cycle(batches), own_masks)
    return found


def build(model: str, num_classes: int, training: Training, device: torch.device) -> nn.Module:
    """A network in train mode, the same on every call."""
    torch.manual_seed(0)
    layout = torch.channels_last if training.channels_last else torch.contiguous_format
    return models.build(model, num_classes).to(device=device, memory_format=layout).train()  # pyright: ignore


def open_digits(size: int, device: torch.device) -> Loader:
    """scikit-learn's digits, the whole training part, resized to `size` pixels and held on the device."""
    return Loader(enlarged_digits(size, device), val_fraction=0, seed=0)


def enlarged_digits(size: int, device: torch.device) -> Opened:
    """scikit-learn's digits, resized to `size` pixels and held on the device."""
    arrays = read_digits()
    images = {}
    for part, pixels in arrays.images.items():
        channels_first = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        resized = F.interpolate(channels_first, (size, size), mode="bilinear")
        images[part] = resized.permute(0, 2, 3, 1).contiguous().numpy()
    arrays = dataclasses.replace(arrays, images=images)
    return in_memory(arrays, Digits().augmentation, device, torch.float32)


def random_pixels(size: int, counts: tuple[int, int, int], device: torch.device, dtype: torch.dtype) -> Opened:
    """Random images in classes of equal size. counts: classes, images in train, images in test."""
    classes, train, test = counts
    labels = {part: torch.arange(num) % classes for part, num in {"train": train, "test": test}.items()}
    return Opened(_RandomPixels(size, device, dtype), labels, classes, (3, size, size), "random pixels")


class _RandomPixels:
    """A data store that reads nothing: all batches of one shape are the same images."""

    def __init__(self, size: int, device: torch.device, dtype: torch.dtype) -> None:
        self.host, self._size = device, size

        @functools.cache
        def images(num: int, size: int) -> Tensor:  # in channels_last memory, as other stores return them
            return torch.rand(num, size, size, 3).to(device, dtype).permute(0, 3, 1, 2)

        self._images = images

    def read(self, requests: Iterable[Request]) -> Iterator[Batch]:
        for request in requests:
            images = {name: self._images(len(v.rows), v.size or self._size) for name, v in request.views.items()}
            yield batch_of(images, request.labels, request.index)

    def close(self) -> None:
        self._images.cache_clear()


def even(like: Tensor) -> Tensor:
    """1/n, 2/n ... 1 in random order, in the shape of `like`: the same share of each such tensor is below any value."""
    order = torch.randperm(like.numel(), generator=torch.Generator().manual_seed(0))
    return ((order + 1) / like.numel()).view(like.shape).to(like.device, like.dtype)


def even_result(result: Any) -> Any:
    """Scores or masks, spread evenly over the layers."""
    scores = {name: even(values.float()) for name, values in result.items()}
    if not isinstance(result, Masks):
        return scores
    return allocation.remove_lowest(scores, Masks.ones_like(result), result.num_weights - result.num_kept)


def measure(setting: Setting, training: Training, variants: Sequence[str] = tuple(VARIANTS)) -> list[Row]:
    """A row for each variant; the first two must be "dense" and "dense_again".

    training: batch size (that of the setting), precision, layout and optimiser.
    ValueError: the model is unknown, the batch is larger than the data, or what was timed was not a training.
    """
    found = trainees(setting, training, variants)
    steps = {name: trainee.step for name, trainee in found.items()}
    name, now = clock(setting.device)
    seconds = interleaved(steps, setting.rounds, now, CALLS_AT_ONCE[setting.device.type])
    for trainee in found.values():
        trainee.check()
    how = {"precision": training.precision, "channels_last": training.channels_last, "repetitions": setting.rounds}
    return step_rows(setting, "variant", seconds, benchmark="step", clock=name, **how)


def train_with_pauses(
    session: ExperimentSession,
    steps: int,
    pause: Callable[[], bool],
    *training: Any,
    settings: Training | None = None,
    epoch: int = 0,
) -> None:
    """A training like `session.train`, endless, with a pause after the first step and after each `steps` further ones.

    pause: called by every worker between two steps; False ends the training.
    training: model, objective, masks and parameter groups; the last two may be missing.
    settings: others than the experiment's. epoch: of their schedule.
    """
    session = copy.copy(session)
    session.loader = _PausedLoader(session.loader, steps, pause)
    stage = EpochRange("timed", settings or session.experiment.training, range(epoch, epoch + 1), ENDLESS, 0)
    with contextlib.suppress(_Ended):
        Trainer(session, stage, *training).train()


def seconds_per_step(session: ExperimentSession, seconds: float, *training: Any, **how: Any) -> float:
    """Median wall-clock seconds of a step of `train_with_pauses`, timed for about so long; trains copies."""
    now, at_once, times = wall_clock(session.device), CALLS_AT_ONCE[session.device.type], []

    def pause() -> bool:
        times.append(now())
        return len(times) < 5 or times[-1] - times[1] < seconds

    training = copy.deepcopy(training)  # together: network and groups share parameters
    train_with_pauses(session, at_once, pause, *training, **how)
    return statistics.median(after - before for before, after in itertools.pairwise(times[1:])) / at_once


class _Ended(Exception):
    """The measurement is over. Nothing follows that belongs to the end of an epoch."""


class _PausedLoader(Loader):
    """The training split of another loader without end; pauses are made where the next batch is asked for."""

    def __init__(self, loader: Loader, steps: int, pause: Callable[[], bool]) -> None:
        vars(self).update(vars(loader))
        self._loader, self._steps, self._pause = loader, steps, pause

    def batches(self, *args: Any, **options: Any) -> list[Batch]:
        return self._loader.batches(*args, **options)

    def epoch(self, stage: str, epoch: int, *args: Any, **options: Any) -> Iterator[Batch]:
        epochs = (self._loader.epoch(stage, number, *args, **options) for number in itertools.count(epoch))
        batches = itertools.chain.from_iterable(epochs)
        yield next(batches)
        while self._pause():
            yield from itertools.islice(batches, self._steps)
        raise _Ended


def dense_session(model: str, batch_size: int, opened: Opened, worker: Worker, folder: Path) -> ExperimentSession:
    """The session of a dense training. folder: for its files."""
    experiment = Experiment(Dense(), model, Digits(), Training(1, batch_size, SGD(lr=0.01)))
    run_folder, loader = RunFolder(folder, experiment.identity), Loader(opened, val_fraction=0, seed=0)
    return ExperimentSession(experiment, Placement(storage=str(folder)), worker, loader, run_folder, _no_teacher)


def _no_teacher(context: RunContext, experiment: Experiment) -> nn.Module:
    raise AssertionError("a dense training has no teacher")
