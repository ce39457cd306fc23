"""Timing several things against each other on a machine that other processes use too."""

import itertools
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from cluster.group import Group
from cluster.launch import launch
from cluster.worker import Worker
from pipelines.execute import environment

Clock = Callable[[], float]
Row = dict[str, Any]
"""One line of a benchmark's output."""

CALLS_AT_ONCE = {"cpu": 1, "cuda": 20}
"""Steps between two readings of the clock: on a GPU each reading waits for the device, and a training never does."""

BUCKET_BYTES = 25 * 2**20
"""Gradients that DistributedDataParallel sends in one message."""

WARM_UP_ROUNDS = 1
"""Not timed: the first call allocates memory."""


@dataclass(frozen=True)
class Setting:
    """How a benchmark measures: `rounds` turns of `steps` training steps for each thing that is compared.

    size: of the images, in pixels. batch_size: images per step, over all workers together.
    workers: processes that train together, or that decode images.
    """

    device: torch.device
    model: str = "resnet20"
    size: int = 32
    batch_size: int = 64
    workers: int = 1
    rounds: int = 9
    steps: int = 4


def machine(device: torch.device) -> Row:
    """The columns of a row that say where it was measured."""
    where = {"device": device.type, "threads": torch.get_num_threads(), "torch": torch.__version__}
    return where | {"hardware": environment(device)["hardware"]}


def wall_clock(device: torch.device) -> Clock:
    """Wall-clock seconds. On a GPU a call waits until the device has finished."""
    if device.type == "cuda":
        return lambda: (torch.cuda.synchronize(device), time.perf_counter())[1]
    return time.perf_counter


def clock(device: torch.device) -> tuple[str, Clock]:
    """("process", CPU time) on one CPU thread: other processes take nothing from it. Else ("wall", wall-clock time)."""
    if device.type == "cpu" and torch.get_num_threads() == 1:
        return "process", time.process_time
    return "wall", wall_clock(device)


def interleaved(
    steps: Mapping[str, Callable[[], object]], rounds: int, now: Clock, at_once: int = 1
) -> dict[str, list[float]]:
    """Seconds per step of each in each round.

    A shared machine gets slower and faster from minute to minute, so only steps of the same round are comparable. A
    step also depends on what the step before it left in caches and allocator, so the order changes every round.
    at_once: steps between two readings of the clock.
    """
    names = list(steps)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(WARM_UP_ROUNDS + rounds):
        first = turn % len(names)
        order = names[first:] + names[:first]
        for name in reversed(order) if turn % 2 else order:
            start = now()
            for _ in range(at_once):
                steps[name]()
            if turn >= WARM_UP_ROUNDS:
                seconds[name].append((now() - start) / at_once)
    return seconds


def ratios(own: Sequence[float], reference: Sequence[float]) -> list[float]:
    """own / reference in each round. The ratio of two medians could compare different minutes."""
    return [a / b for a, b in zip(own, reference, strict=True)]


def noise_floor(equal: Sequence[float]) -> float:
    """How far from 1 the median ratio of two equal things may be: the far end of its 95 % confidence interval.

    equal: their ratio in each round. The interval lies between two of the sorted ratios, whatever their distribution:
    the median has each of them above it with probability 1/2. With fewer than nine rounds it spans all of them.
    """
    ordered = sorted(equal)
    n = len(ordered)
    tails = itertools.accumulate(math.comb(n, below) / 2**n for below in range(n // 2))
    skipped = max(sum(tail <= 0.025 for tail in tails) - 1, 0)
    return max(abs(ordered[skipped] - 1), abs(ordered[-1 - skipped] - 1))


def step_rows(setting: Setting, column: str, seconds: Mapping[str, Sequence[float]], **shared: Any) -> list[Row]:
    """A row for each thing that is compared; `column` is that of its name.

    seconds: name -> of one step in each round. The first is the reference. The second is the same once more, and shows
    the noise floor. shared: further columns. ratio: median of the seconds / the reference's in the same round.
    """
    reference, again = list(seconds.values())[:2]
    return [
        {
            column: name,
            "model": setting.model,
            "size": setting.size,
            "batch_size": setting.batch_size,
            **machine(setting.device),
            "seconds_median": statistics.median(own),
            "images_per_second": setting.batch_size / statistics.median(own),
            "ratio": statistics.median(ratios(own, reference)),
            "noise_floor": noise_floor(ratios(again, reference)),
            **shared,
        }
        for name, own in seconds.items()
    ]


def turn_rows(setting: Setting, column: str, turns: Mapping[str, Sequence[float]], **shared: Any) -> list[Row]:
    """`step_rows` from the seconds of turns of `setting.steps` steps."""
    steps = {name: [turn / setting.steps for turn in own] for name, own in turns.items()}
    shared |= {name: getattr(setting, name) for name in ("workers", "rounds", "steps")}
    return step_rows(setting, column, steps, **shared)


def mean_seconds(batches: Iterator[object], seconds: float) -> float:
    """Mean wall-clock seconds of a batch, for about so long; the first is not counted if there are more."""
    first = time.perf_counter()
    next(batches)  # waits for processes to start
    start, num = time.perf_counter(), 0
    for _ in batches:
        num += 1
        if time.perf_counter() - start > seconds:
            break
    end = time.perf_counter()
    batches.close()  # pyright: ignore[reportAttributeAccessIssue]
    return (end - start) / num if num else start - first


def all_reduce_seconds(num_bytes: int) -> float:
    """Median wall-clock seconds of an all-reduce between two processes of this machine (gloo), or two GPUs (nccl)."""
    with tempfile.TemporaryDirectory() as folder:
        group = Group(storage=folder, workers=2)
        [outcome] = launch(_all_reduce, [num_bytes], group, lambda number, event: None)
    if outcome.error is not None:
        raise ValueError(f"the all-reduce could not be timed: {outcome.error}")
    return outcome.value


def ring_seconds(num_bytes: int, gpus: int, bandwidth: float, delay: float) -> float:
    """An all-reduce: each device sends 2 (N-1)/N of the bytes, in 2 (N-1) messages for each bucket (`delay` each)."""
    messages = 2 * (gpus - 1) * math.ceil(num_bytes / BUCKET_BYTES)
    return 2 * (gpus - 1) / gpus * num_bytes / bandwidth + messages * delay


def _all_reduce(num_bytes: int, worker: Worker) -> float:
    tensor, now, found = torch.zeros(num_bytes // 4, device=worker.device), wall_clock(worker.device), []
    for _ in range(12):
        dist.barrier()
        start = now()
        dist.all_reduce(tensor)
        found.append(now() - start)
    return statistics.median(found[2:])
