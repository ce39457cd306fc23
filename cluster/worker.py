"""Worker: a process that runs a body over items. Outcome: the result of one item."""

import os
import pickle
import sys
import traceback
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from cluster.process_group import ProcessGroup
from cluster.stopping import RESUME, Stopped, StopSignal

Body = Callable[[Any, "Worker"], Any]
OnEvent = Callable[[int, dict[str, Any]], None]
Post = Callable[[str, int, Any], None]
"""How a worker reports to the driver: `post(kind, item number, payload)`, of kind "event" or "outcome"."""


@dataclass(frozen=True)
class Worker:
    """One process that runs a body.

    rank, world_size: its number, from 0, among the workers that share the item.
    device: where it computes.
    control: a gloo group of these workers for small objects and barriers; None when world_size is 1.
    emit: sends an event (a dict of plain, picklable data) to the driver without waiting for it.
    stop_signal: what this worker has been asked to do; `cluster.stopping.Vote` makes the workers agree on it.
    """

    rank: int
    world_size: int
    device: torch.device
    control: dist.ProcessGroup | None = None
    emit: Callable[[dict[str, Any]], None] = lambda event: None
    stop_signal: StopSignal = field(default_factory=StopSignal)


@dataclass(frozen=True)
class Outcome:
    """The result of an item: the value its body returned, or an error ("ValueError: text") with its traceback.

    stopped: it was interrupted, or not started, because the command was asked to stop.
    external: a machine ended it (a dead process, a full disk), not the item, which may end well another time.
    """

    value: Any = None
    error: str | None = None
    traceback: str | None = None
    stopped: bool = False
    external: bool = False


STOPPED = Outcome(error=str(Stopped()), stopped=True)


class LostContact(ConnectionError):
    """Another worker of the item is dead, unreachable, or did not answer before the group's timeout."""


def run_item(body: Body, item: Any, worker: Worker) -> Outcome:
    """Run one item; an Exception becomes the outcome's error. Only the first worker's value is kept.

    LostContact if another worker cannot be reached: this is not an error of the item.
    """
    try:
        value = body(item, worker)
        pickle.dumps(value)  # an error here is the item's; later it would end the worker
        return Outcome(value=value if worker.rank == 0 else None)
    except Stopped:
        return STOPPED
    except Exception as error:
        # Gloo's own errors are plain RuntimeErrors that name the file they come from.
        lost = isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "/gloo/" in str(error))
        if worker.world_size > 1 and lost:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise LostContact(f"worker {worker.rank} lost the others ({reason}); {RESUME}") from error
        text, external = f"{type(error).__name__}: {error}", isinstance(error, OSError)
        return Outcome(error=text, traceback=traceback.format_exc(), external=external)


def run_items(
    body: Body, items: Iterable[tuple[int, Any]], worker: Worker, group: ProcessGroup | None, post: Post
) -> None:
    """Run the items (number, item) in order, post each outcome, and wait for the other workers after each item.

    After one of the workers was asked to stop, no further item is started. Raises LostContact, or RuntimeError where
    the others do not come to the barrier: the process must then exit. If worker 0 becomes silent, it exits here.
    """
    current, stopped = -1, False

    def exit_on_silence(reason: str) -> None:
        error = f"worker {worker.rank} lost worker 0: {reason}; {RESUME}"
        if current >= 0:
            post("outcome", current, Outcome(error=error, external=True))
        print(error, file=sys.stderr, flush=True)
        os._exit(1)  # the main thread waits in a collective that never ends

    with group.heartbeat(exit_on_silence) if group else nullcontext():
        for current, item in items:
            stopped = stopped or (group is None and worker.stop_signal.stop_requested)
            worker = replace(worker, control=group.control if group else None, emit=partial(post, "event", current))
            try:
                outcome = STOPPED if stopped else run_item(body, item, worker)
            except LostContact as error:
                notice = Outcome(error=str(error), traceback=traceback.format_exc(), external=True)
                post("outcome", current, notice)
                raise
            post("outcome", current, outcome)
            if group and not stopped:
                stopped = group.barrier(failed=outcome.error is not None, stop=worker.stop_signal.stop_requested)
