"""What a training step costs under each objective and under masks, beside a dense one under plain cross-entropy."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.timing import clock, interleaved, noise_floor, ratios
from cluster.strategy import strategy
from compression import Batch, allocation, models
from compression.criteria import snip
from compression.masks import Masks
from compression.objectives import OBJECTIVES, CrossEntropy, Objective
from pipelines.context import RunContext
from pipelines.data.config import Digits
from pipelines.data.loader import NEEDS, Loader
from pipelines.data.loading.arrays import read_digits
from pipelines.data.loading.views import Opened
from pipelines.data.stores import in_memory
from pipelines.evaluation import autocast
from pipelines.execute import environment
from pipelines.experiment import Experiment, Training
from pipelines.optimizers import parameter_groups

VARIANTS = {
    "dense": "cross_entropy",
    "dense_again": "cross_entropy",
    "masked": "cross_entropy",
    "cs_kd": "cs_kd",
    "dlb": "dlb",
    "ps_kd": "ps_kd",
    "label_smoothing": "label_smoothing",
}
"""What is measured -> its objective. The second dense network says how far apart two equal things come out."""

SPARSITY = 0.95
NUM_BATCHES = 4
STEPS_AT_ONCE = {"cpu": 1, "cuda": 20}
"""Steps between two looks at the clock: on a GPU a look waits for the device, which a training step never does."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """One measurement: `training` holds batch size, precision, layout and optimiser; `size` is in pixels."""

    model: str
    size: int
    training: Training
    repetitions: int
    device: torch.device


class Trainee:
    """One network in training, a step at a time, as `pipelines.training.Trainer` takes it."""

    def __init__(
        self, setting: Setting, model: nn.Module, objective: Objective, batches: Sequence[Batch], masks: Masks | None
    ) -> None:
        self.model = model
        self.masks = masks
        self._setting = setting
        self._objective = objective
        self._batches = itertools.cycle(batches)
        self._optimizer = setting.training.optimizer.build(parameter_groups(model))
        (masks or Masks({})).attach(model)
        self._strategy = strategy("single", 1)
        self._network = self._strategy.prepare(model, self._optimizer)
        self._losses: dict[str, torch.Tensor] = {}

    def step(self) -> None:
        with autocast(self._setting.training, self._setting.device):
            losses = self._objective(self._network, next(self._batches))
        self._strategy.backward(torch.stack(list(losses.values())).sum())
        self._strategy.step(self._optimizer)
        self._optimizer.zero_grad(set_to_none=True)
        self._losses = losses

    def check(self) -> None:
        """ValueError if what was timed was not a training: masked weights that came back, or a loss gone wrong."""
        if self.masks is not None:
            self.masks.verify(self.model)
        if not all(math.isfinite(loss.detach()) for loss in self._losses.values()):
            raise ValueError("the loss is not finite: steps on such numbers say nothing of a training's speed")


def trainees(setting: Setting, variants: Sequence[str]) -> dict[str, Trainee]:
    """A network in training for each variant, all from the same weights and on the same batches."""
    loader = open_digits(setting.size, setting.device)
    batches = loader.batches("throughput", NUM_BATCHES, setting.training.batch_size, NEEDS)
    torch.manual_seed(0)
    layout = torch.channels_last if setting.training.channels_last else torch.contiguous_format
    model = models.build(setting.model, loader.info.num_classes)
    model = model.to(device=setting.device, memory_format=layout).train()  # pyright: ignore[reportCallIssue]
    masks = allocation.global_topk(snip(model, batches[:1], CrossEntropy()), SPARSITY)
    found = {}
    for variant in variants:
        objective = OBJECTIVES[VARIANTS[variant]]().objective()
        objective.setup(loader.info, setting.device)
        objective.begin_epoch(1, 2)  # PS-KD remembers nothing in its first epoch, and its step is then another one
        own_masks = masks if variant == "masked" else None
        found[variant] = Trainee(setting, copy.deepcopy(model), objective, batches, own_masks)
    return found


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
    resized = dataclasses.replace(arrays, images=images)
    return in_memory(resized, Digits().augmentation, device, torch.float32)


def no_teacher(run: RunContext, experiment: Experiment) -> nn.Module:
    """For a Run that only trains what it is given."""
    raise AssertionError("what is timed has its teacher already, or needs none")


def measure(setting: Setting, variants: Sequence[str] = tuple(VARIANTS)) -> list[Row]:
    """A row for each variant; "dense" and "dense_again" must be among them.

    ValueError: the model is unknown, the batch is larger than the data, or what was timed was not a training.
    """
    found = trainees(setting, variants)
    steps = {name: trainee.step for name, trainee in found.items()}
    at_once = STEPS_AT_ONCE[setting.device.type]
    seconds = interleaved(steps, setting.repetitions, clock(setting.device)[1], at_once)
    for trainee in found.values():
        trainee.check()
    return rows(setting, seconds)


def rows(setting: Setting, seconds: Mapping[str, Sequence[float]]) -> list[Row]:
    """What `measure` returns, from the seconds of each variant's step in each round.

    seconds_median: of one step, by `clock`. ratio: the median over rounds of the variant's seconds by dense's in the
    same round (two medians may be of different minutes of a busy machine). noise_floor: of the whole measurement.
    """
    dense = seconds["dense"]
    floor = noise_floor(ratios(seconds["dense_again"], dense))
    return [
        {
            "benchmark": "step",
            "variant": name,
            "model": setting.model,
            "batch_size": setting.training.batch_size,
            "size": setting.size,
            "device": setting.device.type,
            "precision": setting.training.precision,
            "channels_last": setting.training.channels_last,
            "threads": torch.get_num_threads(),
            "clock": clock(setting.device)[0],
            "seconds_median": statistics.median(own),
            "images_per_second": setting.training.batch_size / statistics.median(own),
            "ratio": statistics.median(ratios(own, dense)),
            "noise_floor": floor,
            "repetitions": setting.repetitions,
            "torch": torch.__version__,
            "hardware": environment(setting.device)["hardware"],
        }
        for name, own in seconds.items()
    ]
