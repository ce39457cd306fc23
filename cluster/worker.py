"""Worker: one process that runs a body over items, and what becomes of each item."""

from __future__ import annotations

import os
import pickle
import sys
import traceback
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from cluster.process_group import ProcessGroup
from cluster.stopping import Stopped, StopSignal

Body = Callable[[Any, "Worker"], Any]
OnEvent = Callable[[int, dict[str, Any]], None]
Post = Callable[[str, int, Any], None]
"""How a worker reports: `post(kind, item number, payload)` with the kinds "event" and "outcome"."""


START_AGAIN = "start the same command again: the run goes on from its last checkpoint"


@dataclass(frozen=True)
class Worker:
    """One process that runs a body.

    rank, world_size: its number, from 0, among the workers that share the item.
    device: where it computes.
    control: a gloo group of these workers for small objects and for waiting; None when world_size is 1.
    emit: sends an event (a dict of plain, picklable data) to the driver without waiting for it.
    stop_signal: what this worker has been asked from outside; `cluster.stopping.Vote` makes the workers agree on it.
    """

    rank: int
    world_size: int
    device: torch.device
    control: dist.ProcessGroup | None
    emit: Callable[[dict[str, Any]], None]
    stop_signal: StopSignal = field(default_factory=StopSignal)


@dataclass(frozen=True)
class Outcome:
    """What became of an item: the value its body returned, or an error ("ValueError: text") with its traceback.

    stopped: it was ended, or not begun, because the command was asked to stop.
    """

    value: Any = None
    error: str | None = None
    traceback: str | None = None
    stopped: bool = False


STOPPED = Outcome(error=str(Stopped()), stopped=True)


def attempt(body: Body, item: Any, worker: Worker) -> Outcome:
    """Run one item; an Exception becomes the outcome's error. Only the first worker's value is kept.

    LostContact where another worker cannot be reached: this is no fault of the item.
    """
    try:
        value = body(item, worker)
        pickle.dumps(value)  # here, where it can still become the item's error instead of a worker's death
        return Outcome(value=value if worker.rank == 0 else None)
    except Stopped:
        return STOPPED
    except Exception as error:
        if worker.world_size > 1 and _is_broken_connection(error):
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise LostContact(f"worker {worker.rank} lost the others ({reason}); {START_AGAIN}") from error
        return Outcome(error=f"{type(error).__name__}: {error}", traceback=traceback.format_exc())


class LostContact(ConnectionError):
    """Another worker of the item is dead, cut off, or has not answered within the group's patience."""


def _is_broken_connection(error: Exception) -> bool:
    # Gloo's own errors are plain RuntimeErrors that name the file they come from.
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "/gloo/" in str(error))


@dataclass(frozen=True)
class Place:
    """Where a worker stands: its number among those that share an item, its device, and what ties it to them."""

    rank: int
    world_size: int
    device: torch.device
    links: ProcessGroup | None


def work_through(
    body: Body, tasks: Iterable[tuple[int, Any]], place: Place, post: Post, stop_signal: StopSignal
) -> None:
    """The life of one worker: run the tasks (item number, item) in order, post each outcome, meet the others.

    Once one of the workers is asked to stop, no further item is begun. Raises LostContact, or RuntimeError where the
    others do not come to the meeting: the worker must then exit. Where the first worker falls silent, it exits itself.
    """
    links, ended = place.links, False
    current = -1

    def leave(silence: str) -> None:
        error = f"worker {place.rank} lost worker 0: {silence}; {START_AGAIN}"
        if current >= 0:
            post("outcome", current, Outcome(error=error))
        print(error, file=sys.stderr, flush=True)
        os._exit(1)  # the main thread waits in a collective that never ends

    watched = links.watched(leave) if links else nullcontext()
    with watched:
        for number, item in tasks:
            current = number
            control = links.control if links else None
            emit = partial(post, "event", number)
            worker = Worker(place.rank, place.world_size, place.device, control, emit, stop_signal)
            ended = ended or (links is None and stop_signal())
            try:
                outcome = STOPPED if ended else attempt(body, item, worker)
            except LostContact as error:
                post("outcome", number, Outcome(error=str(error), traceback=traceback.format_exc()))
                raise
            post("outcome", number, outcome)
            if links and not ended:
                ended = links.meet(failed=outcome.error is not None, stopping=stop_signal())
