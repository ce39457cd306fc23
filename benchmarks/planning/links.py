"""What it takes two devices of this machine to add up gradients: latency and bandwidth of their link."""

from __future__ import annotations

import statistics
import tempfile
import time

import torch
import torch.distributed as dist

from benchmarks.planning.model import BUCKET_BYTES, Link
from benchmarks.timing import Clock, clock
from cluster.group import Group
from cluster.launch import launch
from cluster.worker import Worker

SMALL_BYTES = 4096
"""A message whose time is all latency."""

ROUNDS, AT_ONCE, WARM_UP = 9, 5, 3


def measure_link(gradient_bytes: int) -> Link:
    """Between two processes of this machine (gloo), or two of its GPUs (nccl).

    gradient_bytes: of the network; what is sent for the bandwidth is as large, or a bucket of DDP's.
    ValueError: it cannot be measured here, or came out as nonsense.
    """
    if torch.cuda.is_available() and torch.cuda.device_count() < 2:
        raise ValueError("this machine has one GPU, and the time of an all-reduce takes two: give --bandwidth")
    large = max(min(gradient_bytes, BUCKET_BYTES), 64 * SMALL_BYTES)
    with tempfile.TemporaryDirectory() as folder:
        group = Group(storage=folder, workers=2)
        [outcome] = launch(reduce_seconds, [(SMALL_BYTES, large)], group, lambda number, event: None)
    if outcome.error is not None:
        raise ValueError(f"the all-reduce could not be timed ({outcome.error}): give --bandwidth and --latency")
    return link_of(SMALL_BYTES, outcome.value[0], large, outcome.value[1])


def link_of(small: int, small_seconds: float, large: int, large_seconds: float) -> Link:
    """Two devices send 2 messages and half of the bytes twice: seconds = 2 latency + bytes / bandwidth.

    ValueError: the larger message did not take longer.
    """
    if large_seconds <= small_seconds:
        raise ValueError(
            f"{large} bytes took no longer than {small}: the machine is too busy to time an all-reduce; try again, or "
            "give --bandwidth and --latency"
        )
    bandwidth = (large - small) / (large_seconds - small_seconds)
    return Link(max(small_seconds - small / bandwidth, 0.0) / 2, bandwidth)


def reduce_seconds(sizes: tuple[int, ...], worker: Worker) -> list[float]:
    """Body: median seconds of an all-reduce of so many bytes each, among all workers."""
    # A process that waits for another takes no time of its own: the clock of the wall sees it.
    now = clock(worker.device)[1] if worker.device.type == "cuda" else time.perf_counter
    tensors = [torch.zeros(size // 4, device=worker.device) for size in sizes]
    return [_median_seconds(tensor, now) for tensor in tensors]


def _median_seconds(tensor: torch.Tensor, now: Clock) -> float:
    found: list[float] = []
    for turn in range(WARM_UP + ROUNDS):
        dist.barrier()
        start = now()
        for _ in range(AT_ONCE):
            dist.all_reduce(tensor)
        if turn >= WARM_UP:
            found.append((now() - start) / AT_ONCE)
    return statistics.median(found)
