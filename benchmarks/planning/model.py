"""The model of a plan: from what one device takes to what N of them take. docs/scaling.md derives it in words.

Times are in seconds, sizes in bytes, rates in images per second (of a host, where several devices share one).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

BUCKET_BYTES = 25 * 2**20
"""Gradients that DistributedDataParallel reduces in one message by default, after a smaller first one."""

FIRST_BUCKET_BYTES: int = dist._DEFAULT_FIRST_BUCKET_BYTES


@dataclass(frozen=True)
class Link:
    """What connects the devices. latency: seconds of a message; bandwidth: bytes per second in each direction."""

    latency: float
    bandwidth: float


@dataclass(frozen=True)
class StepTime:
    """Of one training step with `images` images: seconds, median of rounds; spread: (most - least) / median of them.

    epoch_end_seconds: what an epoch takes beside its steps and its evaluation: the checkpoint, the masks' check.
    """

    seconds: float
    spread: float
    images: int
    epoch_end_seconds: float


@dataclass(frozen=True)
class StageTime:
    """What the first worker computes alone: seconds for batches of `images`, computed from a run on `timed` of them."""

    seconds: float
    images: int
    timed: int


@dataclass
class Measured:
    """Everything that a plan stands on. The keys say what was measured.

    evaluations, loaders: images per second.
    """

    device: str
    steps: dict[str, StepTime] = dataclasses.field(default_factory=dict)
    evaluations: dict[str, float] = dataclasses.field(default_factory=dict)
    stages: dict[str, StageTime] = dataclasses.field(default_factory=dict)
    loaders: dict[str, float] = dataclasses.field(default_factory=dict)
    link: Link | None = None

    @classmethod
    def of_json(cls, value: Mapping[str, Any]) -> Measured:
        """The inverse of dataclasses.asdict. KeyError, TypeError: it is something else."""
        return cls(
            value["device"],
            {key: StepTime(**step) for key, step in value["steps"].items()},
            dict(value["evaluations"]),
            {key: StageTime(**stage) for key, stage in value["stages"].items()},
            dict(value["loaders"]),
            Link(**value["link"]) if value["link"] else None,
        )


@dataclass(frozen=True)
class Place:
    """Where a plan puts the run. loader_rate: images per second and host; None: nothing waits for images."""

    gpus: int
    hosts: int
    link: Link | None
    loader_rate: float | None = None

    def loading_seconds(self, images: float) -> float:
        """Until all hosts together have read so many images."""
        return 0.0 if self.loader_rate is None else images / (self.loader_rate * self.hosts)


@dataclass(frozen=True)
class Span:
    """Seconds: at least `low`, and at most `high`; None where what the devices exchange takes a time not known."""

    low: float
    high: float | None

    def __add__(self, other: Span) -> Span:
        high = None if self.high is None or other.high is None else self.high + other.high
        return Span(self.low + other.low, high)

    def times(self, factor: float) -> Span:
        return Span(self.low * factor, None if self.high is None else self.high * factor)


@dataclass(frozen=True)
class Train:
    """A training in numbers.

    sizes: pixels -> epochs. steps: of an epoch. views: images read for each image trained on.
    step_keys: devices -> pixels -> key in Measured.steps; evaluation_keys: devices -> key in Measured.evaluations.
    loader_keys: pixels -> key in Measured.loaders; empty where that was not measured.
    in_step: reading images is part of the step: they lie in the device's memory.
    """

    run: str
    stage: str
    network: str
    gradient_bytes: int
    batch_size: int
    views: int
    steps: int
    val_images: int
    sizes: Mapping[int, int]
    step_keys: Mapping[int, Mapping[int, str]]
    evaluation_keys: Mapping[int, str]
    loader_keys: Mapping[int, str]
    in_step: bool

    @property
    def epochs(self) -> int:
        return sum(self.sizes.values())


@dataclass(frozen=True)
class Stage:
    """What the first worker computes while the others wait; key: in Measured.stages."""

    run: str
    stage: str
    key: str


@dataclass(frozen=True)
class Evaluate:
    """An evaluation outside of a training; keys: devices -> key in Measured.evaluations; loader_key: as in Train."""

    run: str
    stage: str
    images: int
    keys: Mapping[int, str]
    loader_key: str | None
    in_step: bool


Act = Train | Stage | Evaluate


def all_reduce_seconds(num_bytes: int, gpus: int, link: Link) -> float:
    """A ring: each device sends 2 (N-1)/N of the bytes, in 2 (N-1) messages for each bucket of gradients."""
    if gpus == 1:
        return 0.0
    buckets = 1 + math.ceil(max(0, num_bytes - FIRST_BUCKET_BYTES) / BUCKET_BYTES)
    return 2 * (gpus - 1) / gpus * num_bytes / link.bandwidth + 2 * (gpus - 1) * link.latency * buckets


def step_span(compute: float, reduce: float | None, loading: float) -> tuple[Span, str]:
    """One step of all devices, and what it waits for most: "compute", "communication" or "loader".

    The gradients are exchanged all beside the computation (low) or all after it (high); batches are read beside both.
    """
    if reduce is None:
        return Span(max(loading, compute), None), "loader" if loading > compute else "compute"
    bound = "loader" if loading > compute + reduce else "communication" if reduce > compute else "compute"
    return Span(max(loading, compute, reduce), max(loading, compute + reduce)), bound


def predict(act: Act, place: Place, measured: Measured) -> tuple[Span, str]:
    """What an act takes at this place, and what bounds it."""
    if isinstance(act, Stage):
        seconds = measured.stages[act.key].seconds
        return Span(seconds, seconds), "first GPU"
    if isinstance(act, Evaluate):
        place = _reading(place, act.in_step, act.loader_key, measured)
        seconds = evaluation_seconds(act.images, measured.evaluations[act.keys[place.gpus]], place)
        return Span(seconds, seconds), "compute"
    total, bounds = Span(0.0, 0.0), {}
    for size, epochs in act.sizes.items():
        step, bound = predict_step(act, size, place, measured)
        rest = measured.steps[act.step_keys[place.gpus][size]].epoch_end_seconds
        if act.val_images:
            reading = _reading(place, act.in_step, act.loader_keys.get(size), measured)
            rest += evaluation_seconds(act.val_images, measured.evaluations[act.evaluation_keys[place.gpus]], reading)
        total += (step.times(act.steps) + Span(rest, rest)).times(epochs)
        bounds[bound] = bounds.get(bound, 0.0) + epochs
    return total, max(bounds, key=lambda bound: bounds[bound])


def predict_step(act: Train, size: int, place: Place, measured: Measured) -> tuple[Span, str]:
    """One training step with images of `size` pixels, and what bounds it."""
    found = measured.steps[act.step_keys[place.gpus][size]]
    share = act.batch_size / place.gpus
    reduce = 0.0 if place.gpus == 1 else None
    if reduce is None and place.link is not None:
        reduce = all_reduce_seconds(act.gradient_bytes, place.gpus, place.link)
    place = _reading(place, act.in_step, act.loader_keys.get(size), measured)
    return step_span(found.seconds * share / found.images, reduce, place.loading_seconds(act.batch_size * act.views))


def evaluation_seconds(images: int, rate: float, place: Place) -> float:
    """Each device takes its share at `rate` images per second; none waits for another before the end."""
    return max(images / (place.gpus * rate), place.loading_seconds(images))


def _reading(place: Place, in_step: bool, key: str | None, measured: Measured) -> Place:
    """The place, with the loader's rate that goes with the images: none, the one given, or the one measured."""
    if in_step:
        return dataclasses.replace(place, loader_rate=None)
    if place.loader_rate is None and key is not None:
        return dataclasses.replace(place, loader_rate=measured.loaders[key])
    return place
