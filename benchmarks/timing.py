"""Timing things against each other on a machine that others use, too."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence

import torch

Clock = Callable[[], float]

WARM_UP_ROUNDS = 1
"""Untimed: what runs for the first time allocates."""


def clock(device: torch.device) -> tuple[str, Clock]:
    """("wall" or "process", its seconds): on one CPU thread the process's own time, which others take nothing from.

    On a GPU a look at the clock waits for the device, and so does everything started before it count.
    """
    if device.type == "cuda":
        return "wall", lambda: (torch.cuda.synchronize(device), time.perf_counter())[1]
    return ("process", time.process_time) if torch.get_num_threads() == 1 else ("wall", time.perf_counter)


def interleaved(
    steps: Mapping[str, Callable[[], object]], repetitions: int, now: Clock, at_once: int = 1
) -> dict[str, list[float]]:
    """Seconds per step of each in each round: one after the other, from another one on and the other way every round.

    A machine that others use grows slower and faster by the minute; neighbours in time see the same of it. A step also
    feels what its neighbour left in caches and allocator, so none has the same one before it each time.
    at_once: steps between two looks at the clock.
    """
    names = list(steps)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(WARM_UP_ROUNDS + repetitions):
        first = turn % len(names)
        order = names[first:] + names[:first]
        for name in reversed(order) if turn % 2 else order:
            start = now()
            for _ in range(at_once):
                steps[name]()
            if turn >= WARM_UP_ROUNDS:
                seconds[name].append((now() - start) / at_once)
    return seconds


def ratios(seconds: Sequence[float], reference: Sequence[float]) -> list[float]:
    """What the one took in units of the other, in each round."""
    return [own / other for own, other in zip(seconds, reference, strict=True)]


def noise_floor(equal: Sequence[float]) -> float:
    """How far from 1 the median ratio of two equal things may lie: the far end of its 95 % confidence interval.

    equal: their ratio in each round. The interval runs between two of these by rank, whatever their distribution (the
    median has each of them above it with probability 1/2); with fewer than nine rounds it spans all of them.
    """
    ordered = sorted(equal)
    n = len(ordered)
    tails = itertools.accumulate(math.comb(n, below) / 2**n for below in range(n // 2))
    skipped = max(sum(tail <= 0.025 for tail in tails) - 1, 0)
    return max(abs(ordered[skipped] - 1), abs(ordered[-1 - skipped] - 1))
