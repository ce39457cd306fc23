"""What training costs in time, measured side by side in one process.

python benchmarks/throughput.py step [--json] [--model NAME] [--size PIXELS] [--batch-size N] [--repetitions R] ...

step: one training step (forward, objective, backward, optimiser step) under each objective and under masks, beside that
of a dense network under plain cross-entropy. The images are real and lie on the device; reading them is not part of it.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn import functional as F

from cluster.strategy import Single
from compression import Batch, allocation, models
from compression.criteria import snip
from compression.masks import Masks
from compression.objectives import OBJECTIVES, CrossEntropy, Objective
from pipelines.data.config import Digits
from pipelines.data.loader import NEEDS, Loader
from pipelines.data.memory import MemoryStore
from pipelines.data.sources import read_digits
from pipelines.evaluation import autocast
from pipelines.execute import _environment
from pipelines.experiment import Training
from pipelines.optimizers import SGD, parameter_groups

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

LIMITS = {"masked": 1.03, "cs_kd": 1.45, "dlb": 2.25}
"""The most that a variant's step may cost, in dense steps, beyond the noise floor."""

SPARSITY = 0.95
NUM_BATCHES = 4
WARM_UP_ROUNDS = 1
"""Untimed: the first step allocates, and DLB's has no batch before it."""
STEPS_AT_ONCE = {"cpu": 1, "cuda": 20}
"""Steps between two looks at the clock: on a GPU, looking waits for the device, which a training step never does."""

Row = dict[str, Any]
Step = Callable[[], None]
Clock = Callable[[], float]


@dataclasses.dataclass(frozen=True)
class Setting:
    """One measurement: `training` holds batch size, precision, layout and optimiser; `size` is in pixels."""

    model: str
    size: int
    training: Training
    repetitions: int
    device: torch.device


class Trainee:
    """One network in training, a step at a time, as `pipelines.training.train` takes it."""

    def __init__(self, setting: Setting, model: nn.Module, objective: Objective, masks: Masks | None) -> None:
        self.model = model
        self.masks = masks
        self._setting = setting
        self._objective = objective
        self._optimizer = setting.training.optimizer.build(parameter_groups(model))
        (masks or Masks({})).attach(model)
        self._strategy = Single()
        self._network = self._strategy.prepare(model, self._optimizer)
        self._loss = torch.zeros(())

    def step(self, batch: Batch) -> None:
        with autocast(self._setting.training, self._setting.device):
            losses = self._objective(self._network, batch)
        loss = torch.stack(list(losses.values())).sum()
        self._strategy.backward(loss)
        self._strategy.step(self._optimizer)
        self._optimizer.zero_grad(set_to_none=True)
        self._loss = loss.detach()

    def check(self) -> None:
        """ValueError if what was timed was not a training: masked weights that came back, or a loss gone wrong."""
        if self.masks is not None:
            self.masks.verify(self.model)
        if not math.isfinite(self._loss):
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
    """scikit-learn's digits, all of the training part, resized to `size` pixels and held on the device."""
    arrays = read_digits()
    images = {}
    for part, pixels in arrays.images.items():
        channels_first = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        resized = F.interpolate(channels_first, (size, size), mode="bilinear")
        images[part] = resized.permute(0, 2, 3, 1).contiguous().numpy()
    store = MemoryStore(dataclasses.replace(arrays, images=images), Digits().augmentation, device, torch.float32)
    return Loader(store, arrays.labels, arrays.num_classes, (3, size, size), arrays.fingerprint, 0, seed=0)


def interleaved(steps: Mapping[str, Step], repetitions: int, now: Clock, at_once: int = 1) -> dict[str, list[float]]:
    """Seconds per step of each in each round: one after the other in rotation, from another one on in every round.

    A machine that others use grows slower and faster by the minute; neighbours in time see the same of it.
    """
    names = list(steps)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(WARM_UP_ROUNDS + repetitions):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            start = now()
            for _ in range(at_once):
                steps[name]()
            if turn >= WARM_UP_ROUNDS:
                seconds[name].append((now() - start) / at_once)
    return seconds


def ratios(seconds: Mapping[str, Sequence[float]], name: str) -> list[float]:
    """What the named step costs in dense steps, in each round."""
    return [own / dense for own, dense in zip(seconds[name], seconds["dense"], strict=True)]


def noise_floor(equal: Sequence[float]) -> float:
    """How far from 1 the median ratio of two equal things may lie: the far end of its 95 % confidence interval.

    equal: their ratio in each round. The interval lies between two of these by rank, whatever their distribution (a
    median has each of them above it with probability 1/2); below six rounds it is all of them.
    """
    ordered = sorted(equal)
    n = len(ordered)
    tails = itertools.accumulate(math.comb(n, below) / 2**n for below in range(n // 2))
    skipped = max(sum(tail <= 0.025 for tail in tails) - 1, 0)
    return max(abs(ordered[skipped] - 1), abs(ordered[-1 - skipped] - 1))


def clock(device: torch.device) -> tuple[str, Clock]:
    """("wall" or "process", its seconds): on one CPU thread the process's own time, which others take nothing from."""
    if device.type == "cuda":
        return "wall", lambda: (torch.cuda.synchronize(device), time.perf_counter())[1]
    return ("process", time.process_time) if torch.get_num_threads() == 1 else ("wall", time.perf_counter)


def measure(setting: Setting, variants: Sequence[str] = tuple(VARIANTS)) -> list[Row]:
    """A row for each variant; "dense" and "dense_again" must be among them.

    seconds_median: of one step, by `clock`. ratio: the median over rounds of the variant's seconds by dense's in the
    same round (two medians may be of different minutes of a busy machine). noise_floor: of the whole measurement.
    """
    found = trainees(setting, variants)
    steps = {name: trainee.step for name, trainee in found.items()}
    at_once = STEPS_AT_ONCE[setting.device.type]
    seconds = interleaved(steps, setting.repetitions, clock(setting.device)[1], at_once)
    for trainee in found.values():
        trainee.check()
    return rows(setting, seconds)


def rows(setting: Setting, seconds: Mapping[str, Sequence[float]]) -> list[Row]:
    """What `measure` returns, from the seconds of each step in each round."""
    floor = noise_floor(ratios(seconds, "dense_again"))
    return [
        {
            "benchmark": "step",
            "variant": name,
            "model": setting.model,
            "batch_size": setting.training.batch_size,
            "size": setting.size,
            "device": setting.device.type,
            "precision": setting.training.precision,
            "threads": torch.get_num_threads(),
            "clock": clock(setting.device)[0],
            "seconds_median": statistics.median(own),
            "images_per_second": setting.training.batch_size / statistics.median(own),
            "ratio": statistics.median(ratios(seconds, name)),
            "noise_floor": floor,
            "repetitions": setting.repetitions,
            "torch": torch.__version__,
            "hardware": _environment(setting.device)["hardware"],
        }
        for name, own in seconds.items()
    ]


def over_limit(measured: Sequence[Row]) -> list[str]:
    """The variants whose step costs more than LIMITS and the noise floor allow."""
    return [r["variant"] for r in measured if r["ratio"] > LIMITS.get(r["variant"], math.inf) + r["noise_floor"]]


def show(measured: Sequence[Row], console: Console) -> None:
    """A table for readers."""
    title = "One training step: {model}, batch {batch_size}, {size} pixels, {precision}, {device}, threads: {threads}"
    caption = (
        "Medians of {repetitions} rounds by {clock} time; noise floor {noise_floor:.3f}; {hardware}, torch {torch}"
    )
    table = Table("variant", title=title.format(**measured[0]), caption=caption.format(**measured[0]))
    for heading in ("ms a step", "images/s", "dense steps", "limit"):
        table.add_column(heading, justify="right")
    over = over_limit(measured)
    for row in measured:
        name = row["variant"]
        most = f"{LIMITS[name]:.2f}{' exceeded' if name in over else ''}" if name in LIMITS else ""
        numbers = f"{1000 * row['seconds_median']:.1f}", f"{row['images_per_second']:.1f}", f"{row['ratio']:.3f}"
        table.add_row(name, *numbers, most)
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when measured, 2 for what the user has to correct."""
    options = _parser().parse_args(arguments)
    try:
        setting = _setting(options)
        torch.set_num_threads(options.threads)
        measured = measure(setting)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json:
        print("\n".join(json.dumps(row) for row in measured))
    else:
        show(measured, Console())
    return 0


def _setting(options: argparse.Namespace) -> Setting:
    least = {"size": 8, "batch_size": 2, "repetitions": 1, "threads": 1}  # 8: the digits' own; 2: for BatchNorm
    for name, value in least.items():
        if getattr(options, name) < value:
            raise ValueError(f"--{name.replace('_', '-')} must be {value} or more, not {getattr(options, name)}")
    has_cuda = torch.cuda.is_available()
    if options.device == "cuda" and not has_cuda:
        raise ValueError("--device cuda: torch sees no GPU on this machine; use --device cpu")
    device = torch.device(("cuda" if has_cuda else "cpu") if options.device == "auto" else options.device)
    values = {"precision": options.precision, "channels_last": options.channels_last}
    training = Training(batch_size=options.batch_size, optimizer=SGD(lr=0.01), **values)
    return Setting(options.model, options.size, training, options.repetitions, device)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    benchmarks = parser.add_subparsers(dest="benchmark", required=True)
    what = "the cost of a training step under each objective and under masks"
    step = benchmarks.add_parser("step", help=what, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    step.add_argument("--json", action="store_true", help="one JSON object a line instead of a table")
    step.add_argument("--model", default="resnet18_small", help="architecture by name")
    step.add_argument("--size", type=int, default=32, help="height and width of the images in pixels")
    step.add_argument("--batch-size", type=int, default=32, help="images per step")
    step.add_argument("--repetitions", type=int, default=12, help="timed rounds over all variants")
    step.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: cuda where there is one")
    step.add_argument("--precision", choices=["float32", "bfloat16"], default="float32", help="bfloat16 is autocast")
    layout = {"action": argparse.BooleanOptionalAction, "default": True, "help": "memory layout of convolutions"}
    step.add_argument("--channels-last", **layout)
    step.add_argument("--threads", type=int, default=1, help="CPU threads")
    return parser


if __name__ == "__main__":
    sys.exit(main())
