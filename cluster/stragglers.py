"""Finds the slow worker: one slow machine holds up all of them."""

from __future__ import annotations

import platform
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from cluster.worker import Worker

STEPS_REMEMBERED = 100
"""The median of so many last steps counts."""

MUCH_SLOWER = 1.5
"""A worker that takes this many times as long as the others is reported."""


@dataclass(frozen=True)
class Slowest:
    """The slowest worker: it takes `ratio` times as long as the median of the others."""

    rank: int
    host: str
    ratio: float


class StragglerDetector:
    """Measures what each worker does in a step before it waits for the others: getting the data, the forward pass.

    Collectives inside of it (ZeRO's stage 3 gathers weights in the forward pass) make the workers look equally fast.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._spans: deque[Callable[[], float]] = deque(maxlen=STEPS_REMEMBERED)
        self.named: set[int] = set()
        """Ranks that have been reported."""

    @contextmanager
    def own_work(self) -> Iterator[None]:
        """The block is one step's work of this worker. On a GPU the device's time is measured, without a host sync."""
        if self._worker.device.type == "cuda":
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            yield
            end.record()
            self._spans.append(lambda: start.elapsed_time(end) / 1000)
        else:
            begin = time.perf_counter()
            yield
            seconds = time.perf_counter() - begin
            self._spans.append(lambda: seconds)

    def slowest(self) -> Slowest | None:
        """Of the steps since the last call; None if there is one worker or were no steps. Collective."""
        if self._worker.world_size == 1:
            self._spans.clear()
            return None
        if self._worker.device.type == "cuda":
            torch.cuda.synchronize(self._worker.device)
        own = statistics.median(span() for span in self._spans) if self._spans else None
        self._spans.clear()
        gathered: list[Any] = [None] * self._worker.world_size
        dist.all_gather_object(gathered, (own, platform.node()), group=self._worker.control)
        if any(seconds is None for seconds, _ in gathered):
            return None
        return find_slowest([seconds for seconds, _ in gathered], [host for _, host in gathered])


def find_slowest(seconds: Sequence[float], hosts: Sequence[str]) -> Slowest:
    """The slowest of two or more ranks, from their seconds and hosts."""
    rank = max(range(len(seconds)), key=seconds.__getitem__)
    others = [own for number, own in enumerate(seconds) if number != rank]
    return Slowest(rank, hosts[rank], seconds[rank] / statistics.median(others))
