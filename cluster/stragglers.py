"""How fast each worker is by itself: one slow machine holds all of them up, and nobody sees which."""

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
"""Of so many steps, the last ones, the median counts."""

MUCH_SLOWER = 1.5
"""How many times the others' time makes a worker worth a word."""


@dataclass(frozen=True)
class Slowest:
    """The slowest worker: `ratio` times as long as the median of the others."""

    rank: int
    host: str
    ratio: float


class StragglerDetector:
    """Seconds of what each worker does alone in a step, before it waits for the others: data that is there, forward.

    Collectives inside of it (ZeRO's stage 3 gathers weights in the forward pass) make the workers look alike.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._spans: deque[Callable[[], float]] = deque(maxlen=STEPS_REMEMBERED)
        self.named: set[int] = set()
        """Ranks of which somebody has been told."""

    @contextmanager
    def own_work(self) -> Iterator[None]:
        """The block is one step's work of this worker. On a GPU the device's time counts, and nobody waits for it."""
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
        """Of the steps since the last call; None where there is one worker, or were no steps. Collective."""
        if self._worker.world_size == 1:
            self._spans.clear()
            return None
        if self._worker.device.type == "cuda":
            torch.cuda.synchronize(self._worker.device)
        own = statistics.median(span() for span in self._spans) if self._spans else None
        self._spans.clear()
        everybody: list[Any] = [None] * self._worker.world_size
        dist.all_gather_object(everybody, (own, platform.node()), group=self._worker.control)
        if any(seconds is None for seconds, _ in everybody):
            return None
        return find_slowest([seconds for seconds, _ in everybody], [host for _, host in everybody])


def find_slowest(seconds: Sequence[float], hosts: Sequence[str]) -> Slowest:
    """From the seconds and the hosts of two or more ranks."""
    rank = max(range(len(seconds)), key=seconds.__getitem__)
    others = [own for number, own in enumerate(seconds) if number != rank]
    return Slowest(rank, hosts[rank], seconds[rank] / statistics.median(others))
